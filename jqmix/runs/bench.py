"""Throughput: environment steps per second of the environment alone and of whole training, compile time apart."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jqmix.config import Config, ConfigError
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.files import warn
from jqmix.learning.count import numbers
from jqmix.learning.exploration import random_available
from jqmix.learning.state import Member, Shared
from jqmix.learning.train import build_env, iterations_per_chunk, whole_evaluation
from jqmix.runs.devices import EACH, compiler_options, make_mesh, over_devices
from jqmix.runs.jax_settings import check_kernels, settled
from jqmix.runs.memory import make_plan, tree_bytes
from jqmix.runs.population import compile_population, starts_of
from jqmix.runs.programs import MemberPrograms


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one that warms up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def random_play(env: BatchedDecPOMDP, steps: int) -> Callable[[jax.Array], Any]:
    """A function of a seed that plays so many steps with random available actions, resets left out.

    It sums everything that a learner would read, so that the compiler can leave nothing out.
    """

    def play(seed: jax.Array) -> Any:
        key_reset, key_act, key_env = jax.random.split(jax.random.key(seed), 3)
        u = jax.random.uniform(key_act, (steps, env.size, env.spec.n_agents))

        def step(carry: Any, xs: Any) -> tuple[Any, Any]:
            state, timestep = env.step(xs[1], carry[0], random_available(xs[0], carry[1].avail))
            return (state, timestep), (jnp.sum(timestep.reward), jnp.sum(timestep.obs), jnp.sum(timestep.state))

        return jax.lax.scan(step, env.reset(key_reset), (u, jax.random.split(key_env, steps)))[1]

    return play


def bench_env(cfg: Config, steps: int = 100, repeats: int = 5) -> dict[str, float]:
    """The environment alone under random play, members × rollouts of it."""
    env, seeds = build_env(cfg, cfg.rollouts), starts_of(cfg).seed
    play = over_devices(jax.vmap(random_play(env, steps)), make_mesh(cfg.seeds), (EACH,), EACH)
    begin = time.perf_counter()
    compiled = jax.jit(play).lower(seeds).compile(compiler_options())
    compile_s = time.perf_counter() - begin
    seconds = _timed(lambda: compiled(seeds), repeats)
    return {"steps_per_s": cfg.seeds * env.size * steps / seconds, "trace_and_compile_s": compile_s}


def bench_train(cfg: Config, repeats: int = 3) -> dict[str, float]:
    """Whole chunks, with learning: chunks are run until replay holds a batch before any is timed."""
    population = compile_population(cfg)
    members, shared = population.members, population.shared
    state_bytes = tree_bytes(members)
    iterations = iterations_per_chunk(cfg, population.spec)

    def step(members: Member, shared: Shared) -> tuple[Member, Shared]:
        members, shared, _ = population.train(members, shared, iterations)
        return population.evaluate(members, shared, whole_evaluation(cfg))[:2]

    while int(shared.updates) == 0:
        members, shared = step(members, shared)
    speeds = []
    for _ in range(repeats):
        before, begin = sum(numbers(members.env_steps)), time.perf_counter()
        members, shared = jax.block_until_ready(step(members, shared))
        speeds.append((sum(numbers(members.env_steps)) - before) / (time.perf_counter() - begin))
    memory = population.training.memory_analysis()
    return {
        "steps_per_s": sorted(speeds)[len(speeds) // 2],
        "trace_s": population.trace_s,
        "compile_s": population.compile_s,
        "state_bytes": state_bytes,
        "temporary_bytes": int(memory.temp_size_in_bytes),
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """The most memory held so far: by the device, or by the process where the device is the CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@settled(cache=False)
def bench(cfg: Config) -> dict[str, Any]:
    """Both, with what they were measured on. Steps are joint environment steps, summed over members.

    Raises ``ConfigError`` where the members do not fit at once.
    """
    programs = MemberPrograms(cfg)
    check_kernels(cfg, build_env(cfg, 1), warn)
    plan = make_plan(replace(cfg, group=None), programs, checkpointing=False)
    if plan.group < cfg.seeds:
        raise ConfigError(f"seeds: {cfg.seeds} members do not fit at once; at most {plan.group} of them do")
    device = jax.devices()[0]
    return {
        "environment": programs.spec.name,
        "members": cfg.seeds,
        "rollouts": cfg.rollouts,
        "device": device.device_kind,
        "env_only": bench_env(cfg),
        "training": bench_train(cfg),
    }
