"""Probe environments: each isolates one thing a learner can get wrong, and its Q* is known."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jqmix.types import EnvSpec, TimeStep


def _timestep(obs: Array, avail: Array, reward: Array, ended: Array, n_agents: int = 1) -> TimeStep:
    return TimeStep(
        obs=jnp.broadcast_to(obs, (n_agents, *obs.shape)).astype(jnp.float32),
        state=obs.astype(jnp.float32),
        avail=jnp.broadcast_to(avail, (n_agents, *avail.shape)),
        reward=jnp.asarray(reward, jnp.float32),
        discount=1.0 - ended.astype(jnp.float32),
        last=ended,
        info={},
    )


class ChainProbe:
    """``length`` states in a row; action 1 goes right, action 0 ends with 0.1. Leaving the last state pays 1.

    Q*(s, right) = γ^(length − 1 − s), Q*(s, stop) = 0.1: true terminations at every depth.
    """

    def __init__(self, length: int = 4):
        self.length = length
        self.spec = EnvSpec("chain_probe", 1, 2, length, length, length, reward_range=(0.0, 1.0))

    def _emit(self, position: Array, reward: Array, ended: Array) -> TimeStep:
        return _timestep(jnp.arange(self.length) == position, jnp.ones((2,), bool), reward, ended)

    def reset(self, key: Array) -> tuple[Array, TimeStep]:
        del key
        position = jnp.zeros((), jnp.int32)
        return position, self._emit(position, jnp.float32(0.0), jnp.bool_(False))

    def step(self, key: Array, state: Array, actions: Int[Array, "1"]) -> tuple[Array, TimeStep]:
        del key
        right = actions[0] == 1
        end = state == self.length - 1
        reward = jnp.where(right, jnp.where(end, 1.0, 0.0), 0.1)
        position = jnp.where(right & ~end, state + 1, state)
        return position, self._emit(position, reward, ~right | end)


class TruncationProbe:
    """One state that pays 1 for ever (action 1) or 0 (action 0), cut by a time limit in the middle of a window.

    Q*(1) = 1 / (1 − γ) when the limit bootstraps. A learner that takes the limit for a termination, or that
    bootstraps from the next episode's start, ends elsewhere: the first observation after a reset is different
    and worth less, since only its second action starts to pay.
    """

    def __init__(self, limit: int = 3):
        self.spec = EnvSpec("truncation_probe", 1, 2, 2, 2, limit, reward_range=(0.0, 1.0))

    def _emit(self, state: Array, reward: Array) -> TimeStep:
        return _timestep(jnp.arange(2) == state, jnp.ones((2,), bool), reward, jnp.bool_(False))

    def reset(self, key: Array) -> tuple[Array, TimeStep]:
        del key
        state = jnp.zeros((), jnp.int32)
        return state, self._emit(state, jnp.float32(0.0))

    def step(self, key: Array, state: Array, actions: Int[Array, "1"]) -> tuple[Array, TimeStep]:
        del key
        reward = jnp.where((state == 1) & (actions[0] == 1), 1.0, 0.0)
        return jnp.ones((), jnp.int32), self._emit(jnp.ones((), jnp.int32), reward)


class MemoryProbe:
    """A cue at the first step must be repeated ``delay`` steps later; in between only action 0 is available.

    Each of two agents sees its own cue. Paid 1 only if both repeat theirs; without memory the best is 1/4.
    """

    def __init__(self, delay: int = 3):
        self.delay = delay
        self.spec = EnvSpec("memory_probe", 2, 2, 4, 4, delay + 1, reward_range=(0.0, 1.0))

    def _emit(self, state: tuple[Array, Array], reward: Array, ended: Array) -> TimeStep:
        cue, t = state
        shown = (t == 0) & (jnp.arange(2)[None] == cue[:, None])  # [2 agents, 2]
        clock = jnp.broadcast_to(jnp.stack([t == 0, t >= self.delay]), (2, 2))
        answering = jnp.broadcast_to(t >= self.delay, (2,))
        return TimeStep(
            obs=jnp.concatenate([shown, clock], axis=1).astype(jnp.float32),
            state=jnp.concatenate([cue, jnp.stack([t == 0, t >= self.delay])]).astype(jnp.float32),
            avail=jnp.stack([jnp.ones((2,), bool), answering], axis=1),
            reward=reward,
            discount=1.0 - ended.astype(jnp.float32),
            last=ended,
            info={},
        )

    def reset(self, key: Array) -> tuple[tuple[Array, Array], TimeStep]:
        state = (jax.random.bernoulli(key, 0.5, (2,)).astype(jnp.int32), jnp.zeros((), jnp.int32))
        return state, self._emit(state, jnp.float32(0.0), jnp.bool_(False))

    def step(
        self, key: Array, state: tuple[Array, Array], actions: Int[Array, "2"]
    ) -> tuple[tuple[Array, Array], TimeStep]:
        del key
        cue, t = state
        ended = t >= self.delay
        reward = jnp.where(ended & jnp.all(actions == cue), 1.0, 0.0)
        state = (cue, t + 1)
        return state, self._emit(state, reward, ended)
