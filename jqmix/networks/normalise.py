"""Running mean and variance: of the state, for what the mixer reads (SMAX's is not normalised), and of rewards.

Rewards are standardised as in EPyMARL (``standardise_rewards``): (r − mean) / std. Its statistics are of every batch
that is drawn; these are of every transition that is collected, each counted once. Taking the mean away changes what is
optimal where agents decide how long an episode lasts.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Moments(NamedTuple):
    rows: Float[Array, ""]
    mean: Float[Array, " S"]
    m2: Float[Array, " S"]  # sum of squared deviations


def init(size: int) -> Moments:
    return Moments(jnp.zeros(()), jnp.zeros((size,)), jnp.zeros((size,)))


def update(moments: Moments, x: Float[Array, "*batch S"], rows: Bool[Array, "*batch"] | None = None) -> Moments:
    """Adds the rows of ``x``, or of those the ones where ``rows`` (Chan et al.'s parallel update)."""
    flat = x.reshape(-1, x.shape[-1])
    where = None if rows is None else rows.reshape(-1, 1)
    n = jnp.float32(flat.shape[0]) if rows is None else jnp.sum(rows, dtype=jnp.float32)
    mean = jnp.mean(flat, axis=0, where=where)
    delta = mean - moments.mean
    total = moments.rows + n
    m2 = jnp.sum(jnp.square(flat - mean[None]), axis=0, where=where)
    return Moments(
        total,
        moments.mean + delta * (n / total),
        moments.m2 + m2 + jnp.square(delta) * (moments.rows * n / total),
    )


def standardise(moments: Moments, x: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """(x − mean) / std; a feature that never varied gives 0."""
    variance = moments.m2 / jnp.maximum(moments.rows, 1.0)
    scale = 1.0 / jnp.sqrt(variance + 1e-6)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (x - moments.mean.reshape(shape)) * scale.reshape(shape)


def apply(moments: Moments, x: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """Standardised, and clipped to ±5."""
    return jnp.clip(standardise(moments, x), -5.0, 5.0)
