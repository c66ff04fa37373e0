"""Where the time of training goes, for a member of a preset or of JaxMARL's work (``--case smax_2s3z``).

python benchmarks/parts.py time [PRESET] [--set FIELD=VALUE …] [--json OUT]   # every part timed alone, and its floor
python benchmarks/parts.py products [PRESET] [--set …]   # every matrix product of an iteration, at its own shape
python benchmarks/parts.py profile [PRESET] [--set …]    # whole training, by part and kind of operation
python benchmarks/parts.py gru [--rows 12 96] [--hidden 64 128]               # the GRU over a window, in all its forms

``time``: a floor is the larger of operations over the device's peak and bytes over its bandwidth, both measured in the
same call. Operations are those of matrix products, bytes those of a part's arguments and results, each crossing once
(of replay, only what is drawn; of an iteration, only the learner).
A part alone reads and writes what would stay in registers in the whole, so parts do not add up; the whole iteration is
the last line. The floor on an H200 takes NVIDIA's data sheet.

``products``: their sum is how long an iteration would take if nothing but its products took time, each as fast as
alone. ``profile``: times are those that the device's own profiler records, summed over devices; recording costs most
where operations are small. ``gru``: the scan with automatic differentiation (plain), with jqmix's backward pass
(fast), and on a GPU as one kernel, taking turns; and how far their gradients are from the plain one's.
"""

import argparse
import collections
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData
from jaxmarl_work import qmix_work, sized_case
from measure import (
    GRU,
    Training,
    compiler_options,
    fields,
    gru_forms,
    iteration,
    median_ms,
    parts_of,
    use_cpu_cores,
    write,
)
from products import flops, measured_peak, products_in, timed

from jqmix.config import Config, load_config

H200 = {"flops": 67e12, "bytes": 4.8e12}  # float32 outside the tensor cores and HBM3e


def config(args: argparse.Namespace) -> Config:
    """The preset as it is changed, or JaxMARL's amount of work."""
    if args.case:
        return qmix_work(args.case, sized_case(args.case, args.hidden), args.iterations, seeds=1)
    return load_config(args.preset, **fields(args.set))


def asked(args: argparse.Namespace) -> dict[str, Any]:
    if args.case:
        return {"case": args.case, "hidden": args.hidden}
    return {"preset": args.preset, "changes": fields(args.set)}


# Parts and their floors


def time_parts(args: argparse.Namespace) -> None:
    cfg, peak, rows = config(args), measured_peak(), {}
    print(f"peak {peak['flops'] / 1e9:,.0f} GFLOP/s, {peak['bytes'] / 1e9:,.0f} GB/s")
    print("| part | calls | ms | GFLOP | MB | floor ms | × floor | H200 floor µs |\n|---|---|---|---|---|---|---|---|")
    for name, calls, function, inputs, moved in parts_of(cfg):
        work = {
            "flops": flops(products_in(function, inputs)),
            "bytes": crossing(function, inputs) if moved is None else size(moved),
        }
        floor, h200 = (1e3 * max(work[what] / top[what] for what in work) for top in (peak, H200))
        ms = median_ms(function, *inputs, repeats=args.repeats)
        rows[name] = work | {"ms": ms, "calls_per_iteration": calls, "floor_ms": floor, "h200_floor_ms": h200}
        numbers = (ms, work["flops"] / 1e9, work["bytes"] / 1e6, floor, ms / floor, 1e3 * h200)
        print(f"| {name} | {calls} | {' | '.join(f'{x:.3g}' for x in numbers)} |", flush=True)
    write(args.json, asked(args) | {"peak": peak, "h200_peak": H200, "parts": rows})


