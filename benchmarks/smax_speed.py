"""SMAX alone under random play: our whole-array form against JaxMARL's, taking turns; best batch of each counts.

python benchmarks/smax_speed.py [--maps 3m 2s3z 5m_vs_6m 27m_vs_30m] [--batches 16 64 256] [--json OUT]

Both go through the same contract, so the arguments differ in nothing but the environment. Resets are left out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jqmix.envs.registry import SMAX_MAPS, make_env
from jqmix.learning.exploration import random_available


def program(name: str, size: int, steps: int) -> tuple[Callable[[], float], float]:
    """A call that returns environment steps per second, and the seconds that compiling took."""
    env = make_env(name, batch=size)

    def play(key: jax.Array) -> Any:
        key_reset, key_act, key_env = jax.random.split(key, 3)
        u = jax.random.uniform(key_act, (steps, size, env.spec.n_agents))

        def step(carry: Any, xs: Any) -> Any:
            state, seen = carry
            state, now = env.step(xs[1], state, random_available(xs[0], seen.avail))
            # Everything that a learner would read is read, so that nothing is left out by the compiler.
            return (state, now), (jnp.sum(now.reward), jnp.sum(now.obs), jnp.sum(now.state))

        return jax.lax.scan(step, env.reset(key_reset), (u, jax.random.split(key_env, steps)))[1]

    begin = time.perf_counter()
    compiled = jax.jit(play).lower(jax.random.key(0)).compile()
    compile_s = time.perf_counter() - begin
    jax.block_until_ready(compiled(jax.random.key(0)))

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(jax.random.key(1)))
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
    results = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "maps": []}
    for name in args.maps:
        row = compare(name, args.batches, args.steps, args.repeats)
        results["maps"].append(row)
        best = {who: max(row[who].items(), key=lambda x: x[1]) for who in ("jqmix", "jaxmarl")}
        text = "   ".join(f"{who} {speed:>11,.0f} steps/s (batch {size})" for who, (size, speed) in best.items())
        print(f"{name:14} {text}   ratio {row['ratio_of_best']:.1f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
