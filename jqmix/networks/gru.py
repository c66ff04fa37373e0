"""The GRU in PyTorch's convention, its input side apart from its recurrent side.

    r = σ(x W_ir + b_ir + h W_hr + b_hr)          z likewise
    n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h = n + z ⊙ (h − n)

The input side is computed for all time steps at once, outside the scan. The gates r, z, n are separate arrays
everywhere, never slices of one [.., 3H]: a strided slice keeps XLA from vectorising the step on a CPU (about
three times slower forward in ``benchmarks/gru.py``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class GRUParams(NamedTuple):
    """Weights and biases of both sides, the gates r, z, n along the first axis."""

    w_i: Float[Array, "3 I H"]
    b_i: Float[Array, "3 H"]
    w_h: Float[Array, "3 H H"]
    b_h: Float[Array, "3 H"]


class Gates(NamedTuple):
    """What the inputs contribute to each gate."""

    r: Float[Array, "*batch H"]
    z: Float[Array, "*batch H"]
    n: Float[Array, "*batch H"]


class Residuals(NamedTuple):
    """What one step leaves for the backward pass: its (reset) hidden input, its gates, and h W_hn + b_hn."""

    h: Float[Array, "*batch H"]
    r: Float[Array, "*batch H"]
    z: Float[Array, "*batch H"]
    n: Float[Array, "*batch H"]
    h_n: Float[Array, "*batch H"]


def project(params: GRUParams, x: Float[Array, "*batch I"]) -> Gates:
    """The input side, for any number of leading axes."""
    return Gates(*(x @ params.w_i[k] + params.b_i[k] for k in range(3)))


def _forward(params: GRUParams, h: Array, x: Gates) -> tuple[Array, Residuals]:
    r = jax.nn.sigmoid(x.r + h @ params.w_h[0] + params.b_h[0])
    z = jax.nn.sigmoid(x.z + h @ params.w_h[1] + params.b_h[1])
    h_n = h @ params.w_h[2] + params.b_h[2]
    n = jnp.tanh(x.n + r * h_n)
    return n + z * (h - n), Residuals(h, r, z, n, h_n)


def cell(params: GRUParams, h: Float[Array, "*batch H"], x: Gates) -> Float[Array, "*batch H"]:
    """One step; ``x`` comes from :func:`project`."""
    return _forward(params, h, x)[0]


def reset_where(first: Bool[Array, "*batch"], h: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Zeroes the hidden state where an episode starts."""
    return jnp.where(first[..., None], 0.0, h)


@jax.custom_vjp
def unroll(
    params: GRUParams, h: Float[Array, "*batch H"], x: Gates, first: Bool[Array, "T *batch"]
) -> Float[Array, "T *batch H"]:
    """All hidden states of a sequence, reset before the steps where ``first`` is true. ``x``: gates [T, *batch, H]."""

    def step(h: Array, inputs: tuple[Gates, Array]) -> tuple[Array, Array]:
        h = cell(params, reset_where(inputs[1], h), inputs[0])
        return h, h

    return jax.lax.scan(step, h, (x, first))[1]


def _unroll_fwd(params: GRUParams, h: Array, x: Gates, first: Array) -> tuple[Array, Any]:
    def step(h: Array, inputs: tuple[Gates, Array]) -> tuple[Array, tuple[Array, Residuals]]:
        h, residuals = _forward(params, reset_where(inputs[1], h), inputs[0])
        return h, (h, residuals)

    hs, residuals = jax.lax.scan(step, h, (x, first))[1]
    return hs, (params, residuals, first)


def _unroll_bwd(saved: Any, d_hs: Array) -> tuple[GRUParams, Array, Gates, None]:
    """Only ∂h runs through the scan; the weights' gradients are one product per gate over all steps, after it."""
    params, residuals, first = saved
    w_back = jnp.swapaxes(params.w_h, 1, 2)

    def step(d_h: Array, inputs: tuple[Array, Residuals, Array]) -> tuple[Array, Gates]:
        d_out, (h, r, z, n, h_n), f = inputs
        d = d_h + d_out
        d_n = d * (1.0 - z) * (1.0 - n * n)
        d_z = d * (h - n) * z * (1.0 - z)
        d_r = d_n * h_n * r * (1.0 - r)
        d_h = d * z + d_r @ w_back[0] + d_z @ w_back[1] + (d_n * r) @ w_back[2]
        return reset_where(f, d_h), Gates(d_r, d_z, d_n)

    d_h0, d_x = jax.lax.scan(step, jnp.zeros_like(d_hs[0]), (d_hs, residuals, first), reverse=True)
    rows = residuals.h.reshape(-1, d_hs.shape[-1])
    sides = [d.reshape(rows.shape) for d in (d_x.r, d_x.z, d_x.n * residuals.r)]
    d_params = GRUParams(
        w_i=jnp.zeros_like(params.w_i),
        b_i=jnp.zeros_like(params.b_i),
        w_h=jnp.stack([rows.T @ side for side in sides]),
        b_h=jnp.stack([jnp.sum(side, axis=0) for side in sides]),
    )
    return d_params, d_h0, d_x, None


unroll.defvjp(_unroll_fwd, _unroll_bwd)
