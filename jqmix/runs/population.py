"""A population: the training and the evaluation program over all members, initialised and compiled once."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jqmix.config import Config
from jqmix.kernels.platform import quick_to_compile
from jqmix.learning.hyper import Hyper, hyper_of
from jqmix.learning.split import Split
from jqmix.learning.state import Iterations, Member, Rounds, Shared
from jqmix.learning.train import (
    Program,
    divides,
    learning_batch,
    make_program,
    updates_per_iteration,
    whole_evaluation,
    window_length,
)
from jqmix.runs.checkpoint import with_key_type
from jqmix.runs.devices import (
    AXIS,
    EACH,
    SAME,
    compiler_options,
    cpu_cores,
    layout,
    make_mesh,
    members_take_turns,
    over_devices,
    split_over,
)
from jqmix.runs.programs import MemberPrograms, on_host, without_rollouts
from jqmix.types import EnvSpec

# A function of one member: (member, shared, what is to be done) -> (member, shared, what there is to tell).
Call = Callable[[Member, Shared, Any], tuple[Member, Shared, Any]]


class Population(NamedTuple):
    """The compiled programs and the state they start from. The evaluation may still be compiling, in a thread."""

    cfg: Config
    spec: EnvSpec
    init: Any  # starts [P] -> (members, shared)
    training: Any  # (members, shared, iterations) -> (members, shared, metrics [P])
    evaluation: "Future[Any]"  # of (members, shared, rounds) -> (members, shared, metrics [P])
    starts: "Starts"
    members: Member  # as they begin
    shared: Shared
    trace_s: float
    compile_s: float

    def train(self, members: Member, shared: Shared, iterations: int) -> tuple[Member, Shared, Any]:
        """So many iterations. Donates the members that it is given."""
        return self.training(members, shared, on_host(Iterations(iterations), self.cfg))

    def evaluate(self, members: Member, shared: Shared, rounds: Rounds) -> tuple[Member, Shared, Any]:
        """What ``rounds`` say, with the members as they are. Donates the members that it is given."""
        kept = {"buffer": members.buffer, "ongoing": members.ongoing}
        read, shared, metrics = self.evaluation.result()(without_rollouts(members), shared, on_host(rounds, self.cfg))
        return read._replace(**kept), shared, metrics

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

    def empty_buffer(self) -> Any:
        """What members keep of windows, as they begin, on the host."""
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.members.buffer)

    def place(self, members: Any, shared: Any) -> tuple[Member, Shared]:
        """States from the host (NumPy arrays) on the devices, as this program has them; they may be donated."""

        def put(x: Any, like: Any) -> Any:
            return jax.device_put(with_key_type(x, like), like.sharding, may_alias=False)

        return jax.tree.map(put, (members, shared), (self.members, self.shared))


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


def compile_population(
    cfg: Config,
    group: int | None = None,
    starts: Starts | None = None,
    stage: Callable[[str], None] = lambda what: None,
    programs: MemberPrograms | None = None,
) -> Population:
    """Initialises the first ``group`` members (all of them unless told) and compiles their programs.

    Members are those of ``cfg``, or those that ``starts`` says, with hyperparameters of their own. They are shared out
    over this host's devices; where some are left, several share each member. One pair of programs serves every group of
    the same size. Training need not wait for the evaluation, which compiles in a thread. ``stage`` is told what is
    being done. ``programs``: a member's, where they are there already.
    """
    stage("initialising")
    starts = starts_of(cfg) if starts is None else starts
    size = group or len(starts.seed)
    mesh = make_mesh(size, learning_batch(cfg), divides=partial(divides, cfg))
    whole, split = programs or MemberPrograms(cfg), split_over(mesh)
    divided = _divided(whole, split)
    program = divided if split.rollouts else whole  # where batches alone are divided, nothing but training is
    placed = _placed(whole.member, mesh)

    def init_all(starts: Starts) -> tuple[Member, Shared]:
        # One after another: under vmap, an initialiser with a QR factorisation (orthogonal) can hang on a CPU with
        # few cores.
        members, shared = jax.lax.map(lambda start: program.init(*start), starts)
        return members, jax.tree.map(lambda x: x[0], shared)

    init = jax.jit(over_devices(init_all, mesh, (EACH,), (placed, SAME)), compiler_options=quick_to_compile())
    starts = starts.slice(0, size)
    members, shared = init(starts)
    options = compiler_options()
    # Training first: no update waits for the evaluation, which would take cores from it where these are few.
    pool = ThreadPoolExecutor(2 if cpu_cores() > 2 else 1, thread_name_prefix="compile")
    stage("tracing")
    begin = time.perf_counter()
    training = _lowered(divided.train, mesh, size, placed, members, shared, on_host(Iterations(1), cfg))
    traced = time.perf_counter()
    stage("compiling")
    compiling = pool.submit(_timed_compile, training, options)
    read = without_rollouts(members)
    evaluation = _lowered(program.evaluate, mesh, size, EACH, read, shared, on_host(whole_evaluation(cfg), cfg))
    evaluating = pool.submit(evaluation.compile, options)
    train, compile_s = compiling.result()
    pool.shutdown(wait=False)
    times = traced - begin, compile_s
    return Population(cfg, whole.spec, init, train, evaluating, starts, members, shared, *times)


def _divided(whole: MemberPrograms, split: Split) -> MemberPrograms | Program:
    """A member's programs, as one of the devices that share it has them."""
    return whole if split.parts == 1 else make_program(whole.cfg, split)


