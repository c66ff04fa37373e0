"""What the training program asks of an algorithm. One is a file of its own beside this: ``dqn``, ``pqn``."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jqmix.buffers.windows import unpack
from jqmix.config import Config
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.kernels.platform import platform
from jqmix.kernels.vectors import restorer
from jqmix.learning import health
from jqmix.learning.health import Fault
from jqmix.learning.learner import Learner, Stats, Updated
from jqmix.learning.split import Split
from jqmix.learning.state import Member
from jqmix.networks import normalise
from jqmix.types import Packed, Window


class Room(NamedTuple):
    """An algorithm by name: how it is made, and what follows from its configuration alone."""

    # of (cfg, environments, slots of a stored window, how batches are divided among devices)
    make: "Callable[[Config, BatchedDecPOMDP, int, Split], Algorithm]"
    batch: Callable[[Config], int]  # windows per update
    updates: Callable[[Config], int]  # per iteration
    divides: Callable[[Config, int], bool]  # whether so many devices can share rollouts, buffer and batches equally


class LearningResult(NamedTuple):
    """What an iteration's learning makes: what it changes of a member, the shared counters, and what it tells."""

    learner: Any
    buffer: Any
    fault: Fault
    counters: Any
    stats: Stats  # means over the updates
    updates: Int[Array, ""]  # how many were made; the same for all members


@runtime_checkable
class Algorithm(Protocol):
    """Pure functions for one member. ``counters`` are shared by all members, and so never batched.

    Where there is a ``cfg``, it is the configuration with a member's own traced fields, and schedules as they are now.
    """

    @property
    def learner(self) -> Learner: ...

    def bound(self, cfg: Config) -> "Algorithm":
        """With a learner that is bound to ``cfg`` (:meth:`Learner.bound`)."""
        ...

    def init(self, key: Array) -> Any:
        """What it learns, with the parameters as ``params`` ({"agent": …, …})."""
        ...

    def init_buffer(self, start: Any) -> Any:
        """What it keeps of the windows collected, or None; ``start`` as in ``Packed``."""
        ...

    def init_counters(self) -> Any: ...

    def learn(self, member: Member, counters: Any, windows: Packed, cfg: Config, key: Array) -> LearningResult:
        """Learns from what was collected: E windows, which are in no buffer yet."""
        ...


def window_to_learn_from(env: BatchedDecPOMDP, member: Member, packed: Packed) -> Window:
    """Windows as they were collected, or with standardised rewards (``algo.reward_norm``)."""
    window = unpack(env, packed)
    if member.reward_moments is None:
        return window
    reward = normalise.standardise(member.reward_moments, window.reward[..., None])[..., 0]
    return window._replace(reward=reward)


Step = tuple[Any, Any, Fault]  # what an algorithm learns, its priorities, what is wrong


def updates(
    step: Callable[[Any, Any, Any], tuple[Updated, Any, Any]], begin: Step, xs: Any, member: Member, told: Stats
) -> tuple[Any, Stats]:
    """One update after another: ``step(learner, priority, x) -> (updated, learner, priority)``.

    From the first one on in which something is not finite, nothing changes. Returns the last ``Step``, and the mean of
    what the updates tell; ``told`` is by name what one tells.
    """
    pack, unpack = packing(begin[0], "params")  # a target stays as it is: nothing changes it within the loop, mostly

    def guarded(carry: Step, x: Any) -> tuple[Step, Float[Array, " told"]]:
        learner, priority, fault = carry
        updated, after, *new = step(unpack(learner), priority, x)
        fault = health.found(fault, health.in_update(updated.params, updated.stats), member.env_steps)
        sound = fault.code == 0
        stats = jnp.stack([jnp.where(sound, updated.stats[name], 0.0) for name in told])  # each would be a launch
        return (*select(sound, (pack(after), *new), (learner, priority)), fault), stats

    with jax.named_scope("learning"):  # for profiles
        learner, priority, fault = begin
        (learner, *others), stats = jax.lax.scan(guarded, (pack(learner), priority, fault), xs)
    return (unpack(learner), *others), dict(zip(told, jnp.mean(stats, axis=0), strict=True))


def handed_on_as_vectors() -> tuple[str, ...]:
    """What conditions return as vectors: on a GPU; a TPU would lay each matrix out anew in tiles."""
    return ("params", "target") if platform() == "gpu" else ()


class Packing(NamedTuple):
    """The way of an algorithm's state to what loops and conditions carry of it, and back."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def packing(learner: Any, *names: str) -> Packing:
    """On an accelerator those of an algorithm's ``names`` that it has are carried as one vector each, as every array
    would have its operations; on a CPU they stay as they are."""
    if platform() == "cpu":
        return Packing(lambda learner: learner, lambda learner: learner)
    restore = {name: restorer(getattr(learner, name)) for name in names if hasattr(learner, name)}

    def pack(learner: Any) -> Any:
        return learner._replace(**{name: ravel_pytree(getattr(learner, name))[0] for name in restore})

    def unpack(learner: Any) -> Any:
        return learner._replace(**{name: whole(getattr(learner, name)) for name, whole in restore.items()})

    return Packing(pack, unpack)


def select(condition: Bool[Array, ""] | Float[Array, ""], a: Any, b: Any) -> Any:
    """Leaf by leaf, ``a`` where the condition holds, else ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
