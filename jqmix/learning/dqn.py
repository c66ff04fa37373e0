"""Deep Q-learning with a replay of windows and a target network: VDN, QMIX and their family as published."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jqmix.buffers import Buffer, make_buffer, windows
from jqmix.buffers.base import Stored
from jqmix.buffers.windows import capacity
from jqmix.config import Config
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.kernels.turns import in_turns
from jqmix.learning.algorithm import (
    LearningResult,
    Room,
    handed_on_as_vectors,
    packing,
    select,
    updates,
    window_to_learn_from,
)
from jqmix.learning.health import Fault
from jqmix.learning.learner import Aim, Learner, Params, Stats, Updated, Values, empty_stats, make_learner
from jqmix.learning.split import Split
from jqmix.learning.state import Member
from jqmix.types import Packed, Window


class DQNState(NamedTuple):
    params: Params
    target: Params
    opt_state: Any  # of all parameters as one vector


class Counters(NamedTuple):
    """Windows are counted by what follows from their number, which may pass 2³¹."""

    position: Int[Array, ""]  # where in the buffer the next windows go
    held: Int[Array, ""]  # windows in the buffer
    since_copy: Int[Array, ""]  # windows collected since the last copy of the target was due


class DQN(NamedTuple):
    """The static parts."""

    cfg: Config
    env: BatchedDecPOMDP
    learner: Learner
    buffer: Buffer
    slots: int  # of a stored window

    def bound(self, cfg: Config) -> "DQN":
        return self._replace(learner=self.learner.bound(cfg))

    def init(self, key: Array) -> DQNState:
        params, opt_state = self.learner.init(key)
        return DQNState(params, jax.tree.map(jnp.copy, params), opt_state)

    def init_buffer(self, start: Any) -> Stored:
        replay, split = self.cfg.replay, self.learner.split
        room = replay.capacity // split.over_rollouts.parts
        return self.buffer.init(windows.empty(self.env, self.slots, room, start, replay.dtype), replay)

    def init_counters(self) -> Counters:
        none = jnp.int32(0)
        return Counters(none, none, none)

    def learn(self, member: Member, counters: Counters, windows: Packed, cfg: Config, key: Array) -> LearningResult:
        """Adds the windows, makes U updates as soon as the buffer holds a batch, and copies the target when it is due.

        The buffer itself stays outside the condition, which would copy it.
        """
        split, section = self.learner.split, capacity(member.buffer.windows)
        first = split.first(section) if split.rollouts else None
        stored = self.buffer.add(member.buffer, windows, counters.position, first)
        held = jnp.minimum(counters.held + cfg.rollouts, cfg.replay.capacity)
        ready = held >= cfg.replay.batch

        pack, unpack = packing(member.learner, *handed_on_as_vectors())
        packed = pack(member.learner)

        def learning() -> tuple[tuple[DQNState, Any, Fault], Stats]:
            before = member._replace(learner=unpack(packed))
            (learner, priority, fault), stats = self._updates(before, stored, held, windows, cfg, key)
            return (pack(learner), priority, fault), stats

        def waiting() -> tuple[tuple[DQNState, Any, Fault], Stats]:
            nothing = empty_stats(self.learner, cfg)
            return (packed, stored.priority, member.fault), nothing

        (learner, priority, fault), stats = jax.lax.cond(ready, learning, waiting)
        collected = counters.since_copy + cfg.rollouts
        if cfg.algo.target_update == "hard":
            due = collected >= cfg.algo.target_period
            learner = jax.lax.cond(due, lambda: _with_target(learner, fault), lambda: learner)
        counters = Counters(
            position=(counters.position + cfg.rollouts) % cfg.replay.capacity,
            held=held,
            since_copy=collected % cfg.algo.target_period,
        )
        made = jnp.where(ready, cfg.updates, 0)
        return LearningResult(unpack(learner), stored._replace(priority=priority), fault, counters, stats, made)

    def _updates(
        self, member: Member, stored: Stored, held: Array, like: Packed, cfg: Config, key: Array
    ) -> tuple[tuple[DQNState, Any, Fault], Stats]:
        split = self.learner.split

        def draw(key: Array, priority: Any) -> tuple[Array, Array]:
            return self.buffer.sample(key, stored._replace(priority=priority), held, cfg.replay)

        def step(learner: DQNState, priority: Any, x: tuple[Array, Packed | None]) -> tuple[Updated, DQNState, Any]:
            key, batch = x
            index, weight = draw(key, priority)
            batch = split.fetch(stored.windows, index, like) if batch is None else batch

            def update(learner: DQNState, batch: Packed, weight: Array, key: Array) -> tuple[Updated, DQNState]:
                window = window_to_learn_from(self.env, member, batch)
                return self.update(learner, window, member.moments, cfg, weight, key)

            rows = math.prod(batch.action.shape[1:])
            updated, after = in_turns(update, rows)(learner, batch, split.mine(weight), jax.random.fold_in(key, 1))
            priority = self.buffer.update(priority, index, updated.surprise)
            return updated, after, priority

        keys, batches = jax.random.split(key, cfg.updates), None
        if split.rollouts and self.buffer.ahead:  # devices send one another the windows of all updates at once
            index = jax.vmap(lambda key: draw(key, stored.priority)[0])(keys)
            batches = split.fetch(stored.windows, index, like)
        begin, told = (member.learner, stored.priority, member.fault), empty_stats(self.learner, cfg)
        return updates(step, begin, (keys, batches), member, told)

    def update(
        self, state: DQNState, window: Window, moments: Any, cfg: Config, weight: Any = 1.0, key: Array | None = None
    ) -> tuple[Updated, DQNState]:
        """One gradient step; a soft target follows at once."""

        def aim(params: Params, online: Values, window: Window, mixer_state: Array) -> Aim:
            return self.aim(state.target, online, window, mixer_state, cfg)

        updated = self.learner.update(state.params, state.opt_state, aim, window, moments, cfg, weight, key)
        target = state.target
        if cfg.algo.target_update == "soft":
            tau = cfg.algo.target_tau
            target = jax.tree.map(lambda t, p: t + tau * (p - t), target, updated.params)
        return updated, DQNState(updated.params, target, updated.opt_state)

    def aim(self, target: Params, online: Values, window: Window, state: Array, cfg: Config) -> Aim:
        """Returns over the target networks' values at the online network's greedy actions (double Q-learning)."""
        mixer, team = self.learner.critic_of(target)
        values = self.learner.values(team, window)
        chooser = online.q
        if not cfg.algo.double_q:
            chooser = values.q if team is target else self.learner.values(target, window).q
        return self.learner.returns(mixer, team, values, chooser, window, state, cfg)


def _with_target(learner: DQNState, fault: Fault) -> DQNState:
    """The target network as a copy of the one that learns, unless that is frozen."""
    return learner._replace(target=select(fault.code == 0, learner.params, learner.target))


def _make(cfg: Config, env: BatchedDecPOMDP, slots: int, split: Split) -> DQN:
    return DQN(cfg, env, make_learner(cfg, env.spec, split), make_buffer(cfg.replay), slots)


def _divides(cfg: Config, parts: int) -> bool:
    """A device's section of the buffer holds the windows of an iteration."""
    equal = cfg.rollouts % parts == cfg.replay.batch % parts == 0
    return equal and cfg.replay.capacity // parts >= cfg.rollouts


ROOM = Room(_make, batch=lambda cfg: cfg.replay.batch, updates=lambda cfg: cfg.updates, divides=_divides)
