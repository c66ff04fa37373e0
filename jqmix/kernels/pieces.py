"""A vector as the arrays that it is made of, by one kernel: for GPUs, by Pallas and Triton.

XLA copies each of a few dozen arrays by a kernel of its own, in every update. Here each program of one kernel copies a
block of every array that reaches so far. The plain form is that of ``jax.flatten_util.ravel_pytree``.
"""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from jqmix.kernels.platform import platform

BLOCK = 1024


@partial(jax.jit, static_argnums=1)  # traced once, wherever a program does it
def take_apart(vector: Float[Array, " n"], shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    """The arrays of these shapes, whose numbers stand one after another in ``vector``.

    Off a GPU the kernel is interpreted: for tests alone.
    """
    sizes = [math.prod(shape) for shape in shapes]
    starts = list(itertools.accumulate(sizes, initial=0))[:-1]
    programs = pl.cdiv(max(sizes), BLOCK)

    def kernel(vector: Any, *outs: Any) -> None:
        begin = pl.program_id(0) * BLOCK
        index = begin + jnp.arange(BLOCK)
        for out, start, size in zip(outs, starts, sizes, strict=True):
            block = triton.load(vector.at[pl.ds(start + begin, BLOCK)], mask=index < size)
            triton.store(out.at[pl.ds(begin, BLOCK)], block, mask=index < size)

    def whole(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((size,), lambda i: (0,))

    room = programs * BLOCK  # whatever a program may ask for lies within; what is beyond an array is masked
    on_gpu = platform() == "gpu"
    outs = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((size,), vector.dtype) for size in sizes],
        grid=(programs,),
        in_specs=[whole(vector.size + room)],
        out_specs=[whole(room)] * len(sizes),
        interpret=not on_gpu,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1) if on_gpu else None,
    )(vector)
    return [out.reshape(shape) for out, shape in zip(outs, shapes, strict=True)]
