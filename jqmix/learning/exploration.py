"""Choosing actions: masked greedy, ε-greedy, and the schedule of ε in environment steps."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def linear_schedule(step: Array, start: Any, end: Any, steps: Any) -> Array:
    """From ``start`` to ``end`` over ``steps`` environment steps, then constant."""
    progress = jnp.clip(step / steps, 0.0, 1.0)
    return start + (end - start) * progress


def greedy(q: Float[Array, "*batch A"], avail: Bool[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """The best available action; the lowest index among equals."""
    return jnp.argmax(jnp.where(avail, q, -jnp.inf), axis=-1).astype(jnp.int32)


def random_available(u: Float[Array, "*batch"], avail: Bool[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """The available action that the uniform number ``u`` ∈ [0, 1) picks, all equally likely."""
    count = jnp.sum(avail, axis=-1)
    wanted = jnp.minimum(jnp.floor(u * count), count - 1)  # how many of the available come before it
    # Action by action, as this is one step of a program where a cumulative sum over so short an axis takes several.
    so_far, index = jnp.zeros_like(count), jnp.zeros_like(count)
    for action in range(avail.shape[-1]):
        so_far += avail[..., action]
        index += so_far <= wanted
    return index.astype(jnp.int32)


def epsilon_greedy(
    u: Float[Array, "2 *batch"],
    q: Float[Array, "*batch A"],
    avail: Bool[Array, "*batch A"],
    epsilon: Float[Array, ""],
) -> Int[Array, "*batch"]:
    """Greedy with probability 1 − ε, else a random available action. ``u``: two uniform numbers per choice."""
    return jnp.where(u[0] < epsilon, random_available(u[1], avail), greedy(q, avail))
