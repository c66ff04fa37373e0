"""What a core is: the part of the agent between encoder and head, with or without memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.kernels.platform import platform

Params = Any
State = Any  # a pytree; every leaf leads with the batch's axes


class CoreSizes(NamedTuple):
    """Inputs I and outputs H of a core. ``orthogonal``: its dense layers are asked to begin as orthogonal ones."""

    n_in: int
    hidden: int
    orthogonal: bool = False


class Core(NamedTuple):
    """Pure functions. Every agent's memory is one row of a batch; x is [*batch, I], ``first`` is [*batch].

    ``init(key) -> params``
    ``initial_state(*batch) -> state``, a pytree with leaves [*batch, …]: what an episode starts with.
    ``step(params, state, x, first) -> (output [*batch, H], state)``. Where ``first`` is true an episode starts: there
    ``state`` is ignored, and the initial one takes its place (:func:`reset_where`).
    ``unroll(params, state, x [T, *batch, I], first [T, *batch]) -> (outputs [T, *batch, H], last state)``: what T
    steps give. Left out, it is a scan over ``step`` (:func:`unroll_core`).
    """

    init: Callable[[Array], Params]
    initial_state: Callable[..., State]
    step: Callable[[Params, State, Array, Array], tuple[Array, State]]
    unroll: Callable[[Params, State, Array, Array], tuple[Array, State]] | None = None


def reset_where(first: Bool[Array, "*batch"], state: State, initial: State = None) -> State:
    """``state`` with the initial one, zeros unless given, where ``first`` is true."""
    initial = jax.tree.map(jnp.zeros_like, state) if initial is None else initial

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(first.reshape(*first.shape, *(1,) * (old.ndim - first.ndim)), new, old)

    return jax.tree.map(choose, initial, state)


def unroll_core(
    core: Core, params: Params, state: State, x: Float[Array, "T *batch I"], first: Bool[Array, "T *batch"]
) -> tuple[Float[Array, "T *batch H"], State]:
    """The core's outputs over a window, and its last state."""
    if platform() == "tpu" and first.ndim > 2:
        return _unroll_rows(core, params, state, x, first)
    if core.unroll is not None:
        return core.unroll(params, state, x, first)

    def advance(state: State, slot: tuple[Array, Array]) -> tuple[State, Array]:
        output, state = core.step(params, state, *slot)
        return state, output

    state, outputs = jax.lax.scan(advance, state, (x, first))
    return outputs, state


def _unroll_rows(core: Core, params: Params, state: State, x: Array, first: Array) -> tuple[Array, State]:
    """The same with all rows on one axis: with several, XLA may lay a window out on a TPU with time in the place of
    what a step reads at once."""
    window = first.shape
    rows = first.reshape(len(first), -1)
    state = jax.tree.map(lambda s: s.reshape(rows.shape[1], *s.shape[first.ndim - 1 :]), state)
    outputs, state = unroll_core(core, params, state, x.reshape(*rows.shape, x.shape[-1]), rows)
    state = jax.tree.map(lambda s: s.reshape(*window[1:], *s.shape[1:]), state)
    return outputs.reshape(*window, outputs.shape[-1]), state
