"""Linear layers, and the product that they and the encoder are made of."""

import math
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jqmix.networks.init import Init, torch_default


@jax.custom_vjp
def _rows_by(x: Float[Array, "R I"], w: Float[Array, "I O"]) -> Float[Array, "R O"]:
    return x @ w


def _rows_by_fwd(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _rows_by_bwd(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, w = saved
    return d @ w.T, gradient_of_weights(x, d)


_rows_by.defvjp(_rows_by_fwd, _rows_by_bwd)


def gradient_of_weights(x: Float[Array, "R I"], d: Float[Array, "R O"]) -> Float[Array, "I O"]:
    """xᵀ d, or the same as (dᵀ x)ᵀ. The barrier keeps XLA from seeing that they are the same."""
    if d_first(x.shape[1], d.shape[1]):
        return jax.lax.optimization_barrier(d.T @ x).T
    return x.T @ d


def d_first(inputs: int, outputs: int) -> bool:
    """Which of the two is faster. A CPU's product of long columns is slow where the first one's rows are a multiple of
    a few cache lines long, up to several times (``benchmarks/products.py``); of two such, the narrower is put first.
    """
    if jax.default_backend() != "cpu":
        return False
    if inputs % 64 and outputs % 64:
        return False
    return bool(outputs % 64) or (inputs % 64 == 0 and outputs < inputs)


def product(x: Float[Array, "*batch I"], w: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    """x w, with all leading axes as one: the weights' gradient is then a product of matrices as they are, where XLA's
    CPU compiler would transpose an array of more axes first."""
    *batch, n = x.shape
    return _rows_by(x.reshape(math.prod(batch), n), w).reshape(*batch, w.shape[-1])


def _as_dot_general(x: Array, w: Array, dimensions: Any, precision: Any = None) -> Array:
    """:func:`product`, as a layer of Flax asks for it."""
    del dimensions, precision
    return product(x, w)


def linear(n_in: int, n_out: int, name: str | None = None, init: Init | None = None) -> nn.Dense:
    """A dense layer, with PyTorch's initialisation unless told."""
    kernel, bias = init or torch_default(n_in)
    return nn.Dense(n_out, kernel_init=kernel, bias_init=bias, dot_general=_as_dot_general, name=name)
