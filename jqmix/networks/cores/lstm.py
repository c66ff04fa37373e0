"""The LSTM (Hochreiter and Schmidhuber 1997) in PyTorch's convention. Its state is (h, c); its output is h.

    i = σ(x W_ii + b_ii + h W_hi + b_hi)          f and o likewise
    g = tanh(x W_ig + b_ig + h W_hg + b_hg)
    c' = f ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')

Differentiated automatically. The products of the inputs are computed for all steps of a window at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jqmix.kernels.products import matmul, product
from jqmix.networks.cores.base import Core, CoreSizes, Params, reset_where
from jqmix.networks.layers import init_gates

GATES = "ifgo"
Gates = dict[str, Array]  # an array for each gate


class LSTMState(NamedTuple):
    h: Float[Array, "*batch H"]
    c: Float[Array, "*batch H"]


def _cell(params: Params, state: LSTMState, x: Gates) -> LSTMState:
    """The next state; ``x``: the products of the inputs, by :func:`project`."""
    gate = {k: x[k] + matmul(state.h, params["w_h"][k]) + (params["b_i"][k] + params["b_h"][k]) for k in GATES}
    i, f, o = (jax.nn.sigmoid(gate[k]) for k in "ifo")
    c = f * state.c + i * jnp.tanh(gate["g"])
    return LSTMState(o * jnp.tanh(c), c)


def _project(params: Params, x: Float[Array, "*batch I"]) -> Gates:
    """The products of the inputs, which need no state."""
    return {k: product(x, w) for k, w in params["w_i"].items()}


def make(sizes: CoreSizes) -> Core:
    """One LSTM layer."""

    def advance(params: Params, state: LSTMState, x: Gates, first: Array) -> tuple[LSTMState, Array]:
        state = _cell(params, reset_where(first, state), x)
        return state, state.h

    def step(params: Params, state: LSTMState, x: Array, first: Array) -> tuple[Array, LSTMState]:
        state, output = advance(params, state, _project(params, x), first)
        return output, state

    def unroll(params: Params, state: LSTMState, x: Array, first: Array) -> tuple[Array, LSTMState]:
        window = _project(params, x), first
        state, outputs = jax.lax.scan(lambda state, slot: advance(params, state, *slot), state, window)
        return outputs, state

    def initial_state(*batch: int) -> LSTMState:
        return LSTMState(*(jnp.zeros((*batch, sizes.hidden)) for _ in "hc"))

    return Core(lambda key: init_gates(key, GATES, sizes.n_in, sizes.hidden), initial_state, step, unroll)
