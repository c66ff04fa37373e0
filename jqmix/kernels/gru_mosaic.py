"""Brings the recurrence's programs (:mod:`jqmix.kernels.gru_kernel`) to a GPU by Pallas' Mosaic.

For jax from 0.11.2 on. Products are of bfloat16 on the tensor cores, as GPUs have them from Ampere on; each float32 is
two of them, its rounded value and the rest, and three products of four are nearly float32's own (the relative error is
about 2⁻¹⁶, where TF32, which XLA takes, has 2⁻¹¹).

A program is four warps. Each computes a quarter of the columns, and keeps its part of the weights in registers. The
left operand passes from one warp to the others through shared memory.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu
from jaxtyping import Array

gpu: Any = mosaic_gpu  # types are checked against an earlier version, too, which has less

ROWS = 16  # of a tensor core's product
WARPS = 4
BF16 = jnp.bfloat16
LEFT, RIGHT, SUM = (kind(BF16, m_warps=1) for kind in (gpu.Layout.MMA_LHS, gpu.Layout.MMA_RHS, gpu.Layout.MMA_ACC))


def width(hidden: int) -> int:
    """The least width that is not less and that a program takes: a warp's columns come in eights."""
    return -(-hidden // (8 * WARPS)) * 8 * WARPS


@dataclass(frozen=True)
class RowsByMosaic:
    """``hidden`` columns of a program's rows of an array [M, T, R, ..], or its only one; read and written a step at a
    time."""

    array: Any
    member: Any
    rows: Any
    start: int
    hidden: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    def __getitem__(self, t: Any) -> Array:
        if self.shape[-1] == 1:
            return _spread(_load(self.array.at[self.member, t, self.rows, 0], SUM.reduce(1)), self.hidden, axis=0)
        return _load(self.array.at[self.member, t, self.rows, self._columns], SUM)

    def __setitem__(self, t: Any, value: Array) -> None:
        self.array[self.member, t, self.rows, self._columns] = value

    @property
    def _columns(self) -> Any:
        return pl.ds(self.start, self.hidden)


def _load(ref: Any, layout: Any) -> Array:
    return gpu.load(ref, layout=layout, optimized=False)


def _spread(x: Array, hidden: int, axis: int) -> Array:
    """[ROWS, H] from what stands on its ``axis``."""
    return gpu.layout_cast(jax.lax.broadcast_in_dim(x, (ROWS, hidden), (axis,)), SUM)


def _in_two(x: Array) -> tuple[Array, Array]:
    """float32 as the sum of two bfloat16: rounded, and the rest."""
    high = x.astype(BF16)
    return high, (x - high.astype(jnp.float32)).astype(BF16)


def _kernel(body: Any, counts: tuple[int, int], *refs: Any) -> None:
    """One program. ``refs``: so many arrays of rows, so many vectors, the matrices, what comes out, and scratch."""
    n_rows, n_vectors = counts
    rows, vectors = refs[:n_rows], refs[n_rows : n_rows + n_vectors]
    matrices, *outs, high, low = refs[n_rows + n_vectors :]
    member, block = jax.lax.axis_index("member"), jax.lax.axis_index("block")
    gates, hidden = matrices.shape[1:3]
    weights = [_in_two(_load(matrices.at[member, i].T, RIGHT)) for i in range(gates)]
    biases = [_spread(_load(v.at[member], SUM.reduce(0)), hidden, axis=1) for v in vectors]

    def multiply(a: Array, of_gates: range) -> list[Array]:
        high[...], low[...] = _in_two(a)
        left_high, left_low = _load(high, LEFT), _load(low, LEFT)

        def product(right_high: Array, right_low: Array) -> Array:
            out = gpu.layout_cast(jnp.zeros((ROWS, hidden), jnp.float32), SUM)
            for left, right in ((left_low, right_high), (left_high, right_low), (left_high, right_high)):
                out = gpu.mma(out, left, right)
            return out

        return [product(*weights[i]) for i in of_gates]

    def shares(arrays: Any) -> list[RowsByMosaic]:
        starts = ((array, start) for array in arrays for start in range(0, array.shape[-1], hidden))
        return [RowsByMosaic(array, member, pl.ds(block * ROWS, ROWS), start, hidden) for array, start in starts]

    body(shares(rows), biases, multiply, shares(outs))


def launch(
    body: Any,
    rows: list[Array],
    vectors: list[Array],
    matrices: list[Array],
    shapes: list[Any],
    transposed: bool = False,
) -> list[Array]:
    """What :func:`jqmix.kernels.gru_triton.launch` does. Under ``vmap`` members are an axis of the grid."""
    count = rows[0].shape[1]
    padded = count + -count % ROWS

    @jax.custom_batching.custom_vmap
    def over_members(*arrays: Array) -> list[Array]:
        members, hidden = arrays[0].shape[0], matrices[0].shape[-1]
        return gpu.kernel(
            partial(_kernel, body, (len(rows), len(vectors))),
            out_type=[jax.ShapeDtypeStruct((members, s[0], padded, *s[2:]), jnp.float32) for s in shapes],
            grid=(members, padded // ROWS),
            grid_names=("member", "block"),
            scratch_types=[gpu.SMEM((ROWS, hidden), BF16)] * 2,
            compiler_params=gpu.CompilerParams(lowering_semantics=gpu.LoweringSemantics.Lane),
        )(*arrays)

    @over_members.def_vmap
    def _(size: int, batched: list[bool], *arrays: Array) -> tuple[list[Array], list[bool]]:
        """Members in groups are so many members."""
        each = [x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(arrays, batched, strict=True)]
        outs = over_members(*(x.reshape(-1, *x.shape[2:]) for x in each))
        return [out.reshape(size, -1, *out.shape[1:]) for out in outs], [True] * len(outs)

    # The tensor core reads a column of the right operand as a row.
    columns = jnp.stack([w if transposed else w.T for w in matrices])
    with_padding = [jnp.pad(x, [(0, 0), (0, padded - count), (0, 0)]) if padded > count else x for x in rows]
    outs = over_members(*(x[None] for x in (*with_padding, *vectors, columns)))
    return [out[0, :, :count] for out in outs]
