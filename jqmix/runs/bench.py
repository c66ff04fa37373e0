"""Throughput: environment steps per second of the environment alone and of whole training, compile time apart."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jqmix.config import Config
from jqmix.learning.exploration import random_available
from jqmix.learning.train import build_env
from jqmix.runs.population import compile_population, memory_plan, seeds_of


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one that warms up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def bench_env(cfg: Config, steps: int = 100, repeats: int = 5) -> dict[str, float]:
    """The environment alone, under random available actions, members × rollouts of it; resets left out."""
    env = build_env(cfg, cfg.rollouts)

    def run(seed: jax.Array) -> jax.Array:
        key_reset, key_act, key_env = jax.random.split(jax.random.key(seed), 3)
        u = jax.random.uniform(key_act, (steps, env.size, env.spec.n_agents))

        def step(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
            state, timestep = env.step(xs[1], carry[0], random_available(xs[0], carry[1].avail))
            return (state, timestep), jnp.sum(timestep.reward)

        return jax.lax.scan(step, env.reset(key_reset), (u, jax.random.split(key_env, steps)))[1]

    seeds = seeds_of(cfg)
    begin = time.perf_counter()
    compiled = jax.jit(jax.vmap(run)).lower(seeds).compile()
    compile_s = time.perf_counter() - begin
    seconds = _timed(lambda: compiled(seeds), repeats)
    return {"steps_per_s": cfg.seeds * env.size * steps / seconds, "trace_and_compile_s": compile_s}


def bench_train(cfg: Config, repeats: int = 3) -> dict[str, float]:
    """Whole chunks, with learning: chunks are run until replay holds a batch before any is timed."""
    population = compile_population(cfg)
    members, shared = population.members, population.shared
    plan = memory_plan(members)
    while int(shared.updates) == 0:
        members, shared, _ = population.step(members, shared)
    speeds = []
    for _ in range(repeats):
        before, begin = int(jnp.sum(members.env_steps)), time.perf_counter()
        members, shared, _ = jax.block_until_ready(population.step(members, shared))
        speeds.append((int(jnp.sum(members.env_steps)) - before) / (time.perf_counter() - begin))
    memory = population.step.memory_analysis()
    return {
        "steps_per_s": sorted(speeds)[len(speeds) // 2],
        "trace_s": population.trace_s,
        "compile_s": population.compile_s,
        "state_bytes": plan["total"],
        "temporary_bytes": int(memory.temp_size_in_bytes),
    }


def bench(cfg: Config) -> dict[str, Any]:
    """Both, with what they were measured on. Steps are joint environment steps, summed over members."""
    device = jax.devices()[0]
    return {
        "environment": cfg.env.name,
        "members": cfg.seeds,
        "rollouts": cfg.rollouts,
        "device": device.device_kind,
        "env_only": bench_env(cfg),
        "training": bench_train(cfg),
    }
