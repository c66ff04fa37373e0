"""What a scan records slot by slot, in as few arrays as there are types: for accelerators, where every array of a
record is a launch of its own at every slot. The plain form is the tree itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jqmix.kernels.platform import plain, platform

Rows = dict[str, Array]  # by type, [.., E, F]


class Records(NamedTuple):
    """How trees of one structure, with leaves [E, ..], lie in rows. Whether something is so is a 0 or a 1 there."""

    tree: Any
    shapes: Sequence[Any]  # of the leaves

    def pack(self, record: Any) -> Any:
        """A slot's record."""
        if not packs_records():
            return record
        rows: dict[str, list[Array]] = {}
        for x in jax.tree.leaves(record):
            rows.setdefault(_row_type(x), []).append(x.astype(_row_type(x)).reshape(x.shape[0], -1))
        return {name: jnp.concatenate(parts, axis=-1) for name, parts in rows.items()}

    def unpack(self, rows: Any) -> Any:
        """The records of all slots, leaves [T, E, ..]."""
        if not packs_records():
            return rows
        taken, leaves = dict.fromkeys(rows, 0), []
        for shape in self.shapes:
            name, width = _row_type(shape), shape.size // shape.shape[0]
            part = rows[name][..., taken[name] : taken[name] + width]
            taken[name] += width
            leaves.append(part.astype(shape.dtype).reshape(*part.shape[:-1], *shape.shape[1:]))
        return jax.tree.unflatten(self.tree, leaves)


def records_like(record: Any) -> Records:
    """``record``: a tree of arrays [E, ..], or their shapes."""
    leaves, tree = jax.tree.flatten(record)
    return Records(tree, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves])


def packs_records() -> bool:
    return platform() != "cpu" and not plain("records")


def _row_type(x: Any) -> str:
    return "float32" if x.dtype == jnp.bool_ else x.dtype.name
