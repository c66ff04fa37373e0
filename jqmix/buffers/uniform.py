"""Uniform replay: every window that is held is as likely as any other."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jqmix.buffers.base import Stored
from jqmix.buffers.windows import as_ring, write
from jqmix.config import ReplayConfig
from jqmix.types import Packed


class Uniform:
    """Keeps no priorities; draws different windows, all with weight 1."""

    ahead = True

    def init(self, windows: Packed, replay: ReplayConfig) -> Stored:
        return Stored(as_ring(windows), ())

    def add(
        self, stored: Stored, windows: Packed, position: Int[Array, ""], first: Int[Array, ""] | None = None
    ) -> Stored:
        return stored._replace(windows=write(stored.windows, windows, position, first))

    def sample(
        self, key: Array, stored: Stored, held: Int[Array, ""], replay: ReplayConfig
    ) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        """Raises nothing where fewer than a batch are held: the caller waits until there are enough."""
        return draw_uniformly(key, replay.capacity, held, replay.batch), jnp.ones((replay.batch,))

    def update(self, priority: Any, index: Int[Array, " B"], surprise: Float[Array, " B"]) -> Any:
        return priority


def draw_uniformly(key: Array, capacity: int, held: Int[Array, ""], batch: int) -> Int[Array, " B"]:
    """``batch`` different numbers, uniformly drawn from the first ``held`` (≥ ``batch``) of ``capacity``."""
    score = jnp.where(jnp.arange(capacity) < held, jax.random.uniform(key, (capacity,)), -1.0)
    return jax.lax.top_k(score, batch)[1]
