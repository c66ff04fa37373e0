"""SMAX alone under random play: our whole-array form against JaxMARL's, taking turns; best batch of each counts.

python benchmarks/smax_speed.py [--maps 3m 2s3z 5m_vs_6m 27m_vs_30m] [--batches 16 64 256] [--json OUT]

Both go through the same contract, so the arguments differ in nothing but the environment. Resets are left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measure import write

from jqmix.envs.registry import SMAX_MAPS, make_env
from jqmix.runs.bench import random_play


def program(name: str, size: int, steps: int) -> tuple[Callable[[], float], float]:
    """A call that returns environment steps per second, and the seconds that compiling took."""
    begin = time.perf_counter()
    compiled = jax.jit(random_play(make_env(name, batch=size), steps)).lower(jnp.int32(0)).compile()
    compile_s = time.perf_counter() - begin
    jax.block_until_ready(compiled(jnp.int32(0)))

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(jnp.int32(1)))
        return size * steps / (time.perf_counter() - begin)

    return run, compile_s


def compare(map_name: str, batches: list[int], steps: int, repeats: int) -> dict[str, Any]:
    """Medians for every batch size, and the ratio of the best."""
    result: dict[str, Any] = {"map": map_name, "jqmix": {}, "jaxmarl": {}, "compile_s": {}}
    names = {"jqmix": f"smax_{map_name}", "jaxmarl": f"jaxmarl/smax_{map_name}"}
    for size in batches:
        programs = {who: program(name, size, steps) for who, name in names.items()}
        speeds: dict[str, list[float]] = {who: [] for who in names}
        for _ in range(repeats):
            for who, (run, _) in programs.items():
                speeds[who].append(run())
        for who, (_, compile_s) in programs.items():
            result[who][str(size)] = statistics.median(speeds[who])
            result["compile_s"][f"{who}/{size}"] = compile_s
    result["ratio_of_best"] = max(result["jqmix"].values()) / max(result["jaxmarl"].values())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", nargs="+", choices=list(SMAX_MAPS), default=["3m", "2s3z", "5m_vs_6m", "27m_vs_30m"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here, too")
    args = parser.parse_args()
    rows = []
    for name in args.maps:
        row = compare(name, args.batches, args.steps, args.repeats)
        rows.append(row)
        best = {who: max(row[who].items(), key=lambda x: x[1]) for who in ("jqmix", "jaxmarl")}
        text = "   ".join(f"{who} {speed:>11,.0f} steps/s (batch {size})" for who, (size, speed) in best.items())
        print(f"{name:14} {text}   ratio {row['ratio_of_best']:.1f}", flush=True)
    write(args.json, {"maps": rows})


if __name__ == "__main__":
    main()
