"""Numbers that go wrong: what is looked at, in the order in which one of them brings about the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jqmix.learning.count import Count
from jqmix.learning.learner import Params, Stats
from jqmix.types import Packed, Seen

FAULTS = (
    "",
    "an observation of the environment is not finite",
    "a state of the environment is not finite",
    "a reward of the environment is not finite",
    "the environment leaves an agent no available action",
    "the loss is not finite",
    "the gradient is not finite",
    "a parameter is not finite",
)
_OF_WINDOWS = FAULTS[1:5]
_OF_UPDATES = FAULTS[5:]


class Fault(NamedTuple):
    """What was first found, as its number in ``FAULTS`` (0: nothing), and after how many environment steps."""

    code: Int[Array, "*P"]
    env_steps: Count


def found(fault: Fault, code: Int[Array, ""], env_steps: Count) -> Fault:
    """The first fault stays."""
    new = (fault.code == 0) & (code > 0)
    return jax.tree.map(lambda x, y: jnp.where(new, x, y), Fault(code, env_steps), fault)


def in_window(window: Packed, seen: Seen) -> Int[Array, ""]:
    """What is wrong with a window as it was collected; ``seen`` is what its slots show."""
    plain = isinstance(window.seen, Seen)
    kept = window.seen.obs if plain else window.seen
    # Masks that follow from something packed are not computed once more for this: SMAX's would cost a few per cent.
    some = jnp.any(seen.avail, axis=-1) | window.last[..., None] if plain else jnp.bool_(True)  # at its end, none
    broken = (~_finite(kept), ~_finite(seen.state), ~_finite((window.reward, window.discount)), ~jnp.all(some))
    return _first(broken, _OF_WINDOWS)


def in_update(params: Params, stats: Stats) -> Int[Array, ""]:
    """What is wrong with an update that led to ``params``."""
    vector, _ = ravel_pytree(params)  # one operation for all of them
    broken = ~jnp.isfinite(stats["loss"]), ~jnp.isfinite(stats["grad_norm"]), ~_finite(vector)
    return _first(broken, _OF_UPDATES)


def outside(reward: Float[Array, "*batch"], bounds: tuple[float, float]) -> Bool[Array, "*batch"]:
    """Where a reward is not in the range that the environment declares, but for rounding."""
    low, high = bounds
    slack = 1e-4 * max([1.0, *(abs(x) for x in bounds if abs(x) < float("inf"))])
    return (reward < low - slack) | (reward > high + slack)


def _finite(tree: Any) -> Bool[Array, ""]:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))


def _first(broken: tuple[Bool[Array, ""], ...], names: tuple[str, ...]) -> Int[Array, ""]:
    """The number of the first that holds; 0 where none does."""
    codes = [jnp.where(b, FAULTS.index(name), len(FAULTS)) for b, name in zip(broken, names, strict=True)]
    first = jnp.min(jnp.stack(codes))
    return jnp.where(first < len(FAULTS), first, 0).astype(jnp.int32)
