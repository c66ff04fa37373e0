"""Prioritised replay: which windows to learn from, and how much each of them counts (Schaul et al., 1511.05952).

Every window in replay has a priority p, 0 where none is stored yet. Windows are drawn with probability P = pᵅ / Σ pᵅ,
and their losses weighted by (N P)⁻ᵝ, N being how many are stored: at β = 1 the gradient is that of uniform sampling, in
expectation and up to the batch's scale.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jqmix.buffers.base import Stored
from jqmix.buffers.windows import as_ring, write
from jqmix.config import ReplayConfig
from jqmix.types import Packed

SMALLEST = 1e-6  # a window that surprises nowhere can still be drawn


class Prioritised:
    """Keeps a priority of every window; its exponents are ``replay.priority_alpha`` and ``replay.priority_beta``."""

    ahead = False

    def init(self, windows: Packed, replay: ReplayConfig) -> Stored:
        return Stored(as_ring(windows), jnp.zeros((replay.capacity,)))

    def add(
        self, stored: Stored, windows: Packed, position: Int[Array, ""], first: Int[Array, ""] | None = None
    ) -> Stored:
        priority = add(stored.priority, position, windows.reward.shape[1])
        return Stored(write(stored.windows, windows, position, first), priority)

    def sample(
        self, key: Array, stored: Stored, held: Int[Array, ""], replay: ReplayConfig
    ) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        alpha, beta = jnp.asarray(replay.priority_alpha), jnp.asarray(replay.priority_beta)
        index = draw_by_priority(key, stored.priority, alpha, replay.batch)
        return index, weights(stored.priority, index, alpha, beta)

    def update(
        self, priority: Float[Array, " capacity"], index: Int[Array, " B"], surprise: Float[Array, " B"]
    ) -> Float[Array, " capacity"]:
        # A window that was drawn twice gets the same number twice: which of two is written last, a GPU leaves open.
        last = jnp.max(jnp.where(index[:, None] == index, jnp.arange(len(index)), 0), axis=1)
        return priority.at[index].set(surprise[last] + SMALLEST)


def add(priority: Float[Array, " capacity"], position: Int[Array, ""], windows: int) -> Float[Array, " capacity"]:
    """For ``windows`` written at ``position``: the largest priority held (1 at the very start), so that each is soon
    learned from."""
    largest = jnp.max(priority)
    new = jnp.full((windows,), jnp.where(largest > 0, largest, 1.0))
    return jax.lax.dynamic_update_slice_in_dim(priority, new, position, axis=0)


def draw_by_priority(
    key: Array, priority: Float[Array, " capacity"], alpha: Float[Array, ""], batch: int
) -> Int[Array, " B"]:
    """``batch`` windows: one from each of as many equal parts of the total of pᵅ (Schaul et al., appendix B.2.1).

    With replacement: window i comes B·P_i times in expectation, which the weights rely on. Dividing the total makes
    repetitions rare where no P is large.
    """
    held = priority > 0
    total = jnp.cumsum(jnp.where(held, priority**alpha, 0.0))
    u = (jnp.arange(batch) + jax.random.uniform(key, (batch,))) / batch
    index = jnp.searchsorted(total, u * total[-1], side="right")
    return jnp.minimum(index, jnp.sum(held) - 1).astype(jnp.int32)  # rounding may lead past the last window


def weights(
    priority: Float[Array, " capacity"], index: Int[Array, " B"], alpha: Float[Array, ""], beta: Float[Array, ""]
) -> Float[Array, " B"]:
    """(N P)⁻ᵝ over the largest of the batch, where N and Σ pᵅ cancel."""
    drawn = priority[index]
    return (jnp.min(drawn) / drawn) ** (alpha * beta)
