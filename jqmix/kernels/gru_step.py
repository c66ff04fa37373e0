"""One step of the GRU, forward with what its backward pass needs, and backward: for the scan and the kernel alike.

The formulas are those of ``networks/cores/gru.py``. The products of the inputs come from outside (:func:`project`), as
they are computed for all steps at once. The gates r, z, n are separate arrays wherever something is computed element by
element, never slices of one [.., 3H] array: a strided slice keeps XLA from vectorising the step on a CPU.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.kernels.products import matmul


class Gates(NamedTuple):
    """One array for each gate."""

    r: Float[Array, "*batch H"]
    z: Float[Array, "*batch H"]
    n: Float[Array, "*batch H"]


class GRUParams(NamedTuple):
    """Weights and biases of the input side, [I, H] and [H] a gate, and of the recurrent side, [H, H] and [H]."""

    w_i: Gates
    b_i: Gates
    w_h: Gates
    b_h: Gates


class Residuals(NamedTuple):
    """What one step leaves for the backward pass: its gates, and h W_hn + b_hn."""

    r: Float[Array, "*batch H"]
    z: Float[Array, "*batch H"]
    n: Float[Array, "*batch H"]
    h_n: Float[Array, "*batch H"]


def project(params: GRUParams, x: Float[Array, "*batch I"]) -> Gates:
    """The input side's products, for any number of leading axes.

    Biases come in the step, where they cost nothing: added here, they would be a pass of their own over a whole window.
    """
    return Gates(*(matmul(x, w) for w in params.w_i))


def step(params: GRUParams, h: Float[Array, "*batch H"], x: Gates) -> tuple[Float[Array, "*batch H"], Residuals]:
    """The next hidden state, and what the backward pass needs; ``x`` comes from :func:`project`."""
    return gated(h, x, Gates(*(matmul(h, w) for w in params.w_h)), params.b_i, params.b_h)


def step_in_one_product(
    params: GRUParams, h: Float[Array, "*batch H"], x: Float[Array, "*batch I"]
) -> Float[Array, "*batch H"]:
    """The next hidden state from the inputs themselves, by one product of [x, h]: for acting on accelerators, where a
    second product and what adds them up are launches. The n gate's two sides stay apart: half of its rows are zeros."""
    w_i, w_h = params.w_i, params.w_h
    of_x = jnp.concatenate([w_i.r, w_i.z, w_i.n, jnp.zeros_like(w_i.n)], axis=1)
    of_h = jnp.concatenate([w_h.r, w_h.z, jnp.zeros_like(w_h.n), w_h.n], axis=1)
    r, z, x_n, h_n = jnp.split(matmul(jnp.concatenate([x, h], -1), jnp.concatenate([of_x, of_h])), 4, axis=-1)
    none = jnp.zeros_like(r)
    return gated(h, Gates(r, z, x_n), Gates(none, none, h_n), params.b_i, params.b_h)[0]


def gated(
    h: Float[Array, "*batch H"], x: Gates, products: Gates, b_i: Gates, b_h: Gates
) -> tuple[Float[Array, "*batch H"], Residuals]:
    """What a step does with its ``products``, h times the recurrent weights."""
    r = jax.nn.sigmoid(x.r + products.r + (b_i.r + b_h.r))
    z = jax.nn.sigmoid(x.z + products.z + (b_i.z + b_h.z))
    h_n = products.n + b_h.n
    n = jnp.tanh(x.n + b_i.n + r * h_n)
    return n + z * (h - n), Residuals(r, z, n, h_n)


def gate_gradients(d: Array, h: Array, residuals: Residuals) -> tuple[Gates, Array]:
    """From a step's ∂h' = ``d``: ∂ of what goes into its gates, and ∂ of h W_hn."""
    r, z, n, h_n = residuals
    d_n = d * (1.0 - z) * (1.0 - n * n)
    d_z = d * (h - n) * z * (1.0 - z)
    d_r = d_n * h_n * r * (1.0 - r)
    return Gates(d_r, d_z, d_n), d_n * r


def reset_hidden(first: Bool[Array, "*batch"], h: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Zeroes the hidden state where an episode starts."""
    return jnp.where(first[..., None], 0.0, h)
