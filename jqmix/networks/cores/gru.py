"""The GRU (1406.1078) in PyTorch's convention. Its state is the hidden state h [*batch, H], which is also its output.

    r = σ(x W_ir + b_ir + h W_hr + b_hr)          z likewise
    n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h = n + z ⊙ (h − n)

This is the plain form, differentiated automatically. Training unrolls windows by ``kernels/gru.py``, which computes the
same faster.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.kernels import gru as fast
from jqmix.kernels.gru_step import Gates, GRUParams, project, step_in_one_product
from jqmix.kernels.platform import plain, platform
from jqmix.kernels.products import matmul
from jqmix.kernels.self_test import trouble
from jqmix.networks.cores.base import Core, CoreSizes, Params, reset_where
from jqmix.networks.cores.settings import WIDEST_KERNEL, GRUSettings
from jqmix.networks.layers import init_gates


def cell(params: GRUParams, h: Float[Array, "*batch H"], x: Gates) -> Float[Array, "*batch H"]:
    """The next hidden state; ``x``: the products of the inputs, by :func:`project`."""
    w, b_i, b_h = params.w_h, params.b_i, params.b_h
    r = jax.nn.sigmoid(x.r + matmul(h, w.r) + (b_i.r + b_h.r))
    z = jax.nn.sigmoid(x.z + matmul(h, w.z) + (b_i.z + b_h.z))
    n = jnp.tanh(x.n + b_i.n + r * (matmul(h, w.n) + b_h.n))
    return n + z * (h - n)


def unroll(
    params: GRUParams,
    h: Float[Array, "*batch H"],
    x: Float[Array, "T *batch I"],
    first: Bool[Array, "T *batch"],
) -> Float[Array, "T *batch H"]:
    """All hidden states of a sequence of inputs, reset before the steps where ``first`` is true."""

    def advance(h: Array, slot: tuple[Gates, Array]) -> tuple[Array, Array]:
        gates, first = slot
        h = cell(params, reset_where(first, h), gates)
        return h, h

    return jax.lax.scan(advance, h, (project(params, x), first))[1]


def gru_params(params: Params) -> GRUParams:
    return GRUParams(**{side: Gates(**gates) for side, gates in params.items()})


def asks_for_kernel(settings: GRUSettings, hidden: int) -> bool:
    """Whether programs for this platform are to have the recurrence as one kernel, if that proves right."""
    return settings.one_kernel != "false" and platform() == "gpu" and hidden <= WIDEST_KERNEL


def make(sizes: CoreSizes, settings: GRUSettings) -> Core:
    """One GRU layer. Training has its recurrence as one kernel where ``settings`` ask for it and the GPU gets it right
    (:mod:`jqmix.kernels.self_test`)."""

    def step(params: Params, h: Array, x: Array, first: Array) -> tuple[Array, Array]:
        weights, h = gru_params(params), reset_where(first, h)
        in_one_product = platform() != "cpu" and not plain("gru")
        h = step_in_one_product(weights, h, x) if in_one_product else cell(weights, h, project(weights, x))
        return h, h

    def unroll_window(params: Params, h: Array, x: Array, first: Array) -> tuple[Array, Array]:
        weights = gru_params(params)
        if plain("gru"):
            hs = unroll(weights, h, x, first)
        elif asks_for_kernel(settings, sizes.hidden) and trouble(sizes.hidden) is None:
            hs = fast.unroll_in_kernel(weights, h, x, first)
        else:
            hs = fast.unroll(weights, h, x, first)
        return hs, hs[-1]

    return Core(
        init=lambda key: init_gates(key, "rzn", sizes.n_in, sizes.hidden),
        initial_state=lambda *batch: jnp.zeros((*batch, sizes.hidden)),
        step=step,
        unroll=unroll_window,
    )
