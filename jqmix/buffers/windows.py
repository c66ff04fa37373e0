"""Windows as they are stored: time-major like everything else, and as small as the environment can make them.

What the agents saw is kept as the environment packs it (``pack``), its floating-point numbers, where that is asked for,
in half the bits; actions in the smallest integer that holds them. A ring of windows is written in place: where the next
ones go is a shared counter, never batched over members, so that a write is one contiguous update.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Int, Shaped

from jqmix.envs.base import BatchedDecPOMDP
from jqmix.kernels.platform import platform
from jqmix.types import Packed, Window

# Which axis of a stored window counts the windows: steps lead with time, what a window starts from does not.
BATCH_AXIS: Any = Packed(1, 1, 1, 1, 1, 1, start=0)  # type: ignore[arg-type]
LANES = 128  # numbers of a row of a TPU's tile
LONGEST = 2**15  # of rows that a TPU's compiler gathers from where they are; found with libtpu 0.0.52


def action_dtype(n_actions: int) -> jnp.dtype:
    return jnp.dtype(jnp.int8 if n_actions <= 127 else jnp.int16)


def _float_dtype(x: Any, dtype: str) -> jnp.dtype:
    """``dtype`` where ``x`` has floats, else its own."""
    return jnp.dtype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype


def empty(env: BatchedDecPOMDP, slots: int, count: int, start: Any = None, dtype: str = "float32") -> Packed:
    """``count`` windows of ``slots`` slots that hold nothing, with the seen floats in ``dtype``.

    ``start``: the shapes of what a window starts from, leaves [E, …]; None where windows begin at a reset.
    """
    n, a = env.spec.n_agents, env.spec.n_actions
    packed = jax.eval_shape(lambda key: env.pack(*env.reset(key)), jax.random.key(0))
    return Packed(
        seen=jax.tree.map(lambda x: jnp.zeros((slots, count, *x.shape[1:]), _float_dtype(x, dtype)), packed),
        action=jnp.zeros((slots, count, n), action_dtype(a)),
        reward=jnp.zeros((slots, count)),
        discount=jnp.zeros((slots, count)),
        first=jnp.zeros((slots, count), bool),
        last=jnp.zeros((slots, count), bool),
        start=jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), start),
    )


def as_ring(windows: Packed) -> Packed:
    """Windows in the form in which a buffer holds them: as they are, but on accelerators each of them as one row.

    Of windows as they are, XLA has its own choice of the order of axes. A TPU's put the axis that counts windows where
    its tiles waste the least, a GPU's where members are vmapped; to draw some, both then copied the whole ring in every
    iteration.
    """
    if not _in_rows():
        return windows

    def rows(axis: int, x: Any) -> Any:
        return jax.tree.map(lambda x: _whole_tiles(jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)), x)

    return jax.tree.map(rows, BATCH_AXIS, windows)


def _whole_tiles(rows: Array) -> Array:
    """A TPU's rows end with a tile, but for the shortest. Of others it may keep columns, and then copies the ring, to
    rows that end with a tile, to draw from it."""
    pads = platform() == "tpu" and 2 * rows.shape[1] >= LANES
    return jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % LANES if pads else 0)))


def _stay_rows(ring: Array) -> Array:
    """A ring of such rows: else a TPU takes for it the order in which new windows came."""
    if platform() != "tpu" or ring.shape[1] % LANES:
        return ring
    return with_layout_constraint(ring, Layout(major_to_minor=(0, 1)))


def _in_rows() -> bool:
    return platform() != "cpu"


def ring_axes() -> Packed:
    """The axes along which the arrays of a buffer's ring count windows."""
    return jax.tree.map(lambda axis: 0, BATCH_AXIS) if _in_rows() else BATCH_AXIS


def capacity(ring: Packed) -> int:
    """How many windows a buffer's ring has room for."""
    return ring.reward.shape[0 if _in_rows() else 1]


def write(ring: Packed, windows: Packed, position: Int[Array, ""], first: Int[Array, ""] | None = None) -> Packed:
    """A buffer's ring with E windows written at ``position``, a multiple of E as its capacity is.

    ``first``: as in :func:`write_section`, where ``ring`` is one of a larger one.
    """
    if first is not None:
        return write_section(ring, windows, position, first)

    def put(axis: int, ring: Any, new: Any) -> Any:
        update = partial(jax.lax.dynamic_update_slice_in_dim, axis=0 if _in_rows() else axis)
        return jax.tree.map(lambda x, y: _stay_rows(update(x, y.astype(x.dtype), position)), ring, new)

    return jax.tree.map(put, BATCH_AXIS, ring, as_ring(windows))


