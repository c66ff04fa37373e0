"""A function that looks at every column of its arrays on its own, as one kernel: for GPUs, by Pallas and Triton.

XLA makes a kernel of its own of whatever is summed over; a few operations on a few numbers each, again and again, are
then bound by launches. Here each program of one kernel computes all of it for some columns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jqmix.kernels.platform import platform

MOST = 4096  # numbers of the largest array of a program: what fits its registers


def power_of_two(count: int) -> int:
    """The least that is not below ``count``: all axes of a kernel's arrays are powers of two."""
    return 1 << (count - 1).bit_length()


def over_columns(f: Callable[..., Any], columns: Any, fixed: Any, largest: int) -> Any:
    """f(columns, fixed): trees of arrays, those of ``columns`` and of the result with the columns as the last axis.

    ``f`` reads its arrays by indexing them, ``x[...]`` or ``x[i]``, as within the kernel they are references. All other
    axes are powers of two. ``largest``: numbers of a column of the largest array within ``f``. Off a GPU the
    kernel is interpreted: for tests alone.
    """
    leaves, tree = jax.tree.flatten(columns)
    constants, fixed_tree = jax.tree.flatten(fixed)
    count = leaves[0].shape[-1]
    block = min(power_of_two(count), power_of_two(max(MOST // largest, 1)))
    padding = -count % block
    padded = [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) if padding else x for x in leaves]
    shaped = lambda x: jax.ShapeDtypeStruct((*x.shape[:-1], block), x.dtype)  # noqa: E731
    out = jax.eval_shape(f, jax.tree.unflatten(tree, map(shaped, padded)), fixed)
    outs, out_tree = jax.tree.flatten(out)

    def kernel(*refs: Any) -> None:
        ends = len(leaves), len(leaves) + len(constants)
        given = jax.tree.unflatten(tree, refs[: ends[0]]), jax.tree.unflatten(fixed_tree, refs[ends[0] : ends[1]])
        result = f(*given)
        for ref, value in zip(refs[ends[1] :], jax.tree.leaves(result), strict=True):
            ref[...] = value

    def share(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec((*shape[:-1], block), lambda i: (*(0 for _ in shape[:-1]), i))

    def whole(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i: tuple(0 for _ in shape))

    on_gpu = platform() == "gpu"
    results = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((*x.shape[:-1], count + padding), x.dtype) for x in outs],
        grid=((count + padding) // block,),
        in_specs=[share(x.shape) for x in padded] + [whole(x.shape) for x in constants],
        out_specs=[share(x.shape) for x in outs],
        interpret=not on_gpu,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1) if on_gpu else None,
    )(*padded, *constants)
    return jax.tree.unflatten(out_tree, [x[..., :count] for x in results])
