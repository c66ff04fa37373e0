"""Brings the recurrence's programs (:mod:`jqmix.kernels.gru_kernel`) to a GPU by Pallas' Triton, or interprets them.

For jax before 0.11.2. Products of float32 are rounded to TF32 from Ampere on, as XLA's own are. Off a GPU the programs
are interpreted, with any jax: for tests alone.
"""

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


def launch(body: Any, rows: list[Array], vectors: list[Array], matrices: Array, shapes: list[Any]) -> list[Array]:
    """``body`` for every ``ROWS`` rows, which stand on axis 1 of ``rows`` and of what comes out.

    Of vectors and matrices [G, H, H] each program has all. ``shapes``: of what comes out.
    """
    count = rows[0].shape[1]
    padding = -count % ROWS

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, padding), (0, 0)]) if padding else x

    def share(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec((shape[0], ROWS, *shape[2:]), lambda i: (0, i, *(0 for _ in shape[2:])))

    def whole(shape: Any) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda i: tuple(0 for _ in shape))

    weights = [*vectors, matrices]

    def kernel(*refs: Any) -> None:
        n_rows, n_vectors = len(rows), len(vectors)
        matrices, *outs = refs[n_rows + n_vectors :]
        # Matrices are read in every step, from a cache: there are not enough registers to keep them.
        body(refs[:n_rows], refs[n_rows : n_rows + n_vectors], lambda a, gates: [a @ matrices[i] for i in gates], outs)

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
