"""A member divided among the devices along a mesh axis: its batches, each device computing its share of the gradient,
and where that is asked for its rollouts and its buffer, too.

All of these devices make the same random draws, and hold the same of everything else. So what comes out is what one
device makes, but for the order of sums.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jqmix.buffers import windows
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.kernels.rows import to_rows
from jqmix.types import Packed, TimeStep

AXIS = "batch"


class Split(NamedTuple):
    """How many devices share something. With one, nothing is divided, and no mesh is needed."""

    parts: int = 1
    rollouts: bool = False  # whether rollouts and the buffer are divided as batches are

    @property
    def over_rollouts(self) -> "Split":
        """How rollouts are divided, and with them the buffer."""
        return self if self.rollouts else WHOLE

    def mine(self, drawn: Shaped[Array, "*shape"], axis: int = 0) -> Shaped[Array, "*share"]:
        """This device's share of what was drawn."""
        if self.parts == 1:
            return drawn
        size = drawn.shape[axis] // self.parts
        return jax.lax.dynamic_slice_in_dim(drawn, jax.lax.axis_index(AXIS) * size, size, axis)

    def gather(self, shares: Any, axes: Any = 0) -> Any:
        """All devices' shares, in the order in which :meth:`mine` divides them. ``axes``: those that are divided, a
        tree of which every leaf may stand for many arrays. All arrays are sent at once."""
        if self.parts == 1:
            return shares
        rows, restored = to_rows(shares, axes)
        return restored(jax.lax.all_gather(rows, AXIS, tiled=True))

    def total(self, shares: Any) -> Any:
        """The sum of all devices' shares, leaf by leaf."""
        return shares if self.parts == 1 else jax.lax.psum(shares, AXIS)

    def among_zeros(self, share: Float[Array, " share"]) -> Float[Array, " B"]:
        """This device's share in its place among zeros: the :meth:`total` is what :meth:`gather` gives, and takes no
        sending of its own where something else is summed."""
        if self.parts == 1:
            return share
        size = share.shape[0]
        zeros = jnp.zeros((size * self.parts,))
        return jax.lax.dynamic_update_slice_in_dim(zeros, share, jax.lax.axis_index(AXIS) * size, 0)

    # A buffer of which every device holds a section, one after another

    def first(self, section: int) -> Int[Array, ""]:
        """The number of the buffer's window with which this device's section, of so many, begins."""
        return jax.lax.axis_index(AXIS) * section

    def fetch(self, ring: Packed, index: Int[Array, "*updates B"], like: Packed) -> Packed:
        """This device's share of the windows at ``index``, wherever they are; leaves lead with ``updates``.
        ``like``: as in :func:`windows.draw`.

        Where devices hold sections, each sends every other one as many windows as that needs, of which those that it
        has are the right ones: how many there are is known to nobody before. All are sent at once. (A sum with zeros
        for the others would send as much; TPUs have none of whole numbers that leaves each device its share alone.)
        """
        *updates, batch = index.shape
        if not self.rollouts:
            draw = lambda drawn: windows.draw(ring, self.mine(drawn), like)  # noqa: E731
            for _ in updates:
                draw = jax.vmap(draw)
            return draw(index)
        share, section = batch // self.parts, windows.capacity(ring)
        needed = jnp.moveaxis(index.reshape(*updates, self.parts, share), -2, 0).reshape(self.parts, -1)  # by device
        at = jnp.clip(needed - self.first(section), 0, section - 1)
        rows, restored = to_rows(windows.draw(ring, at.reshape(-1), like), windows.BATCH_AXIS)
        sent = jax.lax.all_to_all(rows.reshape(*at.shape, -1), AXIS, 0, 0)
        holder = self.mine(needed)[0] // section
        for _ in updates:
            restored = jax.vmap(restored)
        return restored(sent[holder, jnp.arange(len(holder))].reshape(*updates, share, -1))


WHOLE = Split()


class RolloutsShare:
    """Some of a member's environments, those of this device: what is drawn is drawn for all, as one device would, and
    of that taken for these."""

    def __init__(self, every: BatchedDecPOMDP, mine: BatchedDecPOMDP, split: Split):
        self.spec, self.size = mine.spec, mine.size
        self.step_with, self.pack, self.unpack = mine.step_with, mine.pack, mine.unpack
        self._every, self._split, self._axes = every, split, noise_axes(every, mine)

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        return jax.tree.map(self._split.mine, self._every.reset(key))

    def noise(self, key: Array) -> Any:
        return jax.tree.map(self._split.mine, self._every.noise(key), self._axes)

    def step(self, key: Array, state: Any, actions: Int[Array, "E N"]) -> tuple[Any, TimeStep]:
        return self.step_with(self.noise(key), state, actions)


def noise_axes(every: BatchedDecPOMDP, some: BatchedDecPOMDP) -> Any:
    """Along which axis the arrays of a step's noise count environments, by their shapes for more and for fewer; −1
    where there is none, or several, as of an environment that draws within its step."""

    def axis(more: Any, fewer: Any) -> int:
        differ = [i for i, (m, f) in enumerate(zip(more.shape, fewer.shape, strict=True)) if m != f]
        fits = len(differ) == 1 and more.shape[differ[0]] == every.size and fewer.shape[differ[0]] == some.size
        return differ[0] if fits else -1

    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.tree.map(axis, jax.eval_shape(every.noise, key), jax.eval_shape(some.noise, key))
