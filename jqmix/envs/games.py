"""Matrix games and the two-step game: small enough to know every value by hand."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jqmix.types import EnvSpec, TimeStep

PAYOFFS: dict[str, Any] = {
    # A: QTRAN (1905.05408); B-D: REFERENCE games that are, in turn, monotone enough for QMIX, and not.
    "a": [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]],
    "b": [[12, -0.1, -0.1], [-0.1, 0, 0], [-0.1, 0, 0]],
    "c": [[10.4, 0, 10], [0, 10, 10], [10, 10, 10]],
    "d": [[8, -12, -12], [-12, 6, 0], [-12, 0, 6]],
}


class MatrixGame:
    """One step, then it ends. ``payoff[u_1, …, u_n]`` is the shared reward; every axis must have equal length.

    ``payoff`` is one of the names in ``PAYOFFS`` or nested lists of numbers, one level per agent.
    """

    def __init__(self, payoff: str | Sequence[Any] = "a"):
        if isinstance(payoff, str):
            if payoff not in PAYOFFS:
                raise ValueError(f"env.kwargs.payoff: {payoff!r} is not one of {', '.join(PAYOFFS)}, or nested lists")
            payoff = PAYOFFS[payoff]
        try:
            table = np.asarray(payoff, np.float32)
        except (ValueError, TypeError):
            raise ValueError("env.kwargs.payoff: must be nested lists of numbers of one shape") from None
        if not np.isfinite(table).all():
            raise ValueError("env.kwargs.payoff: must be finite")
        if table.ndim < 1 or len(set(table.shape)) != 1:
            raise ValueError(f"env.kwargs.payoff: needs as many actions for every agent, not shape {table.shape}")
        self.payoff = jnp.asarray(table)
        n, a = table.ndim, table.shape[0]
        self.spec = EnvSpec("matrix_game", n, a, 1, 1, 1, reward_range=(float(table.min()), float(table.max())))

    def _timestep(self, reward: Array, ended: bool) -> TimeStep:
        n, a = self.spec.n_agents, self.spec.n_actions
        return TimeStep(
            obs=jnp.ones((n, 1)),
            state=jnp.ones((1,)),
            avail=jnp.ones((n, a), bool),
            reward=reward,
            discount=jnp.float32(not ended),
            last=jnp.bool_(ended),
            info={},
        )

    def reset(self, key: Array) -> tuple[Array, TimeStep]:
        del key
        return jnp.zeros((), jnp.int32), self._timestep(jnp.float32(0.0), ended=False)

    def step(self, key: Array, state: Array, actions: Int[Array, " N"]) -> tuple[Array, TimeStep]:
        del key
        reward = self.payoff[tuple(actions[i] for i in range(self.spec.n_agents))]
        return state, self._timestep(reward, ended=True)


class TwoStepGame:
    """QMIX's two-step game (1803.11485, §5): agent 1's first action picks game 2A (7, whatever is played) or 2B.

    States: 0 the first step, 1 game 2A, 2 game 2B, 3 the end. The optimum is 8.
    """

    payoff = np.array([[[7, 7], [7, 7]], [[0, 1], [1, 8]]], np.float32)

    def __init__(self) -> None:
        self.spec = EnvSpec("two_step_game", 2, 2, 4, 4, 2, reward_range=(0.0, 8.0))

    def _timestep(self, state: Array, reward: Array) -> TimeStep:
        one_hot = (jnp.arange(4) == state).astype(jnp.float32)
        ended = state == 3
        return TimeStep(
            obs=jnp.broadcast_to(one_hot, (2, 4)),
            state=one_hot,
            avail=jnp.ones((2, 2), bool),
            reward=reward,
            discount=1.0 - ended.astype(jnp.float32),
            last=ended,
            info={},
        )

    def reset(self, key: Array) -> tuple[Array, TimeStep]:
        del key
        state = jnp.zeros((), jnp.int32)
        return state, self._timestep(state, jnp.float32(0.0))

    def step(self, key: Array, state: Array, actions: Int[Array, "2"]) -> tuple[Array, TimeStep]:
        del key
        game = jnp.clip(state - 1, 0, 1)
        played = jnp.asarray(self.payoff)[game, actions[0], actions[1]]
        first = state == 0
        reward = jnp.where(first, 0.0, played)
        state = jnp.where(first, 1 + actions[0], 3).astype(jnp.int32)
        return state, self._timestep(state, reward)
