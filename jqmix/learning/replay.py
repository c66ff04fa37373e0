"""A ring of windows, time-major like everything else: add E windows, sample B different ones.

Where the next windows go and how many are held are shared counters, never batched over members, so that an add is one
contiguous update. Actions are stored in the smallest integer that holds them, and what the agents saw as small as the
environment can make it (``pack``); its floating-point numbers, where that is asked for, in half the bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jqmix.envs.base import BatchedDecPOMDP
from jqmix.types import Packed, Window

Replay = Packed  # with B = capacity


def action_dtype(n_actions: int) -> jnp.dtype:
    return jnp.dtype(jnp.int8 if n_actions <= 127 else jnp.int16)


def _with_floats_in(x: Any, dtype: str) -> jnp.dtype:
    return jnp.dtype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype


def init(env: BatchedDecPOMDP, slots: int, capacity: int, dtype: str = "float32") -> Replay:
    """An empty replay of ``capacity`` windows of ``slots`` = T + 1 slots, with the seen floats in ``dtype``."""
    n, a = env.spec.n_agents, env.spec.n_actions
    packed = jax.eval_shape(lambda key: env.pack(*env.reset(key)), jax.random.key(0))
    return Packed(
        seen=jax.tree.map(lambda x: jnp.zeros((slots, capacity, *x.shape[1:]), _with_floats_in(x, dtype)), packed),
        action=jnp.zeros((slots, capacity, n), action_dtype(a)),
        reward=jnp.zeros((slots, capacity)),
        discount=jnp.zeros((slots, capacity)),
        first=jnp.zeros((slots, capacity), bool),
        last=jnp.zeros((slots, capacity), bool),
    )


def add(replay: Replay, window: Packed, position: Int[Array, ""]) -> Replay:
    """Writes E windows at ``position``, a multiple of E as the capacity is."""

    def write(ring: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, new.astype(ring.dtype), position, axis=1)

    return jax.tree.map(write, replay, window)


def draw(key: Array, replay: Replay, held: Int[Array, ""], batch: int) -> Int[Array, " B"]:
    """Where ``batch`` different windows are, uniformly drawn from the first ``held`` (≥ ``batch``)."""
    capacity = replay.reward.shape[1]
    score = jnp.where(jnp.arange(capacity) < held, jax.random.uniform(key, (capacity,)), -1.0)
    return jax.lax.top_k(score, batch)[1]


def take(replay: Replay, index: Int[Array, " B"]) -> Packed:
    return jax.tree.map(lambda ring: jnp.take(ring, index, axis=1), replay)


def sample(key: Array, replay: Replay, held: Int[Array, ""], batch: int) -> Packed:
    """``batch`` different windows, uniformly drawn from the first ``held``."""
    return take(replay, draw(key, replay, held, batch))


def unpack(env: BatchedDecPOMDP, packed: Packed) -> Window:
    """The windows as they were collected, but for what their floats lost to a smaller ``dtype``."""
    seen = jax.tree.map(lambda x: x.astype(_with_floats_in(x, "float32")), packed.seen)
    fields = packed._asdict() | env.unpack(seen)._asdict()
    del fields["seen"]
    return Window(**fields | {"action": packed.action.astype(jnp.int32)})
