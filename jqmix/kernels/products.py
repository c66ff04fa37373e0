"""The product of dense layers, written so that XLA compiles its gradient to fast code for a CPU; and its plain form."""

import math

import jax
from jaxtyping import Array, Float

from jqmix.kernels.platform import plain, platform


def plain_product(x: Float[Array, "*batch I"], w: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    return x @ w


def product(x: Float[Array, "*batch I"], w: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    """x w. The gradient of w is computed in the faster order of its operands (:func:`weight_gradient`).

    All leading axes are treated as one. The gradient of w is then a product of two matrices as they are; with more axes
    XLA's CPU compiler transposes one of them first.
    """
    if plain("product"):
        return plain_product(x, w)
    *batch, n = x.shape
    return _matrix_product(x.reshape(math.prod(batch), n), w).reshape(*batch, w.shape[-1])


@jax.custom_vjp
def _matrix_product(x: Float[Array, "R I"], w: Float[Array, "I O"]) -> Float[Array, "R O"]:
    return x @ w


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, w = saved
    return d @ w.T, weight_gradient(x, d)


_matrix_product.defvjp(_forward, _backward)


def weight_gradient(x: Float[Array, "R I"], d: Float[Array, "R O"]) -> Float[Array, "I O"]:
    """xᵀ d, or the same as (dᵀ x)ᵀ. XLA would see that they are the same and choose; the barrier prevents it."""
    if d_first(x.shape[1], d.shape[1]):
        return jax.lax.optimization_barrier(d.T @ x).T
    return x.T @ d


def d_first(inputs: int, outputs: int) -> bool:
    """Whether (dᵀ x)ᵀ is faster than xᵀ d.

    On a CPU, a product of long columns is up to several times slower where the rows of its first operand are a multiple
    of a few cache lines long (``benchmarks/parts.py products``). If both operands have such rows, the narrower goes
    first.
    """
    if platform() != "cpu":
        return False
    if inputs % 64 and outputs % 64:
        return False
    return bool(outputs % 64) or (inputs % 64 == 0 and outputs < inputs)
