"""A population: the training program over all members, initialised and compiled once."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqmix.config import Config
from jqmix.learning import split
from jqmix.learning.hyper import Hyper, hyper_of
from jqmix.learning.split import Split
from jqmix.learning.state import Member, Plan, Shared
from jqmix.learning.train import make_program, window_length
from jqmix.runs.devices import AXIS, EACH, SAME, compiler_options, make_mesh, members_take_turns, over_devices
from jqmix.types import EnvSpec

Chunk = Callable[[Member, Shared, Plan], tuple[Member, Shared, Any]]


class Population(NamedTuple):
    """A compiled chunk and the state it starts from."""

    cfg: Config
    spec: EnvSpec
    init: Any  # starts [P] -> (members, shared)
    compiled: Any  # (members, shared, plan) -> (members, shared, metrics [P])
    starts: "Starts"
    members: Member  # as they begin
    shared: Shared
    plan: Plan
    trace_s: float
    compile_s: float

    def step(self, members: Member, shared: Shared, plan: Plan | None = None) -> tuple[Member, Shared, Any]:
        """Runs what the plan says, or K iterations and an evaluation. Donates the members that it is given."""
        return self.compiled(members, shared, on_host(self.plan if plan is None else plan))

    def forget_start(self) -> None:
        """Gives back the memory of members that will not be trained from their beginning."""
        for x in jax.tree.leaves(self.members):
            if not x.is_deleted():
                x.delete()

    def begin(self, starts: "Starts") -> tuple[Member, Shared]:
        """Members at their beginning; those that the program was made with are there already, the first time."""
        made_with = not self.members.seed.is_deleted() and all(
            np.array_equal(x, y) for x, y in zip(jax.tree.leaves(starts), jax.tree.leaves(self.starts), strict=True)
        )
        return (self.members, self.shared) if made_with else self.init(starts)

    def empty_replay(self) -> dict[str, Any]:
        """The fields of members that hold replay, as they begin, on the host."""
        replay, priority = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), (self.members.replay, self.members.priority)
        )
        return {"replay": replay, "priority": priority}

    def place(self, members: Any, shared: Any) -> tuple[Member, Shared]:
        """States from the host (NumPy arrays) on the devices, as this program has them; they may be donated."""
        like = (self.members, self.shared)
        return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding, may_alias=False), (members, shared), like)


def on_host(plan: Plan) -> Plan:
    """The plan's numbers as a compiled program takes them."""
    return Plan(*(np.asarray(x, np.bool_ if isinstance(x, bool) else np.int32) for x in plan))


class Starts(NamedTuple):
    """What members begin from."""

    seed: Int[Array, " P"]
    hyper: Hyper  # leaves [P]

    def slice(self, first: int, count: int) -> "Starts":
        return jax.tree.map(lambda x: x[first : first + count], self)


def starts_of(*cfgs: Config) -> Starts:
    """The members of configurations that differ in seeds and traced hyperparameters alone, one after another."""
    counts = [cfg.seeds for cfg in cfgs]
    seed = np.concatenate([np.arange(cfg.seeds) + cfg.seed for cfg in cfgs]).astype(np.int32)
    hyper = jax.tree.map(lambda *x: np.repeat(np.stack(x), counts), *(hyper_of(cfg) for cfg in cfgs))
    return Starts(jnp.asarray(seed), jax.tree.map(jnp.asarray, hyper))


def abstract_member(cfg: Config) -> tuple[EnvSpec, Member]:
    """The shapes of a member's state, without making it; builds the environment, so it also checks sizes."""
    program = make_program(cfg)
    member, _ = jax.eval_shape(program.init, jax.ShapeDtypeStruct((), jnp.int32))
    return program.env.spec, member


def compile_population(cfg: Config, group: int | None = None, starts: Starts | None = None) -> Population:
    """Initialises the first ``group`` members (all of them unless told) and compiles their chunk.

    Members are those of ``cfg``, or those that ``starts`` says, with hyperparameters of their own. They are shared out
    over this host's devices, and so are their batches where CPU cores are left. One program serves every group of the
    same size.
    """
    starts = starts_of(cfg) if starts is None else starts
    size = group or len(starts.seed)
    mesh = make_mesh(size, cfg.replay.batch)
    program = make_program(cfg, Split(mesh.shape[split.AXIS]))

    def init_all(starts: Starts) -> tuple[Member, Shared]:
        # One after another: under vmap, an initialiser with a QR factorisation (orthogonal) can hang on a CPU with
        # few cores.
        members, shared = jax.lax.map(lambda start: program.init(*start), starts)
        return members, jax.tree.map(lambda x: x[0], shared)

    init = jax.jit(over_devices(init_all, mesh, (EACH,), (EACH, SAME)))
    starts = starts.slice(0, size)
    members, shared = init(starts)
    begin = time.perf_counter()
    chunk = _of_all(program.chunk, size // mesh.shape[AXIS])
    chunk = over_devices(chunk, mesh, (EACH, SAME, SAME), (EACH, SAME, EACH))
    lowered = jax.jit(chunk, donate_argnums=0).lower(members, shared, on_host(program.plan))
    traced = time.perf_counter()
    step = lowered.compile(compiler_options())
    compiled = time.perf_counter()
    times = traced - begin, compiled - traced
    return Population(cfg, program.env.spec, init, step, starts, members, shared, program.plan, *times)


def _of_all(chunk: Chunk, size: int) -> Chunk:
    """A device's members' chunk from that of one; all have a leading axis of ``size`` but for what they share."""
    if size > 1 and not members_take_turns():
        return jax.vmap(chunk, in_axes=(0, None, None), out_axes=(0, None, 0))

    def alone(members: Member, shared: Shared, plan: Plan) -> tuple[Member, Shared, Any]:
        """Without a loop, which would copy the replay."""
        member, shared, metrics = chunk(jax.tree.map(lambda x: x[0], members), shared, plan)
        member, metrics = jax.tree.map(lambda x: x[None], (member, metrics))
        return member, shared, metrics

    def in_turn(members: Member, shared: Shared, plan: Plan) -> tuple[Member, Shared, Any]:
        def one(members: Member, i: Array) -> tuple[Member, tuple[Shared, Any]]:
            member = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), members)
            member, after, metrics = chunk(member, shared, plan)
            put = lambda every, new: jax.lax.dynamic_update_index_in_dim(every, new, i, 0)  # noqa: E731
            return jax.tree.map(put, members, member), (after, metrics)

        members, (after, metrics) = jax.lax.scan(one, members, jnp.arange(size))
        return members, jax.tree.map(lambda x: x[0], after), metrics

    return alone if size == 1 else in_turn


def parameter_count(member: Member) -> int:
    """Trained parameters, agent and mixer together."""
    return sum(int(x.size) for x in jax.tree.leaves(member.learner.params))


def replay_ratio(cfg: Config, spec: EnvSpec) -> dict[str, float]:
    """How much is learned from what is collected: per environment step, and windows drawn per window collected."""
    steps = cfg.rollouts * window_length(cfg, spec)
    return {
        "updates_per_1000_steps": 1000 * cfg.updates / steps,
        "windows_drawn_per_window": cfg.updates * cfg.replay.batch / cfg.rollouts,
    }
