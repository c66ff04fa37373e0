"""The GRU in PyTorch's convention, its input side apart from its recurrent side.

    r = σ(x W_ir + b_ir + h W_hr + b_hr)          z likewise
    n = tanh(x W_in + b_in + r ⊙ (h W_hn + b_hn))
    h' = (1 − z) ⊙ n + z ⊙ h = n + z ⊙ (h − n)

The input side is computed for all time steps at once, outside the scan. The gates r, z, n are separate arrays wherever
something is computed element by element, never slices of one [.., 3H]: a strided slice keeps XLA from vectorising the
step on a CPU (about three times slower forward in ``benchmarks/gru.py``).
"""

import math
from collections.abc import Callable
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


class Beside(NamedTuple):
    """A gradient of :class:`GRUParams`, each with its gates beside one another."""

    w_i: Float[Array, "I 3H"]
    b_i: Float[Array, " 3H"]
    w_h: Float[Array, "H 3H"]
    b_h: Float[Array, " 3H"]


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


def step(params: GRUParams, h: Float[Array, "*batch H"], x: Gates) -> tuple[Float[Array, "*batch H"], Residuals]:
    """The next hidden state, and what the backward pass needs; ``x`` comes from :func:`project`."""
    w, b_i, b_h = params.w_h, params.b_i, params.b_h
    r = jax.nn.sigmoid(x.r + h @ w.r + (b_i.r + b_h.r))
    z = jax.nn.sigmoid(x.z + h @ w.z + (b_i.z + b_h.z))
    h_n = h @ w.n + b_h.n
    n = jnp.tanh(x.n + b_i.n + r * h_n)
    return n + z * (h - n), Residuals(r, z, n, h_n)


def cell(params: GRUParams, h: Float[Array, "*batch H"], x: Gates) -> Float[Array, "*batch H"]:
    """The next hidden state; ``x`` comes from :func:`project`."""
    return step(params, h, x)[0]


