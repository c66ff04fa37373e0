"""Brings the recurrence's programs (:mod:`jqmix.kernels.gru_kernel`) to a GPU by Pallas' Triton, or interprets them.

For jax before 0.11.2. Products of float32 are rounded to TF32 from Ampere on, as XLA's own are. Off a GPU the programs
are interpreted, with any jax: for tests alone.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jqmix.kernels.platform import platform

ROWS = 16  # the least that a tensor core multiplies


def width(hidden: int) -> int:
    """The least width that is not less and that a program takes: Triton's arrays are powers of two."""
    return max(16, 1 << (hidden - 1).bit_length())


@dataclass(frozen=True)
class RowsByTriton:
    """``width`` columns of a program's rows of an array, read and written a step at a time."""

    ref: Any
    start: int
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ref.shape

    def _at(self, t: Any) -> Any:
        whole = self.width == self.shape[-1]
        return (t,) if whole else (t, slice(None), pl.ds(self.start, self.width))

    def __getitem__(self, t: Any) -> Array:
        return self.ref[self._at(t)]

    def __setitem__(self, t: Any, value: Array) -> None:
        self.ref[self._at(t)] = value


def launch(
    body: Any,
    rows: list[Array],
    vectors: list[Array],
    matrices: list[Array],
    shapes: list[Any],
    transposed: bool = False,
) -> list[Array]:
    """``body`` for every ``ROWS`` rows, which stand on axis 1 of ``rows`` and of what comes out.

    Of vectors [H] and matrices [H, H] each program has all. ``transposed``: it multiplies by the transposed matrices.
    ``shapes``: of what comes out.
    """
    count, hidden = rows[0].shape[1], matrices[0].shape[0]
    padding = -count % ROWS

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, padding), (0, 0)]) if padding else x

    def share(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec((shape[0], ROWS, *shape[2:]), lambda i: (0, i, *(0 for _ in shape[2:])))

    def whole(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i: tuple(0 for _ in shape))

    def apart(refs: Any) -> list[RowsByTriton]:
        pieces = ((ref, min(hidden, ref.shape[-1])) for ref in refs)
        return [RowsByTriton(ref, start, width) for ref, width in pieces for start in range(0, ref.shape[-1], width)]

    weights = [*vectors, *matrices]

    def kernel(*refs: Any) -> None:
        ends = itertools.accumulate(map(len, (rows, vectors, matrices)), initial=0)
        ins, vector_refs, matrix_refs = (refs[start:end] for start, end in itertools.pairwise(ends))

        def multiply(a: Array, of_gates: range) -> list[Array]:
            """Matrices are read in every step, from a cache: there are not enough registers to keep them."""
            values = (matrix_refs[i][...] for i in of_gates)
            return [a @ (w.T if transposed else w) for w in values]

        body(apart(ins), vector_refs, multiply, apart(refs[len(rows) + len(weights) :]))

    outs = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((s[0], count + padding, *s[2:]), jnp.float32) for s in shapes],
        grid=((count + padding) // ROWS,),
        in_specs=[share(x.shape) for x in rows] + [whole(w.shape) for w in weights],
        out_specs=[share(s) for s in shapes],
        **_options(),
    )(*map(padded, rows), *weights)
    return [out[:, :count] for out in outs]


def _options() -> dict[str, Any]:
    if platform() != "gpu":
        return {"interpret": True}
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=4, num_stages=1)}
