"""Prioritised replay: which windows to learn from, and how much each of them counts (Schaul et al., 1511.05952).

Every window in replay has a priority p, 0 where none is stored yet. Windows are drawn with probability P = pᵅ / Σ pᵅ,
and their losses weighted by (N P)⁻ᵝ, N being how many are stored: at β = 1 the gradient is that of uniform sampling, in
expectation and up to the batch's scale.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# R2D2's share of the largest error in a sequence's priority: a mean alone would drown what is rare in a long window.
LARGEST = 0.9
SMALLEST = 1e-6  # a window that surprises nowhere can still be drawn


def init(capacity: int) -> Float[Array, " capacity"]:
    return jnp.zeros((capacity,))


def add(priority: Float[Array, " capacity"], position: Int[Array, ""], windows: int) -> Float[Array, " capacity"]:
    """For ``windows`` written at ``position``: the largest priority held (1 at the very start), so that each is soon
    learned from."""
    largest = jnp.max(priority)
    new = jnp.full((windows,), jnp.where(largest > 0, largest, 1.0))
    return jax.lax.dynamic_update_slice_in_dim(priority, new, position, axis=0)


def draw(key: Array, priority: Float[Array, " capacity"], alpha: Float[Array, ""], batch: int) -> Int[Array, " B"]:
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


def of_errors(error: Float[Array, "T1 B *agents"], mask: Bool[Array, "T1 B"]) -> Float[Array, " B"]:
    """η max |δ| + (1 − η) mean |δ| over a window's transitions, η = 0.9 (R2D2, Kapturowski et al. 2019, §2.3).

    Where agents have errors of their own (IQL), |δ| is their mean.
    """
    size = jnp.where(mask, jnp.mean(jnp.abs(error).reshape(*mask.shape, -1), axis=-1), 0.0)
    mean = jnp.sum(size, axis=0) / jnp.maximum(jnp.sum(mask, axis=0), 1)
    return LARGEST * jnp.max(size, axis=0) + (1.0 - LARGEST) * mean + SMALLEST
