"""The GRU over a window, with a backward pass written by hand. The plain form is ``networks/cores/gru.py``'s scan.

In the backward pass only ∂h is recurrent. The input side's products, and the gradients of the weights, are computed for
all steps at once, or, where that is faster, step by step within the loop.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.kernels.gru_step import Gates, GRUParams, Residuals, gate_gradients, project, reset_hidden, step
from jqmix.kernels.platform import plain, platform
from jqmix.kernels.products import matmul, weight_gradient

# How gates stand beside one another, on the inputs' side and on the hidden state's. As n is the first of one and the
# last of the other, [n_x, r, z, n_h] has either side in a piece.
OF_X, OF_H = ("n", "r", "z"), ("r", "z", "n")


def _beside(gates: Gates, order: tuple[str, ...]) -> Array:
    """[.., 3H]: what a product over all gates takes, or gives the gradient of."""
    return jnp.concatenate([getattr(gates, gate) for gate in order], axis=-1)


def _apart(beside: Array, order: tuple[str, ...]) -> Gates:
    return Gates(**dict(zip(order, jnp.split(beside, 3, axis=-1), strict=True)))


class GateMatrices(NamedTuple):
    """A gradient of :class:`GRUParams`, each with its gates beside one another."""

    w_i: Float[Array, "I 3*H"]
    b_i: Float[Array, " 3*H"]
    w_h: Float[Array, "H 3*H"]
    b_h: Float[Array, " 3*H"]


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
    by_kernel: bool = False,
) -> Float[Array, "T *batch H"]:
    """All hidden states of a sequence of inputs, reset before the steps where ``first`` is true.

    ``by_kernel``: the recurrence as one kernel in place of a scan (:mod:`jqmix.kernels.gru_kernel`).
    """
    if by_kernel:
        return _forward_by_kernel(params, h, _as_rows(x), first, saves=False)[0]
    gates = project(params, x)

    def advance(carry: tuple[Array, Gates], at: tuple[Array, Array]) -> tuple[tuple[Array, Gates], None]:
        (h, gates), (t, first) = carry, at
        h, _ = step(params, reset_hidden(first, h), _at(gates, t))
        return (h, gates._replace(r=_put(gates.r, t, h))), None

    return jax.lax.scan(advance, (h, gates), (jnp.arange(len(x)), first))[0][1].r


unroll = jax.custom_vjp(_unroll, nondiff_argnums=(4,))


def unroll_in_kernel(
    params: GRUParams,
    h: Float[Array, "*batch H"],
    x: Float[Array, "T *batch I"],
    first: Bool[Array, "T *batch"],
) -> Float[Array, "T *batch H"]:
    """:func:`unroll` with the recurrence as one kernel, for any width: zeros make up what a kernel's lacks."""
    from jqmix.kernels import gru_kernel  # where it is asked for: Pallas takes a while to import

    hidden = h.shape[-1]
    more = gru_kernel.lowering().width(hidden) - hidden

    def columns(v: Array) -> Array:
        return jnp.pad(v, [*[(0, 0)] * (v.ndim - 1), (0, more)]) if more else v

    params = jax.tree.map(columns, params)
    params = params._replace(w_h=Gates(*(columns(w.T).T for w in params.w_h)))
    h = columns(h)
    return unroll(params, h, x, first, True)[..., :hidden]


class ForBackward(NamedTuple):
    """What a window leaves for the backward pass: what went in, and what came of it."""

    params: GRUParams
    start: Float[Array, "*batch H"]
    x: Float[Array, "rows I"]  # of T steps
    first: Bool[Array, "T *batch"]
    hs: Float[Array, "T *batch H"]
    residuals: Any  # of T steps, for the recurrence that left them

    @property
    def before(self) -> Float[Array, "T *batch H"]:
        """The hidden states that the steps read."""
        return reset_hidden(self.first, jnp.concatenate([self.start[None], self.hs[:-1]]))


def _as_rows(x: Float[Array, "*batch _"]) -> Float[Array, "rows _"]:
    return x.reshape(-1, x.shape[-1])


