"""The GRU's recurrence over a window as one kernel, forward and backward: for GPUs, by Pallas.

As a scan, a step is several kernels, and a window a few hundred launches of some microseconds each, whatever they
compute (``benchmarks/README.md``). Here one program takes ``ROWS`` rows (batch × agents) through all steps, their
hidden state, or its gradient, in registers. What is not recurrent stays outside, as few large products: those of the
inputs, and the weights' gradients. The formulas are those of :mod:`jqmix.kernels.gru_step`.

This file says what a program computes. Two files say how Pallas brings it to a GPU, both by ``launch`` and ``width``:
:mod:`jqmix.kernels.gru_mosaic` from jax 0.11.2 on, and :mod:`jqmix.kernels.gru_triton` before, as Pallas gives Triton
up (jax 0.11 warns), and earlier versions of Mosaic lack what is needed. :mod:`jqmix.kernels.self_test` says whether the
GPU that is there gets it right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.kernels.gru_step import Gates, GRUParams, Residuals, gate_gradients, gated
from jqmix.kernels.platform import platform

# What a program reads of the window's rows, and writes: x[t] is [ROWS, H], or [ROWS, 1]. An array of several times H
# columns is as many of them.
Rows = Any
Vectors = Sequence[Any]  # of H numbers each, read by [...]
# (a [ROWS, H], which of the matrices [H, H]) -> a times each of them, or of them transposed
Multiply = Callable[[Array, range], list[Array]]
# (rows, vectors, multiply, outs)
Body = Callable[[Sequence[Rows], Vectors, Multiply, Sequence[Rows]], None]


def lowering() -> Any:
    """The module that brings a program to a GPU with this version of jax; off a GPU, the one that interprets it."""
    if platform() == "gpu" and jax.__version_info__ >= (0, 11, 2):
        from jqmix.kernels import gru_mosaic

        return gru_mosaic
    from jqmix.kernels import gru_triton

    return gru_triton


def forward(
    params: GRUParams, h: Float[Array, "R H"], x: Float[Array, "T R 3*H"], first: Bool[Array, "T R"], saves: bool
) -> tuple[Float[Array, "T R H"], Float[Array, "T R 4*H"] | None]:
    """All hidden states from the inputs' products ``x``, for the gates n, r, z; where it ``saves``, what a gradient
    needs, too: :class:`Residuals` beside one another."""
    window = (*first.shape, h.shape[-1])
    shapes = [window, (*window[:2], 4 * window[2])][: 1 + saves]
    vectors = [*params.b_i, *params.b_h]
    hs, *residuals = lowering().launch(_forward, [x, _kept(first), h[None]], vectors, [*params.w_h], shapes)
    return hs, residuals[0] if saves else None


def _forward(rows: Sequence[Rows], vectors: Vectors, multiply: Multiply, outs: Sequence[Rows]) -> None:
    x_n, x_r, x_z, keep, start = rows

    def advance(t: Array, h: Array) -> Array:
        b_i, b_h = (Gates(*(v[...] for v in vectors[i : i + 3])) for i in (0, 3))
        h = h * keep[t]
        h, residuals = gated(h, Gates(x_r[t], x_z[t], x_n[t]), Gates(*multiply(h, range(3))), b_i, b_h)
        for out, value in zip(outs, (h, *residuals), strict=False):  # all of them, or the hidden states alone
            out[t] = value
        return h

    jax.lax.fori_loop(0, outs[0].shape[0], advance, start[0])


def backward(
    params: GRUParams,
    d_hs: Float[Array, "T R H"],
    before: Float[Array, "T R H"],
    residuals: Float[Array, "T R 4*H"],
    first: Bool[Array, "T R"],
) -> tuple[Float[Array, "R H"], Float[Array, "T R 4*H"]]:
    """∂ of the first hidden state, and, beside one another, of the products that go into every step's gates: x W_in,
    what goes into r, into z, and h W_hn.

    ``before``: the hidden states that the steps read; ``residuals``: what they left.
    """
    steps, count, hidden = d_hs.shape
    rows = [d_hs, before, residuals, _kept(first), jnp.zeros_like(d_hs[:1])]
    shapes = [(steps, count, 4 * hidden), (1, count, hidden)]
    d, d_h = lowering().launch(_backward, rows, [], [*params.w_h], shapes, transposed=True)
    return d_h[0], d


def _backward(rows: Sequence[Rows], vectors: Vectors, multiply: Multiply, outs: Sequence[Rows]) -> None:
    del vectors
    d_hs, before, *residuals, keep, zero = rows
    *d_gates, d_start = outs
    steps = d_hs.shape[0]

    def go_back(i: Array, d_h: Array) -> Array:
        t = steps - 1 - i
        at = Residuals(*(v[t] for v in residuals))
        d = d_h + d_hs[t]
        into, d_h_n = gate_gradients(d, before[t], at)
        for out, value in zip(d_gates, (into.n, into.r, into.z, d_h_n), strict=True):
            out[t] = value
        recurrent = [multiply(g, range(i, i + 1))[0] for i, g in enumerate((into.r, into.z, d_h_n))]
        return sum(recurrent, start=d * at.z) * keep[t]

    d_start[0] = jax.lax.fori_loop(0, steps, go_back, zero[0])


def _kept(first: Bool[Array, "T R"]) -> Float[Array, "T R 1"]:
    """What a hidden state is multiplied by: 0 where an episode starts."""
    return 1.0 - first.astype(jnp.float32)[..., None]
