"""Trees of parameters from the vectors that loops carry and optimisers step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jqmix.kernels.platform import plain, platform
from jqmix.kernels.self_test import mismatch, trouble_with


def restorer(tree: Any) -> Callable[[Float[Array, " n"]], Any]:
    """The way from such a vector as ``ravel_pytree`` makes of ``tree`` to a tree of its kind.

    On a GPU it is one kernel (:mod:`jqmix.kernels.pieces`), where it gets that right.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not asks_to_take_apart(leaves) or kernel_trouble() is not None:
        return ravel_pytree(tree)[1]
    shapes = tuple(x.shape for x in leaves)
    return lambda vector: jax.tree.unflatten(structure, _in_one_kernel(vector, shapes))


def asks_to_take_apart(leaves: list[Array]) -> bool:
    """Whether programs for this platform are to have the kernel, if that proves right. It copies arrays of float32,
    none of them empty; for others the vector would have to be converted."""
    return platform() == "gpu" and not plain("pieces") and all(x.size and x.dtype == jnp.float32 for x in leaves)


def _in_one_kernel(vector: Array, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    from jqmix.kernels.pieces import take_apart  # where it is asked for: Pallas takes a while to import

    return take_apart(vector, shapes)


def kernel_trouble() -> str | None:
    """What is wrong with the kernel on the GPU that is there; None where nothing is."""
    return trouble_with("taking parameters apart", lambda: mismatch(_both_forms, _vectors))


# The proof.

MEMBERS = 2
TREE = {"large": np.zeros((64, 33)), "one": np.zeros(()), "others": [np.zeros(7), np.zeros((3, 2, 5))]}


def _both_forms(vectors: Array) -> tuple[Any, Any]:
    tree = jax.tree.map(lambda x: jnp.zeros(x.shape), TREE)
    shapes = tuple(x.shape for x in jax.tree.leaves(tree))
    by_kernel = jax.vmap(lambda vector: _in_one_kernel(vector, shapes))(vectors)
    return by_kernel, jax.tree.leaves(jax.vmap(ravel_pytree(tree)[1])(vectors))


def _vectors() -> tuple[Array]:
    size = sum(x.size for x in jax.tree.leaves(TREE))
    return (jnp.asarray(np.random.default_rng(0).normal(size=(MEMBERS, size)), jnp.float32),)
