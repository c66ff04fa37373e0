"""A population: the training program vmapped over members, initialised, compiled once, and what it takes in memory."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jqmix.config import Config
from jqmix.learning.train import Member, Shared, iterations_per_chunk, make_program, window_length
from jqmix.runs.devices import AXIS, members_mesh
from jqmix.types import EnvSpec


class Population(NamedTuple):
    """A compiled chunk and the state it starts from. ``step`` donates the members it is given."""

    cfg: Config
    spec: EnvSpec
    step: Any  # (members, shared) -> (members, shared, metrics [P])
    members: Member
    shared: Shared
    trace_s: float
    compile_s: float

    @property
    def steps_per_chunk(self) -> int:
        """The most environment steps that one member can make in a chunk."""
        cfg = self.cfg
        return iterations_per_chunk(cfg, self.spec) * cfg.rollouts * window_length(cfg, self.spec)


def seeds_of(cfg: Config) -> Array:
    return cfg.seed + jnp.arange(cfg.seeds, dtype=jnp.int32)


def abstract_members(cfg: Config) -> tuple[EnvSpec, Member, Shared]:
    """The shapes of a population's state, without making it; builds the environment, so it also checks sizes."""
    program = make_program(cfg)
    member, shared = jax.eval_shape(program.init, jax.ShapeDtypeStruct((), jnp.int32))
    members = jax.tree.map(lambda x: jax.ShapeDtypeStruct((cfg.seeds, *x.shape), x.dtype), member)
    return program.env.spec, members, shared


def compile_population(cfg: Config) -> Population:
    """Initialises the members and compiles their chunk; members are shared out over this host's devices."""
    program = make_program(cfg)
    mesh = members_mesh(cfg.seeds)
    each, same = PartitionSpec(AXIS), PartitionSpec()

    def init(seeds: Array) -> tuple[Member, Shared]:
        # One after another: under vmap, an initialiser with a QR factorisation (orthogonal) can hang on a CPU with
        # few cores.
        members, shared = jax.lax.map(program.init, seeds)
        return members, jax.tree.map(lambda x: x[0], shared)

    def shard(f: Any, ins: Any, outs: Any) -> Any:
        return jax.shard_map(f, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)

    members, shared = jax.jit(shard(init, (each,), (each, same)))(seeds_of(cfg))
    begin = time.perf_counter()
    chunk = jax.vmap(program.chunk, in_axes=(0, None), out_axes=(0, None, 0))
    lowered = jax.jit(shard(chunk, (each, same), (each, same, each)), donate_argnums=0).lower(members, shared)
    traced = time.perf_counter()
    step = lowered.compile()
    compiled = time.perf_counter()
    return Population(cfg, program.env.spec, step, members, shared, traced - begin, compiled - traced)


def _bytes(tree: Any) -> int:
    return sum(int(x.size) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_plan(members: Member) -> dict[str, int]:
    """Bytes that the members' state takes, by part."""
    learner = members.learner
    return {
        "members": int(members.seed.shape[0]),
        "replay": _bytes(members.replay),
        "parameters": _bytes(learner.params) + _bytes(learner.target),
        "optimiser": _bytes(learner.opt_state),
        "total": _bytes(members),
    }


def parameter_count(members: Member) -> int:
    """Trained parameters of one member, agent and mixer together."""
    return sum(int(x.size) // int(x.shape[0]) for x in jax.tree.leaves(members.learner.params))


def replay_ratio(cfg: Config, spec: EnvSpec) -> dict[str, float]:
    """How much is learned from what is collected: per environment step, and windows drawn per window collected."""
    steps = cfg.rollouts * window_length(cfg, spec)
    return {
        "updates_per_1000_steps": 1000 * cfg.updates / steps,
        "windows_drawn_per_window": cfg.updates * cfg.replay.batch / cfg.rollouts,
    }