def crossing(function: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
    """Bytes of a function's arguments and results."""
    return size((inputs, jax.eval_shape(function, *inputs)))


def size(arrays: Any) -> float:
    """Bytes."""
    itemsize = lambda dtype: 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize  # noqa: E731
    return float(sum(x.size * itemsize(x.dtype) for x in jax.tree.leaves(arrays)))


# Products


def products(args: argparse.Namespace) -> None:
    function, shapes, _ = iteration(config(args))
    result = timed(products_in(function, shapes))
    print("| operands | times | GFLOP | as written, ms | turned, ms | GFLOP/s a device |\n|---|---|---|---|---|---|")
    for row in result["products"]:
        shown = " · ".join("×".join(map(str, row[side])) for side in ("a", "b"))
        both = f"{row['as_written_ms']:.3g} | {row['turned_ms']:.3g}"
        print(f"| {shown} | {row['times']} | {row['gflop']:.3g} | {both} | {row['gflops_per_device']:.0f} |")
    print(
        f"together {result['total_ms']:.1f} ms, as written {result['total_as_written_ms']:.1f} ms; "
        f"{result['total_gflop']:.2f} GFLOP a device"
    )
    write(args.json, asked(args) | result)


# A profile

PARTS = (("collecting", r"collecting"), ("agent", r"learning.*_QNetwork"), ("mixer", r"learning.*Network"))
KINDS = (("products", r" (dot|convolution|custom-call)\("), ("elementwise", r" (fusion|reduce|map)\("))


def operations(program: str) -> dict[str, tuple[str, str]]:
    """(part, kind) of every operation of a compiled program, from its text. Loops are the sum of what is in them."""
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
    total, times = collections.defaultdict[str, float](float), collections.defaultdict[str, int](int)
    for path in Path(folder).rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    total[event.name] += event.duration_ns / 1e6
                    times[event.name] += 1
    return total, times


def record(training: Training, calls: int) -> dict[str, Any]:
    """Device milliseconds and operations of an update, by part and kind, and the longest single operations."""
    training.until_learning()
    begin, before = time.perf_counter(), training.updates()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                training.call()
            wall = time.perf_counter() - begin
        times, counts = recorded(folder)
    updates, known = training.updates() - before, operations(training.text())
    table: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    run = collections.defaultdict[str, float](float)
    for name in times.keys() & known.keys():
        part, kind = known[name]
        table[part][kind] += times[name] / updates
        run[part] += counts[name] / updates
    longest = sorted(times.keys() & known.keys(), key=lambda name: -times[name])
    return {
        "updates": updates,
        "wall_ms": 1e3 * wall / updates,
        "ms": {part: dict(kinds) for part, kinds in table.items()},
        "operations": dict(run),
        "top": [(name, *known[name], times[name] / updates) for name in longest[:30]],
    }


def profile(args: argparse.Namespace) -> None:
    result = record(Training(config(args)), args.calls)
    kinds = [kind for kind, _ in KINDS] + ["moves"]
    print(f"{result['updates']} updates, {result['wall_ms']:.2f} ms of wall time for each; device ms for each:")
    print("| part | " + " | ".join(kinds) + " | operations |\n|---|" + "---|" * (len(kinds) + 1))
    for part, row in result["ms"].items():
        ms = " | ".join(f"{row.get(kind, 0.0):.2f}" for kind in kinds)
        print(f"| {part} | {ms} | {result['operations'][part]:.0f} |")
    for name, part, kind, ms in result["top"]:
        print(f"{ms:9.3f}  {part:10}  {kind:11}  {name}")
    write(args.json, asked(args) | result)


# The GRU

INSIDE = 10  # passes in a call, so that no result is fresh memory


def gradient(first: jax.Array, unroll: Callable[..., jax.Array], params: Any, x: jax.Array) -> Any:
    """Of a loss that needs all of the backward pass."""
    loss = lambda p, x: jnp.sum(jnp.square(unroll(p, jnp.zeros_like(x[0]), x, first)))  # noqa: E731
    return jax.grad(loss, (0, 1))(params, x)


def gru_calls(gru: GRU, x: jax.Array, first: jax.Array) -> dict[tuple[str, str], Callable[[], Any]]:
    """By pass and form, a compiled call."""

    def forward(unroll: Any, params: Any, x: jax.Array) -> jax.Array:
        zero = jnp.zeros_like(x[0])
        return jax.lax.fori_loop(0, INSIDE, lambda _, x: x - 1e-6 * unroll(params, zero, x, first), x)

    def both(unroll: Any, params: Any, x: jax.Array) -> Any:
        descend = lambda _, at: jax.tree.map(lambda a, g: a - 1e-6 * g, at, gradient(first, unroll, *at))  # noqa: E731
        return jax.lax.fori_loop(0, INSIDE, descend, (params, x))

    def call(f: Any, unroll: Any) -> Callable[[], Any]:
        compiled = jax.jit(partial(f, unroll)).lower(gru.params, x).compile(compiler_options())
        return lambda: compiled(gru.params, x)

    passes = {"forward_ms": forward, "both_ms": both}
    return {(what, name): call(f, form) for what, f in passes.items() for name, form in gru.forms.items()}


def time_gru(rows: int, steps: int, hidden: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of a pass, all forms taking turns; and how far each gradient is from the plain form's."""
    gru, (k_x, k_first) = gru_forms(hidden), jax.random.split(jax.random.key(1))
    x, first = 0.1 * jax.random.normal(k_x, (steps, rows, hidden)), jax.random.bernoulli(k_first, 0.02, (steps, rows))
    calls = gru_calls(gru, x, first)
    times: dict[tuple[str, str], list[float]] = {which: [] for which in calls}
    for turn in range(repeats + 1):
        for which, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if turn:  # the first one warms up
                times[which].append(1e3 * (time.perf_counter() - begin) / INSIDE)
    gradients = {name: jax.jit(partial(gradient, first, form))(gru.params, x) for name, form in gru.forms.items()}
    far = lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))  # noqa: E731
    distances = {n: max(jax.tree.leaves(jax.tree.map(far, g, gradients["plain"]))) for n, g in gradients.items()}
    result: dict[str, Any] = {"rows": rows, "steps": steps, "hidden": hidden, "furthest": distances}
    for (what, name), taken in times.items():
        result.setdefault(what, {})[name] = median(taken)
    return result


