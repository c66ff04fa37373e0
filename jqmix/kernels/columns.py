"""A function that looks at every column of its arrays on its own, as one kernel: for GPUs, by Pallas and Triton.

XLA makes a kernel of its own of whatever is summed over; a few operations on a few numbers each, again and again, are
then bound by launches. Here each program of one kernel computes all of it for some columns.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, UInt32

from jqmix.kernels.platform import platform
from jqmix.kernels.rows import from_words, to_rows, to_words

MOST = 4096  # numbers of the largest array of a program: what fits its registers


def power_of_two(count: int) -> int:
    """The least that is not below ``count``."""
    return 1 << (count - 1).bit_length()


class Columns:
    """A kernel's columns of an array: ``x[...]`` reads all of [n, E], ``x[i]`` a part of [m, n, E].

    What is beyond the array's end, as the axes of a kernel's arrays are powers of two, reads as zeros.
    """

    def __init__(self, block: "_Block", start: int, array: Any):
        self._block, self._start, self._dtype = block, start, array.dtype
        *_, self._length, _ = array.shape

    def __getitem__(self, index: Any) -> Array:
        start = self._start if index is Ellipsis else self._start + index * self._length
        return from_words(self._block.load(start, self._length), self._dtype)

    def row(self, i: Array) -> Array:
        """Row i of [n, E], as [1, E]."""
        return from_words(self._block.load(self._start + i, 1), self._dtype)


class _Block(NamedTuple):
    """Of an array of rows, one for each of the kernel's columns, what a program has."""

    ref: Any
    is_there: Bool[Array, " block"]

    def load(self, start: Any, length: int) -> UInt32[Array, "n block"]:
        part, mask = self._part(start, length)
        return triton.load(part, mask=mask, other=jnp.uint32(0)).T

    def store(self, start: int, length: int, value: UInt32[Array, "n block"]) -> None:
        part, mask = self._part(start, length)
        triton.store(part, value.T, mask=mask)

    def _part(self, start: Any, length: int) -> tuple[Any, Bool[Array, "block n"]]:
        width = power_of_two(length)
        return self.ref.at[:, pl.ds(start, width)], self.is_there[:, None] & (jnp.arange(width) < length)[None]


def over_columns(f: Callable[[Any, Any], Any], changing: Any, given: Any, most: int) -> Any:
    """What ``f(changing, given)`` makes of ``changing``: both are trees of arrays [.., n, E] of 32 bits a number.

    ``f`` is traced for blocks of columns (the last axis), of which it gets :class:`Columns`. Their other axes, and
    those of what it returns, are raised to powers of two. Arrays of ``given`` whose last axis is 1 are the same for all
    columns. ``most``: numbers of a column of the largest array within ``f``. Off a GPU the kernel is interpreted: for
    tests alone.
    """
    count = jax.tree.leaves(changing)[0].shape[-1]
    given = jax.tree.map(lambda x: jnp.broadcast_to(x, (*x.shape[:-1], count)), given)
    return _call(f, changing, given, min(power_of_two(count), power_of_two(max(MOST // most, 1))))


def _call(f: Callable[[Any, Any], Any], changing: Any, given: Any, block: int) -> Any:
    """All that the kernel reads is one array with a row for each column, and all that it writes: each would be copied
    by a launch of its own, and rows are what arrays of environments are anyway."""
    (arrays, tree), (outs, out_tree) = jax.tree.flatten((changing, given)), jax.tree.flatten(changing)
    (rows, _), (before, restored) = to_rows(arrays, -1), to_rows(outs, -1)
    count, widest = rows.shape[0], max(power_of_two(x.shape[-2]) for x in arrays)

    def kernel(rows: Any, after: Any) -> None:
        is_there = pl.program_id(0) * block + jnp.arange(block) < count
        read, written = _Block(rows, is_there), _Block(after, is_there)
        ins = [Columns(read, start, x) for start, x in zip(_starts(arrays), arrays, strict=True)]
        values = jax.tree.leaves(f(*jax.tree.unflatten(tree, ins)))
        for start, x, value in zip(_starts(outs), outs, values, strict=True):
            written.store(start, x.shape[-2], to_words(value))

    def share(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((block, x.shape[1] + widest), lambda i: (i, 0))  # reads and writes go beyond, masked

    on_gpu = platform() == "gpu"
    after = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(before.shape, before.dtype),
        grid=(pl.cdiv(count, block),),
        in_specs=[share(rows)],
        out_specs=share(before),
        interpret=not on_gpu,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1) if on_gpu else None,
    )(rows)
    return jax.tree.unflatten(out_tree, restored(after))


def _starts(arrays: Sequence[Array]) -> list[int]:
    """At which column of the rows each array begins."""
    return list(itertools.accumulate((math.prod(x.shape[:-1]) for x in arrays), initial=0))[:-1]