def _placed(member: Member, mesh: Mesh) -> Any:
    """How such members lie on the devices."""
    return layout(member) if split_over(mesh).rollouts else EACH


def _lowered(call: Call, mesh: Mesh, size: int, placed: Any, *arguments: Any) -> Any:
    """The call for ``size`` members over a mesh, on which they lie as ``placed``, traced, and ready to be compiled."""
    each = _for_all(call, size // mesh.shape[AXIS])
    shared_out = over_devices(each, mesh, (placed, SAME, SAME), (placed, SAME, EACH))
    return jax.jit(shared_out, donate_argnums=0).lower(*arguments)


def lower_training(cfg: Config, mesh: Mesh) -> Any:
    """The training program of all members, for devices that need not be there: traced, of shapes alone."""
    whole = MemberPrograms(cfg)
    placed = _placed(whole.member, mesh)
    members, shared = jax.eval_shape(jax.vmap(lambda s: whole.init(*s), out_axes=(0, None)), starts_of(cfg))
    train = _divided(whole, split_over(mesh)).train
    with jax.default_device(mesh.devices.flat[0]):  # whose generation kernels are written for: nothing may run there
        return _lowered(train, mesh, cfg.seeds, placed, members, shared, on_host(Iterations(1), cfg))


def _timed_compile(lowered: Any, options: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    return lowered.compile(options), time.perf_counter() - begin


def _for_all(call: Call, size: int) -> Call:
    """A device's members' call from that of one; all have a leading axis of ``size`` but for what they share."""
    if size > 1 and not members_take_turns():
        return jax.vmap(call, in_axes=(0, None, None), out_axes=(0, None, 0))

    def alone(members: Member, shared: Shared, task: Any) -> tuple[Member, Shared, Any]:
        """Without a loop, which would copy the buffer."""
        member, shared, metrics = call(jax.tree.map(lambda x: x[0], members), shared, task)
        member, metrics = jax.tree.map(lambda x: x[None], (member, metrics))
        return member, shared, metrics

    def in_turn(members: Member, shared: Shared, task: Any) -> tuple[Member, Shared, Any]:
        def next_one(members: Member, i: Array) -> tuple[Member, tuple[Shared, Any]]:
            member = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), members)
            member, after, metrics = call(member, shared, task)
            put = lambda every, new: jax.lax.dynamic_update_index_in_dim(every, new, i, 0)  # noqa: E731
            return jax.tree.map(put, members, member), (after, metrics)

        members, (after, metrics) = jax.lax.scan(next_one, members, jnp.arange(size))
        return members, jax.tree.map(lambda x: x[0], after), metrics

    return alone if size == 1 else in_turn


def parameter_count(member: Member) -> int:
    """Trained parameters, agent and mixer together."""
    return sum(int(x.size) for x in jax.tree.leaves(member.learner.params))


def replay_ratio(cfg: Config, spec: EnvSpec) -> dict[str, float]:
    """How much is learned from what is collected: per environment step, and windows drawn per window collected."""
    steps = cfg.rollouts * window_length(cfg, spec)
    updates = updates_per_iteration(cfg)
    return {
        "updates_per_1000_steps": 1000 * updates / steps,
        "windows_drawn_per_window": updates * learning_batch(cfg) / cfg.rollouts,
    }