def draw(ring: Packed, index: Int[Array, " B"], like: Packed) -> Packed:
    """The windows at ``index`` of a buffer's ring; ``like``: what a window looks like, in an array or its shape."""
    if not _in_rows():
        return take(ring, index)

    def restored(axis: int, rows: Any, like: Any) -> Any:
        def restore(rows: Array, like: Any) -> Array:
            window = (*like.shape[:axis], *like.shape[axis + 1 :])
            one_by_one = platform() == "tpu" and rows.shape[1] > LONGEST
            drawn = row_by_row(rows, index) if one_by_one else rows[index]
            return jnp.moveaxis(drawn[:, : math.prod(window)].reshape(len(index), *window), 0, axis)

        return jax.tree.map(restore, rows, like)

    return jax.tree.map(restored, BATCH_AXIS, ring, like)


@custom_vmap
def row_by_row(rows: Shaped[Array, "n K"], index: Int[Array, " B"]) -> Shaped[Array, "B K"]:
    """``rows[index]``, one by one: of rows longer than ``LONGEST`` a TPU's compiler copies all to gather some."""

    def row(i: Int[Array, ""]) -> Array:
        # Without the barrier all rows may be rounded to bfloat16, as those that are drawn are in products.
        return jax.lax.optimization_barrier(jax.lax.dynamic_index_in_dim(rows, i, keepdims=False))

    return jax.lax.map(row, index)


@row_by_row.def_vmap
def _row_by_row_of_members(size: int, batched: list[bool], rows: Array, index: Array) -> tuple[Array, bool]:
    """The rows of all members are one array."""
    rows, index = (
        x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
        for is_batched, x in zip(batched, (rows, index), strict=True)
    )
    offsets = jnp.arange(size)[:, None] * rows.shape[1]
    drawn = row_by_row(rows.reshape(-1, rows.shape[2]), (index + offsets).reshape(-1))
    return drawn.reshape(*index.shape, -1), True


def write_section(section: Packed, windows: Packed, position: Int[Array, ""], first: Int[Array, ""]) -> Packed:
    """``section``, which holds the windows of a larger ring from number ``first`` on, with those of E windows that fall
    into it, where they are written at ``position`` of that ring. It has room for E at least."""
    count, room = windows.reward.shape[1], capacity(section)
    at = jnp.clip(position - first, 0, room - count)
    source = first + at + jnp.arange(count) - position  # which of the new windows goes where
    falls, source = (source >= 0) & (source < count), jnp.clip(source, 0, count - 1)

    def put(axis: int, ring: Any, new: Any) -> Any:
        axis = 0 if _in_rows() else axis

        def written(x: Array, y: Array) -> Array:
            kept = jax.lax.dynamic_slice_in_dim(x, at, count, axis)
            here = falls.reshape(-1, *(1,) * (x.ndim - axis - 1))
            chosen = jnp.where(here, jnp.take(y, source, axis=axis).astype(x.dtype), kept)
            return _stay_rows(jax.lax.dynamic_update_slice_in_dim(x, chosen, at, axis))

        return jax.tree.map(written, ring, new)

    return jax.tree.map(put, BATCH_AXIS, section, as_ring(windows))


def take(ring: Packed, index: Int[Array, " B"]) -> Packed:
    """The windows at ``index``."""

    def rows(axis: int, ring: Any) -> Any:
        return jax.tree.map(lambda x: jnp.take(x, index, axis=axis), ring)

    return jax.tree.map(rows, BATCH_AXIS, ring)


def unpack(env: BatchedDecPOMDP, packed: Packed) -> Window:
    """The windows as they were collected, but for what their floats lost to a smaller ``dtype``."""
    seen = jax.tree.map(lambda x: x.astype(_float_dtype(x, "float32")), packed.seen)
    steps = packed.reward, packed.discount, packed.first, packed.last
    return Window(*env.unpack(seen), packed.action.astype(jnp.int32), *steps, start=packed.start)
