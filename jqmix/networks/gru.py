"""The GRU in PyTorch's convention, its input side apart from its recurrent side.

    r = σ(x W_ir + b_ir + h W_hr + b_hr)          z likewise
    n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h

Gates stand in the order r, z, n. The input side is one product for all time steps, outside the scan; the recurrent
side is three products, which is faster than one cut in three on a CPU.
"""

from typing import NamedTuple

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


def cell(params: GRUParams, h: Float[Array, "*batch H"], gates: Float[Array, "*batch H3"]) -> Float[Array, "*batch H"]:
    """One step; ``gates`` comes from :func:`project`."""
    x_r, x_z, x_n = jnp.split(gates, 3, axis=-1)
    r = jax.nn.sigmoid(x_r + h @ params.w_h[0] + params.b_h[0])
    z = jax.nn.sigmoid(x_z + h @ params.w_h[1] + params.b_h[1])
    n = jnp.tanh(x_n + r * (h @ params.w_h[2] + params.b_h[2]))
    return (1.0 - z) * n + z * h


def reset_where(first: Bool[Array, "*batch"], h: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Zeroes the hidden state where an episode starts."""
    return jnp.where(first[..., None], 0.0, h)


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
