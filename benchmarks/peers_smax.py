"""SMAX alone under random play: our whole-array form against JaxMARL's, taking turns; the best batch of each counts.

Twice: with resets, JaxMARL through its own ``step`` (which resets by itself) and ours as a window is collected, with
resets from a pool; and without resets, both through jqmix's contract, where the environment is the only difference.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from measure import compiler_options, pool_steps, random_available, random_play, write

from jqmix.envs.registry import SMAX_MAPS, make_env

Play = Callable[[jax.Array], Any]


def ours_with_resets(map_name: str, size: int, steps: int) -> Play:
    env = make_env(f"smax_{map_name}", batch=size)
    pool_size = 1 + steps // pool_steps()

    def play(seed: jax.Array) -> Any:
        key_reset, key_act, key_env = jax.random.split(jax.random.key(seed), 3)
        pool = jax.vmap(env.reset)(jax.random.split(key_reset, pool_size))
        u = jax.random.uniform(key_act, (steps, size, env.spec.n_agents))

        def step(carry: Any, xs: Any) -> Any:
            (state, seen), used = carry
            state, now = env.step(xs[1], state, random_available(xs[0], seen.avail))
            fresh = jax.tree.map(lambda x: x[used % pool_size, jnp.arange(size)], pool)
            over = now.last

            def where(a: jax.Array, b: jax.Array) -> jax.Array:
                return jnp.where(over.reshape(over.shape + (1,) * (a.ndim - 1)), a, b)

            after = jax.tree.map(where, fresh, (state, now))
            return (after, used + over), (jnp.sum(now.reward), jnp.sum(after[1].obs), jnp.sum(after[1].state))

        begin = jax.tree.map(lambda x: x[0], pool), jnp.ones((size,), jnp.int32)
        return jax.lax.scan(step, begin, (u, jax.random.split(key_env, steps)))[1]

    return play


def jaxmarl_with_resets(map_name: str, size: int, steps: int) -> Play:
    """As its users step it."""
    from jaxmarl import make
    from jaxmarl.environments.smax import map_name_to_scenario

    env: Any = make("HeuristicEnemySMAX", scenario=map_name_to_scenario(map_name))

    def play(seed: jax.Array) -> Any:
        key_reset, key_act, key_env = jax.random.split(jax.random.key(seed), 3)
        u = jax.random.uniform(key_act, (steps, size, env.num_allies))

        def step(state: Any, xs: Any) -> Any:
            masks = jax.vmap(env.get_avail_actions)(state)
            avail = jnp.stack([masks[a] for a in env.agents], axis=1)
            chosen = random_available(xs[0], avail.astype(bool))
            actions = {a: chosen[:, i] for i, a in enumerate(env.agents)}
            obs, state, rewards, _, _ = jax.vmap(env.step)(jax.random.split(xs[1], size), state, actions)
            seen = sum(jnp.sum(x) for x in jax.tree.leaves((obs, rewards)))
            return state, seen

        state = jax.vmap(env.reset)(jax.random.split(key_reset, size))[1]
        return jax.lax.scan(step, state, (u, jax.random.split(key_env, steps)))[1]

    return play


def without_resets(name: str) -> Callable[[str, int, int], Play]:
    return lambda map_name, size, steps: random_play(make_env(name.format(map_name), batch=size), steps)


CONTENDERS: dict[str, dict[str, Callable[[str, int, int], Play]]] = {
    "with_resets": {"jqmix": ours_with_resets, "jaxmarl": jaxmarl_with_resets},
    "without_resets": {"jqmix": without_resets("smax_{}"), "jaxmarl": without_resets("jaxmarl/smax_{}")},
}


def program(play: Play, size: int, steps: int) -> tuple[Callable[[], float], float]:
    """A call that returns environment steps per second, and the seconds that compiling took."""
    begin = time.perf_counter()
    compiled = jax.jit(play).lower(jnp.int32(0)).compile(compiler_options())
    compile_s = time.perf_counter() - begin
    jax.block_until_ready(compiled(jnp.int32(0)))

    def run() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(compiled(jnp.int32(1)))
        return size * steps / (time.perf_counter() - begin)

    return run, compile_s


def compare(how: str, map_name: str, batches: list[int], steps: int, repeats: int) -> dict[str, Any]:
    """Medians for every batch size, and the ratio of the best."""
    result: dict[str, Any] = {"map": map_name, "how": how, "jqmix": {}, "jaxmarl": {}, "compile_s": {}}
    for size in batches:
        programs = {who: program(make(map_name, size, steps), size, steps) for who, make in CONTENDERS[how].items()}
        speeds: dict[str, list[float]] = {who: [] for who in programs}
        for _ in range(repeats):
            for who, (run, _) in programs.items():
                speeds[who].append(run())
        for who, (_, compile_s) in programs.items():
            result[who][str(size)] = statistics.median(speeds[who])
            result["compile_s"][f"{who}/{size}"] = compile_s
    result["ratio_of_best"] = max(result["jqmix"].values()) / max(result["jaxmarl"].values())
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--maps", nargs="+", choices=list(SMAX_MAPS), default=["3m", "2s3z", "5m_vs_6m", "27m_vs_30m"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)


def run(args: argparse.Namespace) -> None:
    rows = []
    for how, name in itertools.product(CONTENDERS, args.maps):
        row = compare(how, name, args.batches, args.steps, args.repeats)
        rows.append(row)
        best = {who: max(row[who].items(), key=lambda x: x[1]) for who in ("jqmix", "jaxmarl")}
        text = "   ".join(f"{who} {speed:>11,.0f} steps/s (batch {size})" for who, (size, speed) in best.items())
        print(f"{how:15} {name:12} {text}   ratio {row['ratio_of_best']:.1f}", flush=True)
    write(args.json, {"maps": rows})