def compare_gru(args: argparse.Namespace) -> None:
    results = []
    for hidden in args.hidden:
        for rows in args.rows:
            results.append(time_gru(rows, args.steps, hidden, args.repeats))
            for what in ("forward_ms", "both_ms"):
                shown = "   ".join(f"{name} {ms:7.2f}" for name, ms in results[-1][what].items())
                print(f"hidden {hidden:4} rows {rows:4} {what:10} {shown}", flush=True)
    write(args.json, {"sizes": results})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="time | products | profile | gru")
    made = {}
    for name, run in (("time", time_parts), ("products", products), ("profile", profile), ("gru", compare_gru)):
        made[name] = command = commands.add_parser(name)
        command.set_defaults(run=run, cores=name in ("products", "profile"))
        command.add_argument("--json", type=Path, help="write the result here, too")
        if name != "gru":
            command.add_argument("preset", nargs="?", default="smax_3m")
            command.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields to change")
            command.add_argument("--case", help="JaxMARL's amount of work for QMIX, in place of a preset")
            command.add_argument("--hidden", type=int, default=64, help="width of the agents in a --case")
            command.add_argument("--iterations", type=int, default=4, help="of a call in a --case")
    made["time"].add_argument("--repeats", type=int, default=15)
    made["profile"].add_argument("--calls", type=int, default=1, help="how many to record")
    made["gru"].add_argument("--rows", type=int, nargs="+", default=[96], help="batch × agents")
    made["gru"].add_argument("--steps", type=int, default=102)
    made["gru"].add_argument("--hidden", type=int, nargs="+", default=[64])
    made["gru"].add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.cores:
        use_cpu_cores()
    args.run(args)


if __name__ == "__main__":
    main()
