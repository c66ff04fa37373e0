"""PyTorch's initialisation, which the published results use, and the orthogonal one."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jaxtyping import Array


def uniform_fan(fan: int) -> Initializer:
    """U(±1/√fan): PyTorch's default for a layer's weight and bias (fan = inputs) and a GRU's (fan = width)."""
    bound = 1.0 / math.sqrt(fan) if fan else 0.0

    def init(key: Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype or jnp.float32, -bound, bound)

    return init


class Init(NamedTuple):
    """How a layer's weight and bias begin."""

    kernel: Initializer
    bias: Initializer


def torch_default(fan: int) -> Init:
    """PyTorch's, for a layer with ``fan`` inputs."""
    return Init(uniform_fan(fan), uniform_fan(fan))


def orthogonal(gain: float) -> Init:
    """Orthonormal rows or columns (whichever are fewer) times ``gain``, no bias: Saxe et al. (1312.6120).

    A QR factorisation: never vmap it (ARCHITECTURE, decisions).
    """
    return Init(initializers.orthogonal(gain), initializers.zeros)
