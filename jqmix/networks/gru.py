"""The GRU in PyTorch's convention, its input side apart from its recurrent side.

    r = σ(x W_ir + b_ir + h W_hr + b_hr)          z likewise
    n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h = n + z ⊙ (h − n)

Gates stand in the order r, z, n. The input side is one product for all time steps, outside the scan; the recurrent
side is three products, which is faster than one cut in three on a CPU.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class GRUParams(NamedTuple):
    w_i: Float[Array, "I H3"]
    b_i: Float[Array, " H3"]
    w_h: Float[Array, "3 H H"]
    b_h: Float[Array, "3 H"]


def project(params: GRUParams, x: Float[Array, "*batch I"]) -> Float[Array, "*batch H3"]:
    """What the inputs contribute to the gates, for any number of leading axes."""
    return x @ params.w_i + params.b_i


class Residuals(NamedTuple):
    """What one step leaves for the backward pass: its (reset) hidden input, its gates, and h W_hn + b_hn."""

    h: Float[Array, "*batch H"]
    r: Float[Array, "*batch H"]
    z: Float[Array, "*batch H"]
    n: Float[Array, "*batch H"]
    h_n: Float[Array, "*batch H"]


def _gates(params: GRUParams, h: Array, gates: Array) -> tuple[Array, Array, Array, Array]:
    x_r, x_z, x_n = jnp.split(gates, 3, axis=-1)
    r = jax.nn.sigmoid(x_r + h @ params.w_h[0] + params.b_h[0])
    z = jax.nn.sigmoid(x_z + h @ params.w_h[1] + params.b_h[1])
    h_n = h @ params.w_h[2] + params.b_h[2]
    return r, z, jnp.tanh(x_n + r * h_n), h_n


def cell(params: GRUParams, h: Float[Array, "*batch H"], gates: Float[Array, "*batch H3"]) -> Float[Array, "*batch H"]:
    """One step; ``gates`` comes from :func:`project`."""
    _, z, n, _ = _gates(params, h, gates)
    return n + z * (h - n)


def reset_where(first: Bool[Array, "*batch"], h: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Zeroes the hidden state where an episode starts."""
    return jnp.where(first[..., None], 0.0, h)


def _scan(params: GRUParams, h: Array, gates: Array, first: Array) -> tuple[Array, Residuals]:
    """The forward pass with everything the backward pass reads."""

    def step(h: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Residuals]]:
        g, f = inputs
        h = reset_where(f, h)
        r, z, n, h_n = _gates(params, h, g)
        new = n + z * (h - n)
        return new, (new, Residuals(h, r, z, n, h_n))

    return jax.lax.scan(step, h, (gates, first))[1]


@jax.custom_vjp
def unroll(
    params: GRUParams,
    h: Float[Array, "*batch H"],
    gates: Float[Array, "T *batch H3"],
    first: Bool[Array, "T *batch"],
) -> Float[Array, "T *batch H"]:
    """All hidden states of a sequence, reset before the steps where ``first`` is true."""

    def step(h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        g, f = inputs
        h = cell(params, reset_where(f, h), g)
        return h, h

    return jax.lax.scan(step, h, (gates, first))[1]


def _unroll_fwd(params: GRUParams, h: Array, gates: Array, first: Array) -> tuple[Array, Any]:
    hs, residuals = _scan(params, h, gates, first)
    return hs, (params, residuals, first)


def _unroll_bwd(saved: Any, d_hs: Array) -> tuple[GRUParams, Array, Array, None]:
    """Only ∂h runs through the scan; the weights' gradients are one product each over all steps, after it."""
    params, residuals, first = saved
    w_back = jnp.swapaxes(params.w_h, 1, 2)

    def step(d_h: Array, inputs: tuple[Array, Residuals, Array]) -> tuple[Array, Array]:
        d_out, (h, r, z, n, h_n), f = inputs
        d = d_h + d_out
        d_n = d * (1.0 - z) * (1.0 - n * n)
        d_z = d * (h - n) * z * (1.0 - z)
        d_r = d_n * h_n * r * (1.0 - r)
        d_h = d * z + d_r @ w_back[0] + d_z @ w_back[1] + (d_n * r) @ w_back[2]
        return reset_where(f, d_h), jnp.concatenate([d_r, d_z, d_n], axis=-1)

    d_h0, d_gates = jax.lax.scan(step, jnp.zeros_like(d_hs[0]), (d_hs, residuals, first), reverse=True)
    width = d_hs.shape[-1]
    rows = residuals.h.reshape(-1, width)
    d_r, d_z, d_n = (d.reshape(-1, width) for d in jnp.split(d_gates, 3, axis=-1))
    sides = (d_r, d_z, d_n * residuals.r.reshape(-1, width))
    d_params = GRUParams(
        w_i=jnp.zeros_like(params.w_i),
        b_i=jnp.zeros_like(params.b_i),
        w_h=jnp.stack([rows.T @ side for side in sides]),
        b_h=jnp.stack([jnp.sum(side, axis=0) for side in sides]),
    )
    return d_params, d_h0, d_gates, None


unroll.defvjp(_unroll_fwd, _unroll_bwd)
