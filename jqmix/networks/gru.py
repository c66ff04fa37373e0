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


class GRUParams(NamedTuple):
    """Weights and biases of both sides, the gates r, z, n along the first axis."""

    w_i: Float[Array, "3 I H"]
    b_i: Float[Array, "3 H"]
    w_h: Float[Array, "3 H H"]
    b_h: Float[Array, "3 H"]


class Gates(NamedTuple):
    """What the inputs contribute to each gate, biases apart."""

    r: Float[Array, "*batch H"]
    z: Float[Array, "*batch H"]
    n: Float[Array, "*batch H"]


class Recurrent(NamedTuple):
    """What the step needs of the parameters, its gates apart: sliced once, not at every step.

    ``b_r`` and ``b_z`` are both sides' biases together. They are added in the step, where it costs nothing; to add them
    to a whole window's inputs would be a pass over memory of its own.
    """

    w_r: Float[Array, "H H"]
    w_z: Float[Array, "H H"]
    w_n: Float[Array, "H H"]
    b_r: Float[Array, " H"]
    b_z: Float[Array, " H"]
    b_in: Float[Array, " H"]
    b_hn: Float[Array, " H"]


class Residuals(NamedTuple):
    """What one step leaves for the backward pass: its gates, and h W_hn + b_hn."""

    r: Float[Array, "*batch H"]
    z: Float[Array, "*batch H"]
    n: Float[Array, "*batch H"]
    h_n: Float[Array, "*batch H"]


def project(params: GRUParams, x: Float[Array, "*batch I"]) -> Gates:
    """The input side's products, for any number of leading axes."""
    return Gates(*(x @ params.w_i[k] for k in range(3)))


def recurrent(params: GRUParams) -> Recurrent:
    """The rest."""
    both = params.b_i + params.b_h
    w_r, w_z, w_n = (params.w_h[k] for k in range(3))
    return Recurrent(w_r, w_z, w_n, b_r=both[0], b_z=both[1], b_in=params.b_i[2], b_hn=params.b_h[2])


def _forward(side: Recurrent, h: Array, x: Gates) -> tuple[Array, Residuals]:
    r = jax.nn.sigmoid(x.r + h @ side.w_r + side.b_r)
    z = jax.nn.sigmoid(x.z + h @ side.w_z + side.b_z)
    h_n = h @ side.w_n + side.b_hn
    n = jnp.tanh(x.n + side.b_in + r * h_n)
    return n + z * (h - n), Residuals(r, z, n, h_n)


def cell(params: GRUParams, h: Float[Array, "*batch H"], x: Gates) -> Float[Array, "*batch H"]:
    """One step; ``x`` comes from :func:`project`."""
    return _forward(recurrent(params), h, x)[0]


def reset_where(first: Bool[Array, "*batch"], h: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Zeroes the hidden state where an episode starts."""
    return jnp.where(first[..., None], 0.0, h)


@jax.custom_vjp
def unroll(
    params: GRUParams, h: Float[Array, "*batch H"], x: Float[Array, "T *batch I"], first: Bool[Array, "T *batch"]
) -> Float[Array, "T *batch H"]:
    """All hidden states of a sequence of inputs, reset before the steps where ``first`` is true."""
    side = recurrent(params)

    def step(h: Array, inputs: tuple[Gates, Array]) -> tuple[Array, Array]:
        h = _forward(side, reset_where(inputs[1], h), inputs[0])[0]
        return h, h

    return jax.lax.scan(step, h, (project(params, x), first))[1]


def _unroll_fwd(params: GRUParams, h: Array, x: Array, first: Array) -> tuple[Array, Any]:
    side = recurrent(params)

    def step(h: Array, inputs: tuple[Gates, Array]) -> tuple[Array, tuple[Array, Residuals]]:
        h, residuals = _forward(side, reset_where(inputs[1], h), inputs[0])
        return h, (h, residuals)

    hs, residuals = jax.lax.scan(step, h, (project(params, x), first))[1]
    return hs, (params, h, x, first, hs, residuals)


def _unroll_bwd(saved: Any, d_hs: Array) -> tuple[GRUParams, Array, Array, None]:
    """Only ∂h runs through the scan; each side's weights then have one product over all gates and steps."""
    params, h, x, first, hs, residuals = saved
    before = reset_where(first, jnp.concatenate([h[None], hs[:-1]]))
    w_r, w_z, w_n = (params.w_h[k].T for k in range(3))

    def step(d_h: Array, inputs: tuple[Array, Array, Residuals, Array]) -> tuple[Array, Gates]:
        d_out, h, (r, z, n, h_n), f = inputs
        d = d_h + d_out
        d_n = d * (1.0 - z) * (1.0 - n * n)
        d_z = d * (h - n) * z * (1.0 - z)
        d_r = d_n * h_n * r * (1.0 - r)
        d_h = d * z + d_r @ w_r + d_z @ w_z + (d_n * r) @ w_n
        return reset_where(f, d_h), Gates(d_r, d_z, d_n)

    d_h0, d = jax.lax.scan(step, jnp.zeros_like(d_hs[0]), (d_hs, before, residuals, first), reverse=True)
    d_i = jnp.concatenate(d, axis=-1)
    w_i, b_i = _weights_gradient(x, d_i)
    w_h, b_h = _weights_gradient(before, jnp.concatenate([d.r, d.z, d.n * residuals.r], axis=-1))
    d_x = d_i @ jnp.concatenate(list(params.w_i), axis=-1).T
    return GRUParams(w_i, b_i, w_h, b_h), d_h0, d_x, None


def _weights_gradient(x: Array, d: Array) -> tuple[Array, Array]:
    """Of one side's weights and biases, from its inputs [.., I] and the gates' gradients side by side, [.., 3H]."""
    rows, d = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
    w, b = (jnp.stack(jnp.split(g, 3, axis=-1)) for g in (rows.T @ d, jnp.sum(d, axis=0)))
    return w, b


unroll.defvjp(_unroll_fwd, _unroll_bwd)
