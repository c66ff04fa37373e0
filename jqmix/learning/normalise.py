"""Running mean and variance of the global state, for what the mixer reads (SMAX's state is not normalised)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    rows: Float[Array, ""]
    mean: Float[Array, " S"]
    m2: Float[Array, " S"]  # sum of squared deviations


def init(size: int) -> Moments:
    return Moments(jnp.zeros(()), jnp.zeros((size,)), jnp.zeros((size,)))


def update(moments: Moments, x: Float[Array, "*batch S"]) -> Moments:
    """Adds all rows of ``x`` (Chan et al.'s parallel update)."""
    flat = x.reshape(-1, x.shape[-1])
    n = jnp.float32(flat.shape[0])
    mean = jnp.mean(flat, axis=0)
    delta = mean - moments.mean
    total = moments.rows + n
    m2 = jnp.sum(jnp.square(flat - mean[None]), axis=0)
    return Moments(
        total,
        moments.mean + delta * (n / total),
        moments.m2 + m2 + jnp.square(delta) * (moments.rows * n / total),
    )


def apply(moments: Moments, x: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """(x − mean) / std, clipped to ±5; a feature that never varied gives 0."""
    variance = moments.m2 / jnp.maximum(moments.rows, 1.0)
    scale = 1.0 / jnp.sqrt(variance + 1e-6)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return jnp.clip((x - moments.mean.reshape(shape)) * scale.reshape(shape), -5.0, 5.0)
