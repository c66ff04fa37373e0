"""A ring of windows, time-major like everything else: add E windows, sample B different ones.

How many were added is a shared counter, so the position is never batched over members and an add is one
contiguous update. Actions are stored in the smallest integer that holds them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jqmix.types import EnvSpec, Window

Replay = Window  # with B = capacity


def action_dtype(n_actions: int) -> jnp.dtype:
    return jnp.dtype(jnp.int8 if n_actions <= 127 else jnp.int16)


def init(spec: EnvSpec, slots: int, capacity: int) -> Replay:
    """An empty replay of ``capacity`` windows of ``slots`` = T + 1 slots."""
    n, a = spec.n_agents, spec.n_actions
    return Window(
        obs=jnp.zeros((slots, capacity, n, spec.obs_size)),
        state=jnp.zeros((slots, capacity, spec.state_size)),
        avail=jnp.zeros((slots, capacity, n, a), bool),
        action=jnp.zeros((slots, capacity, n), action_dtype(a)),
        reward=jnp.zeros((slots, capacity)),
        discount=jnp.zeros((slots, capacity)),
        first=jnp.zeros((slots, capacity), bool),
        last=jnp.zeros((slots, capacity), bool),
    )


def add(replay: Replay, window: Window, added: Int[Array, ""]) -> Replay:
    """Writes E windows after the ``added`` before them, over the oldest. The capacity is a multiple of E."""
    capacity = replay.reward.shape[1]
    position = added % capacity

    def write(ring: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, new.astype(ring.dtype), position, axis=1)

    return jax.tree.map(write, replay, window)


def sample(key: Array, replay: Replay, added: Int[Array, ""], batch: int) -> Window:
    """``batch`` different windows, uniformly. At least that many must have been added."""
    capacity = replay.reward.shape[1]
    score = jnp.where(jnp.arange(capacity) < added, jax.random.uniform(key, (capacity,)), -1.0)
    _, index = jax.lax.top_k(score, batch)
    drawn = jax.tree.map(lambda ring: jnp.take(ring, index, axis=1), replay)
    return drawn._replace(action=drawn.action.astype(jnp.int32))
