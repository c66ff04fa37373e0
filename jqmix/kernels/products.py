"""Products and sums that XLA compiles to slow code for a CPU, written in a faster way.

Beside each function stands its plain form, ``plain_…``, with the same signature.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
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


def _unchanged(w: Array) -> Array:
    return w


def plain_weighted_sum(
    q: Float[Array, "*batch N"],
    w: Float[Array, "*batch NE"],
    b: Float[Array, "*batch E"],
    transform: Callable[[Array], Array] = _unchanged,
) -> Float[Array, "*batch E"]:
    return jnp.einsum("...n,...ne->...e", q, transform(w).reshape(*q.shape, b.shape[-1])) + b


def weighted_sum(
    q: Float[Array, "*batch N"],
    w: Float[Array, "*batch NE"],
    b: Float[Array, "*batch E"],
    transform: Callable[[Array], Array] = _unchanged,
) -> Float[Array, "*batch E"]:
    """b + Σ_i q_i · transform(w_i), where w holds the N agents' weights w_i, E each, side by side.

    Added up agent by agent. As a sum over an axis, XLA's CPU compiler makes one slow kernel of it and of what gives b.
    The weights are split, not sliced: the gradient of a split is a concatenation, that of N slices is a sum of N arrays
    padded with zeros.
    """
    if plain("weighted_sum"):
        return plain_weighted_sum(q, w, b, transform)
    n = q.shape[-1]
    agents = zip(jnp.split(q, n, axis=-1), jnp.split(w, n, axis=-1), strict=True)
    return sum((q_i * transform(w_i) for q_i, w_i in agents), start=b)


def plain_inner_product(x: Float[Array, "*batch E"], y: Float[Array, "*batch E"]) -> Float[Array, "*batch"]:
    return jnp.sum(x * y, axis=-1)


def inner_product(x: Float[Array, "*batch E"], y: Float[Array, "*batch E"]) -> Float[Array, "*batch"]:
    """Σ_e x_e y_e, summed by a product with ones.

    XLA's CPU compiler would put a reduction into the product that gives x or y, and slow that product down.
    """
    if plain("inner_product"):
        return plain_inner_product(x, y)
    return jnp.matmul(x * y, jnp.ones((x.shape[-1],)), precision="highest")


def plain_relu(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    return jax.nn.relu(x)


def relu(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """max(x, 0), computed with all leading axes as one.

    That is how the layer that follows takes it. In another form, XLA's CPU compiler computes it once for each.
    """
    if plain("relu"):
        return plain_relu(x)
    return jax.nn.relu(x.reshape(math.prod(x.shape[:-1]), x.shape[-1])).reshape(x.shape)
