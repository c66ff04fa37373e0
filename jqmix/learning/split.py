"""A batch divided among the devices along a mesh axis, each computing its share of the gradient."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Shaped

AXIS = "batch"


class Split(NamedTuple):
    """How many devices share a batch. With one, nothing is divided, and no mesh is needed.

    All of them hold the same member and make the same random draws; only the windows that they learn from differ.
    """

    parts: int = 1

    def mine(self, drawn: Shaped[Array, " B"]) -> Shaped[Array, " share"]:
        """This device's share of what was drawn."""
        if self.parts == 1:
            return drawn
        size = drawn.shape[0] // self.parts
        return jax.lax.dynamic_slice_in_dim(drawn, jax.lax.axis_index(AXIS) * size, size)

    def gather(self, share: Shaped[Array, " share"]) -> Shaped[Array, " B"]:
        """All devices' shares, in the order in which :meth:`mine` divides them."""
        return share if self.parts == 1 else jax.lax.all_gather(share, AXIS, tiled=True)

    def total(self, shares: Any) -> Any:
        """The sum of all devices' shares, leaf by leaf."""
        return shares if self.parts == 1 else jax.lax.psum(shares, AXIS)


WHOLE = Split()