def reset_where(first: Bool[Array, "*batch"], h: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Zeroes the hidden state where an episode starts."""
    return jnp.where(first[..., None], 0.0, h)


# Loops over a window write what a step gives in place of what it took. As outputs of a scan it would have memory of its
# own, which is filled with zeros first: on a CPU several passes over a window more.


def _at(window: Any, t: Array) -> Any:
    """Step t of arrays [T, ..]."""
    return jax.tree.map(lambda v: jax.lax.dynamic_index_in_dim(v, t, keepdims=False), window)


def _put(window: Any, t: Array, step: Any) -> Any:
    """Arrays [T, ..] with their step t replaced."""
    return jax.tree.map(lambda v, new: jax.lax.dynamic_update_index_in_dim(v, new, t, axis=0), window, step)


def _unroll(
    params: GRUParams,
    h: Float[Array, "*batch H"],
    x: Float[Array, "T *batch I"],
    first: Bool[Array, "T *batch"],
    one_kernel: bool = False,
) -> Float[Array, "T *batch H"]:
    """All hidden states of a sequence of inputs, reset before the steps where ``first`` is true.

    ``one_kernel``: the recurrence as one kernel in place of a scan (:mod:`jqmix.networks.gru_kernel`).
    """
    gates = project(params, x)
    if one_kernel:
        return _forward_by_kernel(params, h, gates, first, saves=False)[0]

    def one(carry: tuple[Array, Gates], at: tuple[Array, Array]) -> tuple[tuple[Array, Gates], None]:
        (h, gates), (t, first) = carry, at
        h = cell(params, reset_where(first, h), _at(gates, t))
        return (h, gates._replace(r=_put(gates.r, t, h))), None

    return jax.lax.scan(one, (h, gates), (jnp.arange(len(x)), first))[0][1].r


unroll = jax.custom_vjp(_unroll, nondiff_argnums=(4,))


def fits_one_kernel(hidden: int) -> bool:
    """Whether the recurrence can be one kernel: on a GPU, where the width is a power of two, as Triton's arrays are,
    and a gate's weights fit into a processor's own memory."""
    return jax.default_backend() == "gpu" and hidden in (16, 32, 64, 128)


class Saved(NamedTuple):
    """What a window leaves for the backward pass: what went in, and what came of it."""

    params: GRUParams
    start: Float[Array, "*batch H"]
    x: Float[Array, "rows I"]  # of T steps
    first: Bool[Array, "T *batch"]
    hs: Float[Array, "T *batch H"]
    residuals: Residuals  # of T steps


def _unroll_fwd(params: GRUParams, h: Array, x: Array, first: Array, one_kernel: bool) -> tuple[Array, Saved]:
    rows = x.reshape(-1, x.shape[-1])  # kept and multiplied in one form, or what makes x is computed for each
    gates = Gates(*(v.reshape(*x.shape[:-1], v.shape[-1]) for v in project(params, rows)))
    hs, residuals = (_forward_by_kernel if one_kernel else _forward_by_scan)(params, h, gates, first)
    assert residuals is not None
    return hs, Saved(params, h, rows, first, hs, residuals)


def _forward_by_scan(params: GRUParams, h: Array, gates: Gates, first: Array) -> tuple[Array, Residuals]:
    def one(carry: tuple[Array, Residuals, Array], at: tuple[Array, Array]) -> tuple[Any, None]:
        (h, residuals, hs), (t, first) = carry, at
        h, new = step(params, reset_where(first, h), Gates(*_at(residuals[:3], t)))
        return (h, _put(residuals, t, new), _put(hs, t, h)), None

    empty = jnp.zeros_like(gates.n)
    begin = h, Residuals(*gates, empty), empty
    _, residuals, hs = jax.lax.scan(one, begin, (jnp.arange(len(first)), first))[0]
    return hs, residuals


def _forward_by_kernel(
    params: GRUParams, h: Array, gates: Gates, first: Array, saves: bool = True
) -> tuple[Array, Residuals | None]:
    from jqmix.networks import gru_kernel  # where it is asked for: Pallas takes a while to import

    window = first.shape
    start = _as_rows(h[None], (1, *window[1:]))[0]
    x, starts = _as_rows((gates, first), window)
    return _as_window(gru_kernel.forward(params, start, x, starts, saves), window)


def _as_rows(values: Any, window: tuple[int, ...]) -> Any:
    """[T, *batch, ..] with all rows on one axis."""
    return jax.tree.map(lambda v: v.reshape(window[0], math.prod(window[1:]), *v.shape[len(window) :]), values)


def _as_window(values: Any, window: tuple[int, ...]) -> Any:
    """And back."""
    return jax.tree.map(lambda v: v.reshape(*window, *v.shape[2:]), values)


def sums_within(rows: int, inputs: int, hidden: int) -> bool:
    """Whether the weights' gradients are summed step by step, within the loop, or are one product after it.

    Within, a step's arrays are still in a core's cache, while a product over the window reads all of them from
    memory again; but every step reads and writes the sums. Measured on CPUs in whole training
    (``benchmarks/README.md``): alone, the product after it may be the faster. Accelerators want few large products.
    Within, ∂ of the inputs takes the place of ∂ of the hidden states: both must have one size.
    """
    return jax.default_backend() == "cpu" and inputs == hidden and rows >= 32 and hidden <= 256


def _unroll_bwd(one_kernel: bool, saved: Saved, d_hs: Array) -> tuple[GRUParams, Array, Array, None]:
    if one_kernel:
        sums, d_h, d_x = _backward_after(saved, d_hs, _backward_by_kernel)
    elif sums_within(saved.first[0].size, saved.x.shape[-1], saved.start.shape[-1]):
        sums, d_h, d_x = _backward_within(saved, d_hs)
    else:
        sums, d_h, d_x = _backward_after(saved, d_hs, _backward_by_scan)
    return GRUParams(*(Gates(*jnp.split(side, 3, axis=-1)) for side in sums)), d_h, d_x, None


def _beside(gates: Gates) -> Array:
    """[.., 3H]: what a product over all gates takes, or gives the gradient of."""
    return jnp.concatenate(gates, axis=-1)


def through_gates(d: Array, h: Array, residuals: Residuals) -> tuple[Gates, Array]:
    """From a step's ∂h' = ``d``: ∂ of what goes into its gates, and ∂ of h W_hn."""
    r, z, n, h_n = residuals
    d_n = d * (1.0 - z) * (1.0 - n * n)
    d_z = d * (h - n) * z * (1.0 - z)
    d_r = d_n * h_n * r * (1.0 - r)
    return Gates(d_r, d_z, d_n), d_n * r


def _backward(w_h: Array, d: Array, h: Array, residuals: Residuals) -> tuple[Array, Gates, Array]:
    """From a step's ∂h' = ``d``: its ∂h, ∂ of what goes into its gates, and ∂ of h W_hn; ``w_h``: [3H, H]."""
    into, d_h_n = through_gates(d, h, residuals)
    return d * residuals.z + _beside(into._replace(n=d_h_n)) @ w_h, into, d_h_n


def _backward_within(saved: Saved, d_hs: Array) -> tuple[Beside, Array, Array]:
    """∂ of the parameters, of the first hidden state and of the inputs."""
    params, start, x, first, hs, residuals = saved
    w_h, w_i = (_beside(w).T for w in (params.w_h, params.w_i))

    def one(carry: tuple[Array, Beside, Array], at: tuple[Array, Array]) -> tuple[Any, None]:
        (d_h, sums, d_x), (t, first) = carry, at  # what comes before t in d_x is still d_hs
        before = jnp.maximum(t - 1, 0)
        h = reset_where(first, jnp.where(t == 0, start, _at(hs, before)))
        d_h, d, d_h_n = _backward(w_h, d_h, h, _at(residuals, t))
        rows = jax.lax.dynamic_slice_in_dim(x, t * first.size, first.size)
        sums = jax.tree.map(jnp.add, sums, _of_weights(rows, h, d, d_h_n))
        d_x = _put(d_x, t, _beside(d) @ w_i)
        # Read after the writing, and for the next step, or all of it would be copied.
        return (reset_where(first, d_h) + jnp.where(t == 0, 0.0, _at(d_x, before)), sums, d_x), None

    none = Beside(*(jnp.zeros_like(_beside(gates)) for gates in params))
    times = jnp.arange(len(hs)), first
    d_h, sums, d_x = jax.lax.scan(one, (d_hs[-1], none, d_hs), times, reverse=True)[0]
    return sums, d_h, d_x


def _backward_after(saved: Saved, d_hs: Array, recurrence: Callable[..., Any]) -> tuple[Beside, Array, Array]:
    """The same."""
    params, start, x, first, hs, residuals = saved
    before = reset_where(first, jnp.concatenate([start[None], hs[:-1]]))
    d_h, d = recurrence(params, d_hs, before, residuals, first)
    return _of_weights(x, before, d, d.n * residuals.r), d_h, _beside(d) @ _beside(params.w_i).T


def _backward_by_scan(
    params: GRUParams, d_hs: Array, before: Array, residuals: Residuals, first: Array
) -> tuple[Array, Gates]:
    """∂ of the first hidden state, and of what goes into every step's gates."""
    w_h = _beside(params.w_h).T

    def one(d_h: Array, at: tuple[Array, Array, Residuals, Array]) -> tuple[Array, Gates]:
        d_out, h, residuals, first = at
        d_h, d, _ = _backward(w_h, d_h + d_out, h, residuals)
        return reset_where(first, d_h), d

    return jax.lax.scan(one, jnp.zeros_like(d_hs[0]), (d_hs, before, residuals, first), reverse=True)


def _backward_by_kernel(
    params: GRUParams, d_hs: Array, before: Array, residuals: Residuals, first: Array
) -> tuple[Array, Gates]:
    """The same."""
    from jqmix.networks import gru_kernel

    window = first.shape
    rows = _as_rows((d_hs, before, residuals, first), window)
    d_h, d = gru_kernel.backward(params, *rows)
    return d_h.reshape(d_hs.shape[1:]), _as_window(d, window)


def _of_weights(x: Array, h: Array, d: Gates, d_h_n: Array) -> Beside:
    """∂ of the parameters, summed over all axes but the last; a side's gates have one product."""
    w_i, b_i = _of_side(x, d)
    w_h, b_h = _of_side(h, d._replace(n=d_h_n))
    return Beside(w_i, b_i, w_h, b_h)


def _of_side(x: Array, d: Gates) -> tuple[Array, Array]:
    rows, d_rows = (v.reshape(-1, v.shape[-1]) for v in (x, _beside(d)))
    return rows.T @ d_rows, jnp.sum(d_rows, axis=0)


unroll.defvjp(_unroll_fwd, _unroll_bwd)
