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
from jaxtyping import Array, Bool

from jqmix.kernels.platform import platform

MOST = 4096  # numbers of the largest array of a program: what fits its registers


def power_of_two(count: int) -> int:
    """The least that is not below ``count``."""
    return 1 << (count - 1).bit_length()


class Columns:
    """A kernel's columns of an array: ``x[...]`` reads all of it, ``x[i]`` a part.

    What is beyond the array's end, as the axes of a kernel's arrays are powers of two, reads as zeros.
    """

    def __init__(self, ref: Any, shape: tuple[int, ...]):
        self.ref, self.shape = ref, shape  # without the columns

    def __getitem__(self, index: Any) -> Array:
        part = self.ref if index is Ellipsis else self.ref.at[index]
        shape = self.shape if index is Ellipsis else self.shape[1:]
        return triton.load(part, mask=_within(part.shape, shape), other=jnp.zeros((), part.dtype))


def _within(block: tuple[int, ...], shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Which of a block's numbers are in the array; ``shape`` is its own without the columns."""
    mask = jnp.ones(block, bool)
    for axis, end in enumerate(shape):
        if end < block[axis]:
            mask &= jax.lax.broadcasted_iota(jnp.int32, block, axis) < end
    return mask


def over_columns(f: Callable[[Any, Any], Any], changing: Any, given: Any, most: int) -> Any:
    """What ``f(changing, given)`` makes of ``changing``: both are trees of arrays [.., n, E].

    ``f`` is traced for blocks of columns (the last axis), of which it gets :class:`Columns`. Their other axes, and
    those of what it returns, are raised to powers of two. Arrays of ``given`` whose last axis is 1 are the same for all
    columns. ``most``: numbers of a column of the largest array within ``f``. Off a GPU the kernel is interpreted: for
    tests alone.
    """
    count = jax.tree.leaves(changing)[0].shape[-1]
    block = min(power_of_two(count), power_of_two(max(MOST // most, 1)))
    if count % block:
        pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -count % block if x.shape[-1] > 1 else 0)])  # noqa: E731
        padded = over_columns(f, jax.tree.map(pad, changing), jax.tree.map(pad, given), most)
        return jax.tree.map(lambda x: x[..., :count], padded)
    return _call(f, changing, given, block)


def _call(f: Callable[[Any, Any], Any], changing: Any, given: Any, block: int) -> Any:
    arrays, tree = jax.tree.flatten((changing, given))
    outs, out_tree = jax.tree.flatten(changing)

    def kernel(*refs: Any) -> None:
        ins = [Columns(ref, x.shape[:-1]) for ref, x in zip(refs, arrays, strict=False)]
        for ref, x, value in zip(
            refs[len(arrays) :], outs, jax.tree.leaves(f(*jax.tree.unflatten(tree, ins))), strict=True
        ):
            triton.store(ref, value, mask=_within(ref.shape, x.shape[:-1]))

    def share(x: Array) -> pl.BlockSpec:
        every = x.shape[-1] == 1
        shape = *map(power_of_two, x.shape[:-1]), 1 if every else block
        return pl.BlockSpec(shape, lambda i: (*(0 for _ in shape[:-1]), 0 if every else i))

    on_gpu = platform() == "gpu"
    results = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs],
        grid=(outs[0].shape[-1] // block,),
        in_specs=[share(x) for x in arrays],
        out_specs=[share(x) for x in outs],
        interpret=not on_gpu,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1) if on_gpu else None,
    )(*arrays)
    return jax.tree.unflatten(out_tree, results)
