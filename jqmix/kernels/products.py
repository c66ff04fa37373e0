"""The product of dense layers, written so that XLA compiles its gradient to fast code for a CPU; and its plain form.

And the precision of products, of these and of all others in the networks.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.kernels.platform import plain, platform

_rounding = jax.make_user_context(default_value=False)


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Within, products of float32 are computed in this ``precision``, but for those that name their own.

    ``float32``, or ``bfloat16``: of operands rounded to it, summed in float32. A CPU has no such products and rounds
    first; a TPU has them by default. ``default``: as the platform and JAX's own settings have it.
    """
    if precision == "default":
        yield
        return
    name = {"cpu": "highest", "gpu": "BF16_BF16_F32", "tpu": "bfloat16"}[platform()]
    with (
        jax.default_matmul_precision(name if precision == "bfloat16" else "highest"),
        _rounding(precision == "bfloat16" and platform() == "cpu"),
    ):
        yield


def product_of_parts(parts: Sequence[Float[Array, "*batch _"]], w: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    """x w of an x that comes in ``parts``, along its last axis.

    On a CPU a product for each part, which spares building x; on accelerators one, which spares launches.
    """
    if platform() != "cpu":
        return product(jnp.concatenate(parts, axis=-1), w)
    ends = list(itertools.accumulate(part.shape[-1] for part in parts))
    products = (product(x, w[end - x.shape[-1] : end]) for x, end in zip(parts, ends, strict=True))
    return functools.reduce(jnp.add, products)


def matmul(x: Float[Array, "*batch I"], w: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    """x w."""
    return bilinear(jnp.matmul, x, w)


def bilinear(f: Callable[[Any, Any], Array], x: Array, y: Array) -> Array:
    """f(x, y), a product of some kind, where a CPU rounds as :func:`products_in` asks: here and in its gradient."""
    if not _rounding.value:
        return f(x, y)

    @jax.custom_vjp
    def product(x: Array, y: Array) -> Array:
        return f(rounded(x), rounded(y))

    def forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
        return product(x, y), (rounded(x), rounded(y))

    def backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
        return jax.vjp(f, *saved)[1](rounded(d))

    product.defvjp(forward, backward)
    return product(x, y)


def rounded(x: Array) -> Array:
    """An operand of a product: to bfloat16 where a CPU does so, else as it is."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) if _rounding.value else x


def plain_product(x: Float[Array, "*batch I"], w: Float[Array, "I O"]) -> Float[Array, "*batch O"]:
    return matmul(x, w)


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
    return matmul(x, w)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, w), (x, w)


def _backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, w = saved
    return matmul(d, w.T), weight_gradient(x, d)


_matrix_product.defvjp(_forward, _backward)


def weight_gradient(x: Float[Array, "R I"], d: Float[Array, "R O"]) -> Float[Array, "I O"]:
    """xᵀ d, or the same as (dᵀ x)ᵀ. XLA would see that they are the same and choose; the barrier prevents it."""
    x, d = rounded(x), rounded(d)
    if platform() == "gpu":
        return _sum_of_parts(x, d)
    if d_first(x.shape[1], d.shape[1]):
        return jax.lax.optimization_barrier(d.T @ x).T
    return x.T @ d


def _sum_of_parts(x: Array, d: Array) -> Array:
    """xᵀ d as the sum of products of fewer rows each, which a GPU computes side by side. XLA does the same, but pads
    rows to a multiple of some power of two first, which takes a launch and a copy of either operand."""
    parts = parts_of(len(x))
    x, d = (v.reshape(parts, -1, v.shape[-1]) for v in (x, d))
    return jnp.sum(jnp.einsum("pri,pro->pio", x, d), axis=0)


def parts_of(rows: int) -> int:
    """Into how many equal parts so many rows go: of 64 to 512, as large as can be; else 1, and XLA has its way."""
    return next((parts for parts in range(-(-rows // 512), rows // 64 + 1) if rows % parts == 0), 1)


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
