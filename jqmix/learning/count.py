"""Counts beyond 2³¹: long runs make more steps than 32 bits hold, and JAX counts in 32 bits.

Two words, the lower one below 2³⁰, so that adding up to 2³⁰ at once never overflows.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BITS = 30


class Count(NamedTuple):
    """high · 2³⁰ + low. ``int()`` gives the exact number of a concrete one."""

    high: Int[Any, "*batch"]
    low: Int[Any, "*batch"]

    def __int__(self) -> int:
        return (int(self.high) << BITS) + int(self.low)


def from_int(number: int) -> Count:
    return Count(jnp.int32(number >> BITS), jnp.int32(number & ((1 << BITS) - 1)))


def add(count: Count, more: int | Int[Array, "*batch"]) -> Count:
    """``more`` ∈ [0, 2³⁰]."""
    low = count.low + more
    return Count(count.high + (low >> BITS), low & ((1 << BITS) - 1))


def as_float(count: Count) -> Float[Array, "*batch"]:
    """The nearest float32, or the one beside it."""
    return count.high.astype(jnp.float32) * (1 << BITS) + count.low.astype(jnp.float32)


def numbers(counts: Count) -> list[int]:
    """The exact numbers of counts [P], on the host."""
    return [int(Count(high, low)) for high, low in zip(*map(np.asarray, counts), strict=True)]
