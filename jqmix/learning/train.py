"""The compiled step: rollout, replay, returns, updates, target copy and greedy evaluation, as two pure functions.

``init(seed)`` makes a member's state; ``chunk`` runs K iterations and an evaluation, as turns of one loop: both play
with the same compiled code, evaluation without exploring, learning or counting steps. A member's state is what is
vmapped; ``Shared`` holds the counters, equal for all members and never batched, so that under ``vmap`` every
``lax.cond`` here stays a branch and every replay write stays one contiguous update:

    init, chunk = make_train(cfg)
    member, shared = jax.vmap(init, out_axes=(0, None))(seeds)
    step = jax.jit(jax.vmap(chunk, in_axes=(0, None), out_axes=(0, None, 0)), donate_argnums=0)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jqmix.config import Config, check_window
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.envs.registry import make_env
from jqmix.learning import normalise, priorities, replay
from jqmix.learning.exploration import linear_schedule
from jqmix.learning.learner import Hyper, Learner, LearnerState, UpdateStats, hyper_of, make_learner
from jqmix.learning.rollout import Episodes, collect
from jqmix.learning.split import WHOLE, Split
from jqmix.types import EnvSpec, Packed, Window


class Member(NamedTuple):
    """One independent run. All randomness is a function of ``seed`` and the shared counters."""

    seed: Int[Array, ""]
    hyper: Hyper
    learner: LearnerState
    moments: normalise.Moments  # of the global state
    reward_moments: normalise.Moments | None  # where rewards are standardised
    replay: Packed
    priority: Float[Array, " capacity"] | None  # of the windows in replay, where it is prioritised
    env_steps: Int[Array, ""]  # transitions so far, over all rollouts


class Shared(NamedTuple):
    """What is equal for all members."""

    iteration: Int[Array, ""]
    updates: Int[Array, ""]


class Train(NamedTuple):
    init: Callable[..., tuple[Member, Shared]]
    chunk: Callable[[Member, Shared], tuple[Member, Shared, dict[str, Array]]]


class TurnStats(NamedTuple):
    """One turn's contribution to a chunk's metrics; ``learned`` is 0 where nothing was learned."""

    episodes: Episodes  # [E]; in evaluation the first of each rollout
    learning: UpdateStats
    learned: Float[Array, ""]


def window_length(cfg: Config, spec: EnvSpec) -> int:
    """T: the transitions of a window. Raises ``ConfigError`` if a window would not cover an episode."""
    check_window(cfg, spec.episode_limit)
    return cfg.window or spec.episode_limit


def iterations_per_chunk(cfg: Config, spec: EnvSpec) -> int:
    """K: iterations that make ``eval.every`` environment steps (fewer steps where episodes end inside windows)."""
    return math.ceil(cfg.eval.every / (cfg.rollouts * window_length(cfg, spec)))


class _Program(NamedTuple):
    """The static parts of a training program."""

    cfg: Config
    env: BatchedDecPOMDP
    learner: Learner
    slots: int

    def init(self, seed: Int[Array, ""], hyper: Hyper | None = None) -> tuple[Member, Shared]:
        """A member at its beginning, and the counters at zero."""
        cfg, spec = self.cfg, self.env.spec
        member = Member(
            seed=jnp.asarray(seed, jnp.int32),
            hyper=hyper_of(cfg) if hyper is None else hyper,
            learner=self.learner.init(jax.random.fold_in(jax.random.key(seed), 0)),
            moments=normalise.init(spec.state_size),
            reward_moments=normalise.init(1) if cfg.algo.reward_norm == "running" else None,
            replay=replay.init(self.env, self.slots, cfg.replay.capacity, cfg.replay.dtype),
            priority=priorities.init(cfg.replay.capacity) if cfg.replay.prioritised else None,
            env_steps=jnp.zeros((), jnp.int32),
        )
        return member, Shared(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def chunk(self, member: Member, shared: Shared) -> tuple[Member, Shared, dict[str, Array]]:
        """K iterations, then greedy episodes with what was learned."""
        k = iterations_per_chunk(self.cfg, self.env.spec)

        def one(carry: tuple[Member, Shared], i: Array) -> tuple[tuple[Member, Shared], TurnStats]:
            member, shared, stats = self.turn(*carry, i - k + 1)
            return (member, shared), stats

        (member, shared), stats = jax.lax.scan(one, (member, shared), jnp.arange(k + self.evaluation_turns))
        trained = jax.tree.map(lambda x: x[:k], stats)
        greedy = jax.tree.map(lambda x: x[k:].reshape(-1)[: self.cfg.eval.episodes], stats.episodes)
        return member, shared, self._metrics(member, trained, greedy)

    def iteration(self, member: Member, shared: Shared) -> tuple[Member, Shared, TurnStats]:
        """A window from every rollout into replay, U updates from it, and the target copy when it is due."""
        return self.turn(member, shared, jnp.zeros((), jnp.int32))

    def turn(self, member: Member, shared: Shared, evaluation: Int[Array, ""]) -> tuple[Member, Shared, TurnStats]:
        """An iteration; or, where ``evaluation`` > 0, a greedy window of every rollout, whose first episode counts.

        ``evaluation`` 1, 2, … are windows of their own. What they hold is written where the next iteration's will be,
        before anything is drawn from replay again: so the write needs no condition, under which the replay would be
        copied.
        """
        cfg, hyper, training = self.cfg, member.hyper, evaluation <= 0
        key_collect, key_update = jax.random.split(self._key(member, shared, evaluation))
        epsilon = jnp.where(training, self.epsilon(member), 0.0)
        agent, params = self.learner.agent, member.learner.params["agent"]
        with jax.named_scope("collecting"):  # for profiles
            window, episodes = collect(agent, params, self.env, key_collect, epsilon, self.slots, ~training)
        before = shared.iteration * cfg.rollouts  # windows
        added = before + cfg.rollouts
        member = member._replace(replay=replay.add(member.replay, window, before))
        member = self._remember(member, window, before, training)
        ready = training & (added >= cfg.replay.batch)
        learner, priority, learning = jax.lax.cond(
            ready, self._learn, self._wait, member, key_update, self.learning_rate(member, hyper), added
        )
        if cfg.algo.target_update == "hard":
            due = training & (added // cfg.algo.target_period > before // cfg.algo.target_period)
            learner = jax.lax.cond(due, lambda l: l._replace(target=l.params), lambda l: l, learner)  # noqa: E741
        shared = Shared(shared.iteration + training, shared.updates + jnp.where(ready, cfg.updates, 0))
        stats = TurnStats(episodes, learning, ready.astype(jnp.float32))
        return member._replace(learner=learner, priority=priority), shared, stats

    def _remember(self, member: Member, window: Packed, before: Array, training: Array) -> Member:
        """Windows collected in training enter the count of steps, the running statistics and the priorities."""
        changes: dict[str, Any] = {
            "env_steps": member.env_steps + jnp.sum(~window.last),
            "moments": normalise.update(member.moments, self.env.unpack(window.seen).state),
        }
        if member.reward_moments is not None:
            changes["reward_moments"] = normalise.update(member.reward_moments, window.reward[..., None], ~window.last)
        if member.priority is not None:
            changes["priority"] = priorities.add(member.priority, before, self.cfg.rollouts)
        kept = {name: getattr(member, name) for name in changes}
        return member._replace(**jax.tree.map(lambda new, old: jnp.where(training, new, old), changes, kept))

    def _key(self, member: Member, shared: Shared, evaluation: Int[Array, ""]) -> Array:
        """Of a turn. Initialisation has number 0, iterations count up from 1, evaluations down from -1."""
        evaluations = shared.iteration * self.evaluation_turns + evaluation
        turn = jnp.where(evaluation <= 0, shared.iteration + 1, -evaluations)
        return jax.random.fold_in(jax.random.key(member.seed), turn)

    @property
    def evaluation_turns(self) -> int:
        """How many windows of all rollouts make an evaluation."""
        return math.ceil(self.cfg.eval.episodes / self.cfg.rollouts)

    def epsilon(self, member: Member) -> Float[Array, ""]:
        h = member.hyper
        return linear_schedule(member.env_steps, h.eps_start, h.eps_end, h.eps_steps)

    def learning_rate(self, member: Member, hyper: Hyper) -> Float[Array, ""]:
        return linear_schedule(member.env_steps, hyper.lr, hyper.lr * hyper.lr_end, jnp.float32(self.cfg.total_steps))

    def priority_beta(self, member: Member) -> Float[Array, ""]:
        return linear_schedule(
            member.env_steps, member.hyper.priority_beta, jnp.ones(()), jnp.float32(self.cfg.total_steps)
        )

    def _draw(
        self, key: Array, member: Member, added: Array
    ) -> tuple[Int[Array, " B"], float | Float[Array, " share"]]:
        """Where in replay the windows of a batch are, and how much each of this device's share counts."""
        batch, priority, alpha = self.cfg.replay.batch, member.priority, member.hyper.priority_alpha
        if priority is None:
            return replay.draw(key, member.replay, added, batch), 1.0
        index = priorities.draw(key, priority, alpha, batch)
        weight = priorities.weights(priority, index, alpha, self.priority_beta(member))
        return index, self.learner.split.mine(weight)

    def _window(self, member: Member, packed: Packed) -> Window:
        """What an update learns from: windows as they were collected, or with standardised rewards."""
        window = replay.unpack(self.env, packed)
        if member.reward_moments is None:
            return window
        reward = normalise.standardise(member.reward_moments, window.reward[..., None])[..., 0]
        return window._replace(reward=reward)

    def _learn(
        self, member: Member, key: Array, lr: Array, added: Array
    ) -> tuple[LearnerState, Array | None, UpdateStats]:
        split = self.learner.split

        def one(carry: tuple[LearnerState, Array | None], key: Array) -> tuple[Any, UpdateStats]:
            learner, priority = carry
            index, weight = self._draw(key, member._replace(priority=priority), added)
            window = self._window(member, replay.take(member.replay, split.mine(index)))
            learner, stats, new = self.learner.update(learner, window, member.moments, member.hyper, lr, weight)
            if priority is not None:
                priority = priority.at[index].set(split.gather(new))
            return (learner, priority), stats

        carry = member.learner, member.priority
        with jax.named_scope("learning"):
            (learner, priority), stats = jax.lax.scan(one, carry, jax.random.split(key, self.cfg.updates))
        return learner, priority, jax.tree.map(jnp.mean, stats)

    def _wait(
        self, member: Member, key: Array, lr: Array, added: Array
    ) -> tuple[LearnerState, Array | None, UpdateStats]:
        """Replay does not hold a batch yet."""
        del key, lr, added
        return member.learner, member.priority, UpdateStats(*(jnp.zeros(()) for _ in UpdateStats._fields))

    def _metrics(self, member: Member, stats: TurnStats, greedy: Episodes) -> dict[str, Array]:
        """One chunk's log line; NaN where there is nothing to tell."""
        learned = jnp.sum(stats.learned)
        means = {name: jnp.sum(x) / learned for name, x in stats.learning._asdict().items()}
        scalars = {
            "env_steps": member.env_steps,
            "train/epsilon": self.epsilon(member),
            "train/lr": self.learning_rate(member, member.hyper),
        }
        train = {f"train/{k}": v for k, v in (stats.episodes.means() | means).items()}
        return scalars | train | {f"eval/{k}": v for k, v in greedy.means().items()}


def build_env(cfg: Config, batch: int) -> BatchedDecPOMDP:
    """E environments as the configuration describes them."""
    env = cfg.env
    return make_env(
        env.name,
        batch=batch,
        factory=env.factory,
        time_limit=env.time_limit,
        episode_limit=env.episode_limit,
        **env.kwargs,
    )


def make_program(cfg: Config, split: Split = WHOLE) -> _Program:
    env = build_env(cfg, cfg.rollouts)
    slots = window_length(cfg, env.spec) + 1
    return _Program(cfg, env, make_learner(cfg, env.spec, split), slots)


def make_train(cfg: Config) -> Train:
    """``init(seed, hyper=None) -> (member, shared)`` and ``chunk(member, shared) -> (member, shared, metrics)``.

    Both are pure and for one member: jit, vmap and shard them as the module's text shows.
    """
    program = make_program(cfg)
    return Train(program.init, program.chunk)