def _unroll_fwd(params: GRUParams, h: Array, x: Array, first: Array, by_kernel: bool) -> tuple[Array, ForBackward]:
    rows = _as_rows(x)  # kept and multiplied in one form, or what makes x is computed for each
    hs, residuals = (_forward_by_kernel if by_kernel else _forward_by_scan)(params, h, rows, first)
    return hs, ForBackward(params, h, rows, first, hs, residuals)


def _forward_by_scan(
    params: GRUParams, h: Float[Array, "*batch H"], x: Float[Array, "rows I"], first: Bool[Array, "T *batch"]
) -> tuple[Float[Array, "T *batch H"], Residuals]:
    """All hidden states, and what the backward pass needs."""
    gates = Gates(*(v.reshape(*first.shape, v.shape[-1]) for v in project(params, x)))

    def advance(carry: tuple[Array, Residuals, Array], at: tuple[Array, Array]) -> tuple[Any, None]:
        (h, residuals, hs), (t, first) = carry, at
        h, new = step(params, reset_hidden(first, h), Gates(*_at(residuals[:3], t)))
        return (h, _put(residuals, t, new), _put(hs, t, h)), None

    empty = jnp.zeros_like(gates.n)
    begin = h, Residuals(*gates, empty), empty
    _, residuals, hs = jax.lax.scan(advance, begin, (jnp.arange(len(first)), first))[0]
    return hs, residuals


def _forward_by_kernel(
    params: GRUParams,
    h: Float[Array, "*batch H"],
    x: Float[Array, "rows I"],
    first: Bool[Array, "T *batch"],
    saves: bool = True,
) -> tuple[Float[Array, "T *batch H"], Float[Array, "T R 4*H"] | None]:
    """The same."""
    from jqmix.kernels import gru_kernel

    starts = first.reshape(len(first), -1)
    products = matmul(x, _beside(params.w_i, OF_X)).reshape(*starts.shape, -1)
    hs, residuals = gru_kernel.forward(params, _as_rows(h), products, starts, saves)
    return hs.reshape(*first.shape, -1), residuals


def sums_within(rows: int, inputs: int, hidden: int) -> bool:
    """Whether the weights' gradients are summed step by step, within the loop, or are one product after it.

    Within, a step's arrays are still in a core's cache, while a product over the window reads all of them from
    memory again; but every step reads and writes the sums. Measured on CPUs in whole training
    (``benchmarks/LOG.md``): alone, the product after it may be the faster. Accelerators want few large products.
    Within, ∂ of the inputs takes the place of ∂ of the hidden states: both must have one size.
    """
    fits = inputs == hidden and rows >= 32 and hidden <= 256
    return platform() == "cpu" and fits and not plain("gru_sums_within")


def _unroll_bwd(by_kernel: bool, saved: ForBackward, d_hs: Array) -> tuple[GRUParams, Array, Array, None]:
    if by_kernel:
        sums, d_h, d_x = _backward_by_kernel(saved, d_hs)
    elif sums_within(saved.first[0].size, saved.x.shape[-1], saved.start.shape[-1]):
        sums, d_h, d_x = _backward_within(saved, d_hs)
    else:
        sums, d_h, d_x = _backward_by_scan(saved, d_hs)
    of_params = GRUParams(*(_apart(side, order) for side, order in zip(sums, (OF_X, OF_X, OF_H, OF_H), strict=True)))
    return of_params, d_h, d_x, None


def _step_backward(w_h: Array, d: Array, h: Array, residuals: Residuals) -> tuple[Array, Gates, Array]:
    """From a step's ∂h' = ``d``: its ∂h, ∂ of what goes into its gates, and ∂ of h W_hn; ``w_h``: [3H, H]."""
    into, d_h_n = gate_gradients(d, h, residuals)
    return d * residuals.z + matmul(_beside(into._replace(n=d_h_n), OF_H), w_h), into, d_h_n


