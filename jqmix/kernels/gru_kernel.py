"""The GRU's recurrence over a window as one kernel, forward and backward: for GPUs, by Pallas and Triton.

As a scan, a step is several kernels, and a window a few hundred launches of some microseconds each, whatever they
compute (``benchmarks/README.md``). Here one program takes ``ROWS`` rows (batch × agents) through all steps, their
hidden state, or its gradient, in registers. What is not recurrent stays outside, as few large products: those of the
inputs, and the weights' gradients. The formulas are those of :mod:`jqmix.kernels.gru_step`.

Off a GPU the kernels are interpreted: for tests alone. On a GPU they have not been measured yet; and jax 0.11 announces
that Pallas will give Triton up. So nothing depends on them (``core.one_kernel``, off unless asked for).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from jqmix.kernels.gru_step import Gates, GRUParams, Residuals, gate_gradients, step
from jqmix.kernels.platform import platform

ROWS = 16  # the least that a tensor core multiplies


def forward(
    params: GRUParams, h: Float[Array, "R H"], x: Gates, first: Bool[Array, "T R"], saves: bool
) -> tuple[Float[Array, "T R H"], Residuals | None]:
    """All hidden states from the inputs' products ``x`` [T, R, H]; where it ``saves``, what a gradient needs, too."""
    weights = [*params.b_i, *params.w_h, *params.b_h]
    shapes = [x.n.shape] * (1 + saves * len(Residuals._fields))
    hs, *residuals = _run(_forward, [*x, _kept(first), h[None]], weights, shapes)
    return hs, Residuals(*residuals) if saves else None


def _forward(rows: list[Any], weights: list[Any], outs: list[Any]) -> None:
    *x, keep, start = rows

    def advance(t: Array, h: Array) -> Array:
        # Read in every step, from a cache: there are not enough registers to keep them.
        b_i, w_h, b_h = (Gates(*(w[...] for w in weights[i : i + 3])) for i in (0, 3, 6))
        params = GRUParams(w_h, b_i, w_h, b_h)  # the inputs' weights have no part in this
        h, residuals = step(params, h * keep[t][:, None], Gates(*(gate[t] for gate in x)))
        for out, value in zip(outs, (h, *residuals), strict=False):  # all of them, or the hidden states alone
            out[t] = value
        return h

    jax.lax.fori_loop(0, outs[0].shape[0], advance, start[0])


def backward(
    params: GRUParams,
    d_hs: Float[Array, "T R H"],
    before: Float[Array, "T R H"],
    residuals: Residuals,
    first: Bool[Array, "T R"],
) -> tuple[Float[Array, "R H"], Gates]:
    """∂ of the first hidden state, and of what goes into every step's gates.

    ``before``: the hidden states that the steps read; ``residuals``: what they left.
    """
    weights = [w.T for w in params.w_h]
    window = d_hs.shape
    rows = [d_hs, before, *residuals, _kept(first)]
    *d, d_h = _run(_backward, rows, weights, [window, window, window, (1, *window[1:])])
    return d_h[0], Gates(*d)


def _backward(rows: list[Any], weights: list[Any], outs: list[Any]) -> None:
    d_hs, before, *residuals, keep = rows
    *outs, d_start = outs
    steps = d_hs.shape[0]

    def go_back(i: Array, d_h: Array) -> Array:
        t = steps - 1 - i
        at = Residuals(*(v[t] for v in residuals))
        d = d_h + d_hs[t]
        into, d_h_n = gate_gradients(d, before[t], at)
        for out, value in zip(outs, into, strict=True):
            out[t] = value
        recurrent = (g @ w[...] for g, w in zip((into.r, into.z, d_h_n), weights, strict=True))
        return sum(recurrent, start=d * at.z) * keep[t][:, None]

    d_start[0] = jax.lax.fori_loop(0, steps, go_back, jnp.zeros(d_start.shape[1:], d_start.dtype))


def _kept(first: Bool[Array, "T R"]) -> Float[Array, "T R"]:
    """What a hidden state is multiplied by: 0 where an episode starts."""
    return 1.0 - first.astype(jnp.float32)


def _run(body: Callable[..., None], rows: list[Array], weights: list[Array], shapes: list[Any]) -> list[Array]:
    """``body(rows, weights, outs)`` for every ``ROWS`` rows, which stand on axis 1 of ``rows`` and of what comes out.

    Of the weights each program has all. ``shapes``: of what comes out.
    """
    count = rows[0].shape[1]
    padding = -count % ROWS

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)]) if padding else x

    def share(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec((shape[0], ROWS, *shape[2:]), lambda i: (0, i, *(0 for _ in shape[2:])))

    def whole(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i: tuple(0 for _ in shape))

    def kernel(*refs: Any) -> None:
        ends = len(rows), len(rows) + len(weights)
        body(list(refs[: ends[0]]), list(refs[ends[0] : ends[1]]), list(refs[ends[1] :]))

    on_gpu = platform() == "gpu"
    outs = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((s[0], count + padding, *s[2:]), jnp.float32) for s in shapes],
        grid=((count + padding) // ROWS,),
        in_specs=[share(x.shape) for x in rows] + [whole(w.shape) for w in weights],
        out_specs=[share(s) for s in shapes],
        interpret=not on_gpu,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1) if on_gpu else None,
    )(*map(padded, rows), *weights)
    return [out[:, :count] for out in outs]
