"""The GRU in PyTorch's convention, its input side apart from its recurrent side.

    r = σ(x W_ir + b_ir + h W_hr + b_hr)          z likewise
    n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h = n + z ⊙ (h − n)

The input side is computed for all time steps at once, outside the scan. The gates r, z, n are separate arrays wherever
something is computed element by element, never slices of one [.., 3H]: a strided slice keeps XLA from vectorising the
step on a CPU (about three times slower forward in ``benchmarks/gru.py``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
    return Gates(*(x @ w for w in params.w_i))


def _forward(params: GRUParams, h: Array, x: Gates) -> tuple[Array, Residuals]:
    w, b_i, b_h = params.w_h, params.b_i, params.b_h
    r = jax.nn.sigmoid(x.r + h @ w.r + (b_i.r + b_h.r))
    z = jax.nn.sigmoid(x.z + h @ w.z + (b_i.z + b_h.z))
    h_n = h @ w.n + b_h.n
    n = jnp.tanh(x.n + b_i.n + r * h_n)
    return n + z * (h - n), Residuals(r, z, n, h_n)


def cell(params: GRUParams, h: Float[Array, "*batch H"], x: Gates) -> Float[Array, "*batch H"]:
    """One step; ``x`` comes from :func:`project`."""
    return _forward(params, h, x)[0]


def reset_where(first: Bool[Array, "*batch"], h: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Zeroes the hidden state where an episode starts."""
    return jnp.where(first[..., None], 0.0, h)


@jax.custom_vjp
def unroll(
    params: GRUParams, h: Float[Array, "*batch H"], x: Float[Array, "T *batch I"], first: Bool[Array, "T *batch"]
) -> Float[Array, "T *batch H"]:
    """All hidden states of a sequence of inputs, reset before the steps where ``first`` is true."""

    def step(h: Array, inputs: tuple[Gates, Array]) -> tuple[Array, Array]:
        h = _forward(params, reset_where(inputs[1], h), inputs[0])[0]
        return h, h

    return jax.lax.scan(step, h, (project(params, x), first))[1]


def _unroll_fwd(params: GRUParams, h: Array, x: Array, first: Array) -> tuple[Array, Any]:
    def step(h: Array, inputs: tuple[Gates, Array]) -> tuple[Array, tuple[Array, Residuals]]:
        h, residuals = _forward(params, reset_where(inputs[1], h), inputs[0])
        return h, (h, residuals)

    hs, residuals = jax.lax.scan(step, h, (project(params, x), first))[1]
    return hs, (params, h, x, first, hs, residuals)


def _backward(w_t: Gates, d: Array, h: Array, residuals: Residuals) -> tuple[Array, Gates]:
    """A step's ∂h, and ∂ of what goes into its gates, from ∂h' = ``d``; ``w_t``: the recurrent weights transposed."""
    r, z, n, h_n = residuals
    d_n = d * (1.0 - z) * (1.0 - n * n)
    d_z = d * (h - n) * z * (1.0 - z)
    d_r = d_n * h_n * r * (1.0 - r)
    return d * z + d_r @ w_t.r + d_z @ w_t.z + (d_n * r) @ w_t.n, Gates(d_r, d_z, d_n)


def sums_within(rows: int, hidden: int) -> bool:
    """Whether the weights' gradients are summed step by step, within the scan, or are one product after it.

    Within, a step's arrays are still in a core's cache, while a product over the window reads all of them from memory
    again; but every step reads and writes the sums. Measured on CPUs (``benchmarks/gru.py``). Accelerators want few
    large products.
    """
    return jax.default_backend() == "cpu" and rows >= 32 and hidden <= 256


def _unroll_bwd(saved: Any, d_hs: Array) -> tuple[GRUParams, Array, Array, None]:
    params, h, x, first, hs, residuals = saved
    before = jnp.concatenate([h[None], hs[:-1]])
    w_t, w_i = (jax.tree.map(jnp.transpose, w) for w in (params.w_h, params.w_i))
    within = sums_within(first[0].size, h.shape[-1])

    def step(carry: tuple[Array, Any], inputs: tuple[Array, Array, Array, Residuals, Array]) -> tuple[Any, Any]:
        (d_h, sums), (d_out, h, x, residuals, first) = carry, inputs
        h = reset_where(first, h)
        d_h, d = _backward(w_t, d_h + d_out, h, residuals)
        d_h = reset_where(first, d_h)
        if not within:
            return (d_h, sums), d
        sums = jax.tree.map(jnp.add, sums, _of_weights(x, h, d, residuals.r))
        return (d_h, sums), sum(g @ w for g, w in zip(d, w_i, strict=True))

    none = jax.tree.map(jnp.zeros_like, params) if within else None
    xs = d_hs, before, x, residuals, first
    (d_h, sums), d = jax.lax.scan(step, (jnp.zeros_like(h), none), xs, reverse=True)
    if within:
        return sums, d_h, d, None
    d_x = jnp.concatenate(d, axis=-1) @ jnp.concatenate(w_i)
    return _of_weights(x, reset_where(first, before), d, residuals.r), d_h, d_x, None


def _of_weights(x: Array, h: Array, d: Gates, r: Array) -> GRUParams:
    """The parameters' gradient, summed over all axes but the last; a side's gates have one product."""
    w_i, b_i = _of_side(x, d)
    w_h, b_h = _of_side(h, Gates(d.r, d.z, d.n * r))
    return GRUParams(w_i, b_i, w_h, b_h)


def _of_side(x: Array, d: Gates) -> tuple[Gates, Gates]:
    beside = jnp.concatenate(d, axis=-1)
    rows, beside = x.reshape(-1, x.shape[-1]), beside.reshape(-1, beside.shape[-1])
    w, b = (Gates(*jnp.split(g, 3, axis=-1)) for g in (rows.T @ beside, jnp.sum(beside, axis=0)))
    return w, b


unroll.defvjp(_unroll_fwd, _unroll_bwd)
