"""Where the time of whole training goes, operation by operation: a profile of compiled chunks, by part and kind.

python benchmarks/operations.py [PRESET] [--set field=value …] [--top 30] [--json OUT]

Times are those that the device's own profiler records, summed over all devices; recording costs a little with every
operation, most where they are small. Loops are left out, being the sum of what is in them. Beside the times stands how
many operations were run.
"""

import argparse
import collections
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData
from measure import write

from jqmix.config import load_config
from jqmix.runs.devices import use_cpu_cores
from jqmix.runs.population import compile_population

PARTS = (("collecting", r"collecting"), ("agent", r"learning.*_QNetwork"), ("mixer", r"learning.*Network"))
KINDS = (("products", r" (dot|convolution|custom-call)\("), ("elementwise", r" (fusion|reduce|map)\("))


def operations(program: str) -> dict[str, tuple[str, str]]:
    """(part, kind) of every operation of a compiled program, from its text."""
    bodies = {m[1]: m[0] for m in re.finditer(r"^%?([\w.\-]+) \([^\n]*\{\n.*?^\}", program, re.MULTILINE | re.DOTALL)}
    found = {}
    for name, line in re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE):
        scope, called = re.search(r'op_name="([^"]*)"', line), re.search(r"calls=%?([\w.\-]+)", line)
        text = re.sub(r'"[^"]*"', "", line) + (bodies.get(called[1], "") if called else "")
        if re.search(r" (while|conditional|call)\(", line):
            continue
        part = next((p for p, pattern in PARTS if scope and re.search(pattern, scope[1])), "rest")
        found[name] = part, next((k for k, pattern in KINDS if re.search(pattern, text)), "moves")
    return found


def recorded(folder: str) -> tuple[dict[str, float], dict[str, int]]:
    """Milliseconds by event, and how often it was run, from a profile's folder."""
    total: dict[str, float] = collections.defaultdict(float)
    times: dict[str, int] = collections.defaultdict(int)
    for path in Path(folder).rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    total[event.name] += event.duration_ns / 1e6
                    times[event.name] += 1
    return total, times


def profile(cfg: Any, chunks: int) -> dict[str, Any]:
    population = compile_population(cfg)
    state = [population.members, population.shared]

    def run() -> None:
        state[:] = jax.block_until_ready(population.step(*state))[:2]

    while int(state[1].updates) == 0:
        run()
    begin, before = time.perf_counter(), int(state[1].updates)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(chunks):
                run()
            wall = time.perf_counter() - begin
        times, counts = recorded(folder)
    updates = int(state[1].updates) - before
    known = operations(population.compiled.as_text())
    table: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    run_by_part: dict[str, float] = collections.defaultdict(float)
    for name, ms in times.items():
        if name in known:
            part, kind = known[name]
            table[part][kind] += ms / updates
            run_by_part[part] += counts[name] / updates
    top = [
        (name, *known[name], ms / updates) for name, ms in sorted(times.items(), key=lambda x: -x[1]) if name in known
    ]
    return {
        "updates": updates,
        "wall_ms": 1e3 * wall / updates,
        "ms": {k: dict(v) for k, v in table.items()},
        "operations": dict(run_by_part),
        "top": top,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="smax_3m")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields to change")
    parser.add_argument("--chunks", type=int, default=1, help="how many to record")
    parser.add_argument("--top", type=int, default=30, help="single operations to show")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    args = parser.parse_args()
    use_cpu_cores()
    changes = dict(text.split("=", 1) for text in args.set)
    result = profile(load_config(args.preset, **changes), args.chunks)
    kinds = [kind for kind, _ in KINDS] + ["moves"]
    print(f"{result['updates']} updates, {result['wall_ms']:.2f} ms of wall time for each; device ms for each:")
    print("| part | " + " | ".join(kinds) + " | operations |\n|---|" + "---|" * (len(kinds) + 1))
    for part, row in result["ms"].items():
        ms = " | ".join(f"{row.get(kind, 0.0):.2f}" for kind in kinds)
        print(f"| {part} | {ms} | {result['operations'][part]:.0f} |")
    for name, part, kind, ms in result["top"][: args.top]:
        print(f"{ms:9.3f}  {part:10}  {kind:11}  {name}")
    write(args.json, {"preset": args.preset, "changes": changes} | result | {"top": result["top"][: args.top]})


if __name__ == "__main__":
    main()
