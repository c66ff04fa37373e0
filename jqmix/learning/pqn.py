"""PQN: parallel Q-learning without replay or target network (2407.04811), here with any mixer.

Each iteration's windows are learned from for some epochs, in each of which the rollouts are shuffled and divided into
minibatches of whole windows. Targets are λ-returns over the values of the network that learns, as it is at that update;
layer normalisation is what keeps that stable.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jqmix.buffers.windows import take
from jqmix.config import Config
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.kernels.turns import in_turns
from jqmix.learning.algorithm import LearningResult, Room, updates, window_to_learn_from
from jqmix.learning.learner import Aim, Learner, Params, Updated, Values, empty_stats, make_learner
from jqmix.learning.split import Split
from jqmix.learning.state import Member
from jqmix.types import Packed, Window

FACTOR = 2.0  # the published loss is the squared error, not half of it


class PQNState(NamedTuple):
    params: Params
    opt_state: Any  # of all parameters as one vector


class PQN(NamedTuple):
    """The static parts."""

    env: BatchedDecPOMDP
    learner: Learner

    def bound(self, cfg: Config) -> "PQN":
        return self._replace(learner=self.learner.bound(cfg))

    def init(self, key: Array) -> PQNState:
        return PQNState(*self.learner.init(key))

    def init_buffer(self, start: Any) -> None:
        return None

    def init_counters(self) -> tuple[()]:
        return ()

    def learn(self, member: Member, counters: tuple[()], windows: Packed, cfg: Config, key: Array) -> LearningResult:
        """Epochs × minibatches updates from E windows."""
        split = self.learner.split

        def step(learner: PQNState, priority: tuple[()], x: tuple[Array, Array]) -> tuple[Updated, PQNState, tuple[()]]:
            index, key = x
            batch = take(windows, split.mine(index))

            def update(learner: PQNState, batch: Packed, key: Array) -> tuple[Updated, PQNState]:
                return self.update(learner, window_to_learn_from(self.env, member, batch), member.moments, cfg, key)

            updated, after = in_turns(update, math.prod(batch.action.shape[1:]))(learner, batch, key)
            return updated, after, priority

        index = minibatches(key, cfg.rollouts, cfg.algo.epochs, cfg.algo.minibatches)
        xs = index, jax.random.split(jax.random.fold_in(key, cfg.algo.epochs), len(index))
        told = empty_stats(self.learner, cfg)
        (learner, _, fault), stats = updates(step, (member.learner, (), member.fault), xs, member, told)
        return LearningResult(learner, None, fault, counters, stats, jnp.int32(len(index)))

    def update(
        self, state: PQNState, window: Window, moments: Any, cfg: Config, key: Array | None = None
    ) -> tuple[Updated, PQNState]:
        """One gradient step on a minibatch."""

        def aim(params: Params, online: Values, window: Window, mixer_state: Array) -> Aim:
            return self.aim(params, online, window, mixer_state, cfg)

        updated = self.learner.update(state.params, state.opt_state, aim, window, moments, cfg, key=key, factor=FACTOR)
        return updated, PQNState(updated.params, updated.opt_state)

    def aim(self, params: Params, online: Values, window: Window, state: Array, cfg: Config) -> Aim:
        """Returns over the values of the network that learns, at its own greedy actions."""
        mixer, team = self.learner.critic_of(params)
        values = online if team is params else self.learner.values(team, window)
        return self.learner.returns(mixer, team, values, online.q, window, state, cfg)


def minibatches(key: Array, rollouts: int, epochs: int, count: int) -> Int[Array, "updates share"]:
    """The rollouts of every minibatch: in each epoch all of them once, in ``count`` parts, newly shuffled."""
    orders = jax.vmap(lambda key: jax.random.permutation(key, rollouts))(jax.random.split(key, epochs))
    return orders.reshape(epochs * count, rollouts // count)


def _make(cfg: Config, env: BatchedDecPOMDP, slots: int, split: Split) -> PQN:
    return PQN(env, make_learner(cfg, env.spec, split))


ROOM = Room(
    _make,
    batch=lambda cfg: cfg.rollouts // cfg.algo.minibatches,
    updates=lambda cfg: cfg.algo.epochs * cfg.algo.minibatches,
    divides=lambda cfg, parts: (cfg.rollouts // cfg.algo.minibatches) % parts == 0,
)
