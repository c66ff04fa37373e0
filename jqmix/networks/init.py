"""PyTorch's initialisation, which the published results use, and a linear layer that has it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array


def uniform_fan(fan: int) -> Initializer:
    """U(±1/√fan): PyTorch's default for a layer's weight and bias (fan = inputs) and a GRU's (fan = width)."""
    bound = 1.0 / math.sqrt(fan) if fan else 0.0

    def init(key: Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype or jnp.float32, -bound, bound)

    return init


def linear(n_in: int, n_out: int, name: str | None = None) -> nn.Dense:
    """A dense layer with PyTorch's initialisation."""
    return nn.Dense(n_out, kernel_init=uniform_fan(n_in), bias_init=uniform_fan(n_in), name=name)
