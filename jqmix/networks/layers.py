"""Dense layers, and how layers begin: as PyTorch's do, which the published results use, or orthogonal."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from jqmix.kernels.products import product


def uniform_fan(fan: int) -> Initializer:
    """U(±1/√fan): PyTorch's default for a layer's weight and bias (fan = inputs), a GRU's or LSTM's (fan = width)."""
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


def dense_init(fan: int, is_orthogonal: bool = False, gain: float = 1.0) -> Init:
    """How a dense layer with ``fan`` inputs begins; ``gain`` is for an orthogonal one."""
    return orthogonal(gain) if is_orthogonal else torch_default(fan)


def init_gates(key: Array, gates: str, n_in: int, hidden: int) -> dict[str, dict[str, Array]]:
    """Weights [I or H, H] and biases [H] of a gated layer's input side and recurrent side, an array for each gate.

    ``gates`` are the gates' letters. All begin as PyTorch's do, U(±1/√H).
    """
    shapes = {"w_i": (n_in, hidden), "b_i": (hidden,), "w_h": (hidden, hidden), "b_h": (hidden,)}

    def draw(key: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        return dict(zip(gates, uniform_fan(hidden)(key, (len(gates), *shape)), strict=True))

    keys = jax.random.split(key, len(shapes))
    return {name: draw(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def _dot_general(x: Array, w: Array, dimensions: Any, precision: Any = None) -> Array:
    """:func:`product` in the form that a layer of Flax asks for."""
    del dimensions, precision
    return product(x, w)


def linear(n_in: int, n_out: int, name: str | None = None, init: Init | None = None) -> nn.Dense:
    """A dense layer, with PyTorch's initialisation unless told."""
    kernel, bias = init or torch_default(n_in)
    return nn.Dense(n_out, kernel_init=kernel, bias_init=bias, dot_general=_dot_general, name=name)


class MLP(nn.Module):
    """Dense layers of these widths, ReLU between them."""

    n_in: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        fans = (self.n_in, *self.widths[:-1])
        for i, (n_in, n_out) in enumerate(zip(fans, self.widths, strict=True)):
            x = linear(n_in, n_out, f"layer{i}")(x if i == 0 else nn.relu(x))
        return x
