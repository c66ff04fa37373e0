"""Trees of arrays as one array of 32-bit words, a row for every window or rollout: what devices send one another at
once, and accelerators record at once, whatever its types are."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32


def to_rows(tree: Any, axes: Any) -> tuple[UInt32[Array, "B K"], Callable[[UInt32[Array, "n K"]], Any]]:
    """The rows of ``tree``, and the way back: from rows, of which there may be more or fewer, to a tree of them.

    ``axes`` says which axis of the arrays counts the rows; one number stands for all arrays that are below it.
    """
    leaves, structure = jax.tree.flatten(tree)
    along = jax.tree.leaves(jax.tree.map(lambda axis, below: jax.tree.map(lambda _: axis, below), axes, tree))
    leading = [jnp.moveaxis(x, axis, 0) for x, axis in zip(leaves, along, strict=True)]
    ends = np.cumsum([math.prod(x.shape[1:]) for x in leading])

    def restored(rows: UInt32[Array, "n K"]) -> Any:
        pieces = jnp.split(rows, ends[:-1], axis=1)
        back = [from_words(p, x.dtype).reshape(-1, *x.shape[1:]) for p, x in zip(pieces, leading, strict=True)]
        return jax.tree.unflatten(structure, [jnp.moveaxis(x, 0, axis) for x, axis in zip(back, along, strict=True)])

    return jnp.concatenate([to_words(x).reshape(x.shape[0], -1) for x in leading], axis=1), restored


def fit_rows(tree: Any) -> bool:
    """Whether all its arrays are numbers of 32 bits or fewer: keys of random numbers are not, for example."""
    dtypes = [x.dtype for x in jax.tree.leaves(tree)]
    return all(not jnp.issubdtype(dtype, jax.dtypes.prng_key) and dtype.itemsize <= 4 for dtype in dtypes)


def _bits(dtype: Any) -> jnp.dtype:
    return jnp.dtype(f"uint{8 * dtype.itemsize}")


def to_words(x: Shaped[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """One word for each number; smaller types leave some of it unused, as what is sent is small, and what it costs is
    the number of sendings."""
    if jnp.issubdtype(x.dtype, jnp.bool_):
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, _bits(x.dtype)).astype(jnp.uint32)


def from_words(words: UInt32[Array, "*shape"], dtype: Any) -> Shaped[Array, "*shape"]:
    if jnp.issubdtype(dtype, jnp.bool_):
        return words.astype(bool)
    return jax.lax.bitcast_convert_type(words.astype(_bits(dtype)), dtype)