def _backward_within(saved: ForBackward, d_hs: Array) -> tuple[GateMatrices, Array, Array]:
    """∂ of the parameters, of the first hidden state and of the inputs."""
    params, start, x, first, hs, residuals = saved
    w_h, w_i = _beside(params.w_h, OF_H).T, _beside(params.w_i, OF_X).T

    def go_back(carry: tuple[Array, GateMatrices, Array], at: tuple[Array, Array]) -> tuple[Any, None]:
        (d_h, sums, d_x), (t, first) = carry, at  # what comes before t in d_x is still d_hs
        before = jnp.maximum(t - 1, 0)
        h = reset_hidden(first, jnp.where(t == 0, start, _at(hs, before)))
        d_h, d, d_h_n = _step_backward(w_h, d_h, h, _at(residuals, t))
        rows = jax.lax.dynamic_slice_in_dim(x, t * first.size, first.size)
        sums = jax.tree.map(jnp.add, sums, _weight_gradients(rows, h, d, d_h_n))
        d_x = _put(d_x, t, matmul(_beside(d, OF_X), w_i))
        # Read after the writing, and for the next step, or all of it would be copied.
        return (reset_hidden(first, d_h) + jnp.where(t == 0, 0.0, _at(d_x, before)), sums, d_x), None

    none = GateMatrices(*(jnp.zeros_like(_beside(gates, OF_X)) for gates in params))
    times = jnp.arange(len(hs)), first
    d_h, sums, d_x = jax.lax.scan(go_back, (d_hs[-1], none, d_hs), times, reverse=True)[0]
    return sums, d_h, d_x


def _backward_by_scan(saved: ForBackward, d_hs: Array) -> tuple[GateMatrices, Array, Array]:
    """The same."""
    params, _, x, first, _, residuals = saved
    before, w_h = saved.before, _beside(params.w_h, OF_H).T

    def go_back(d_h: Array, at: tuple[Array, Array, Residuals, Array]) -> tuple[Array, Gates]:
        d_out, h, residuals, first = at
        d_h, d, _ = _step_backward(w_h, d_h + d_out, h, residuals)
        return reset_hidden(first, d_h), d

    d_h, d = jax.lax.scan(go_back, jnp.zeros_like(d_hs[0]), (d_hs, before, residuals, first), reverse=True)
    sums = _weight_gradients(x, before, d, d.n * residuals.r)
    return sums, d_h, matmul(_beside(d, OF_X), _beside(params.w_i, OF_X).T)


def _backward_by_kernel(saved: ForBackward, d_hs: Array) -> tuple[GateMatrices, Array, Array]:
    """The same. The kernel gives [n_x, r, z, n_h], of which all is computed; then either side takes its columns. To cut
    them first would be to copy them."""
    from jqmix.kernels import gru_kernel

    params, _, x, first, _, residuals = saved
    hidden, starts = d_hs.shape[-1], first.reshape(len(first), -1)
    d_rows, before = (v.reshape(*starts.shape, hidden) for v in (d_hs, saved.before))
    d_h, d_gates = gru_kernel.backward(params, d_rows, before, residuals, starts)
    d = _as_rows(d_gates)
    w_i, w_h, biases = weight_gradient(x, d), weight_gradient(_as_rows(before), d), jnp.sum(d, axis=0)
    of_x, of_h = slice(3 * hidden), slice(hidden, None)
    sums = GateMatrices(w_i[:, of_x], biases[of_x], w_h[:, of_h], biases[of_h])
    into_x = jnp.concatenate([_beside(params.w_i, OF_X), jnp.zeros_like(params.w_i.n)], axis=-1).T
    return sums, d_h.reshape(d_hs.shape[1:]), matmul(d, into_x).reshape(*first.shape, -1)


def _weight_gradients(x: Array, h: Array, d: Gates, d_h_n: Array) -> GateMatrices:
    """∂ of the parameters, summed over all axes but the last; a side's gates have one product."""
    w_i, b_i = _side_gradients(x, _beside(d, OF_X))
    w_h, b_h = _side_gradients(h, _beside(d._replace(n=d_h_n), OF_H))
    return GateMatrices(w_i, b_i, w_h, b_h)


def _side_gradients(x: Array, d: Array) -> tuple[Array, Array]:
    rows, d_rows = _as_rows(x), _as_rows(d)
    return matmul(rows.T, d_rows), jnp.sum(d_rows, axis=0)


unroll.defvjp(_unroll_fwd, _unroll_bwd)
