"""The compiled step: rollout, replay, returns, updates, target copy and greedy evaluation, as two pure functions.

``init(seed)`` makes a member's state; ``chunk`` runs K iterations and an evaluation, or what a ``Plan`` says, as turns
of one loop: both play with the same compiled code, evaluation without exploring, learning or counting steps. A
member's state is what is vmapped; ``Shared`` holds the counters, equal for all members and never batched, so that under
``vmap`` every ``lax.cond`` here stays a branch and every replay write stays one contiguous update:

    init, chunk = make_train(cfg)
    member, shared = jax.vmap(init, out_axes=(0, None))(seeds)
    step = jax.jit(jax.vmap(chunk, in_axes=(0, None), out_axes=(0, None, 0)), donate_argnums=0)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.config import Config, check_window
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.envs.check import check_env
from jqmix.envs.registry import entries, make_env
from jqmix.learning import count, health, normalise, priorities, replay
from jqmix.learning.exploration import linear_schedule
from jqmix.learning.health import Fault
from jqmix.learning.hyper import Hyper, hyper_of
from jqmix.learning.learner import Learner, LearnerState, UpdateStats, make_learner
from jqmix.learning.rollout import Episodes, collect
from jqmix.learning.split import WHOLE, Split
from jqmix.learning.state import Best, Member, Plan, Shared, Tally
from jqmix.types import EnvSpec, Packed, Window


class Train(NamedTuple):
    init: Callable[..., tuple[Member, Shared]]
    chunk: Callable[..., tuple[Member, Shared, dict[str, Any]]]


class TurnStats(NamedTuple):
    """One turn's contribution to a chunk's metrics; ``learned`` is 0 where nothing was learned."""

    episodes: Episodes  # [E]; in evaluation the first of each rollout
    learning: UpdateStats
    learned: Float[Array, ""]
    strange: Float[Array, ""]


def window_length(cfg: Config, spec: EnvSpec) -> int:
    """T: the transitions of a window. Raises ``ConfigError`` if a window would not cover an episode."""
    check_window(cfg, spec.episode_limit)
    return cfg.window or spec.episode_limit


def iterations_per_chunk(cfg: Config, spec: EnvSpec) -> int:
    """K: iterations that make ``eval.every`` environment steps (fewer steps where episodes end inside windows)."""
    return math.ceil(cfg.eval.every / (cfg.rollouts * window_length(cfg, spec)))


def turns_of(episodes: int, cfg: Config) -> int:
    """Greedy turns that so many whole episodes take, one of every rollout each."""
    return math.ceil(episodes / cfg.rollouts)


class _Program(NamedTuple):
    """The static parts of a training program."""

    cfg: Config
    env: BatchedDecPOMDP
    learner: Learner
    slots: int

    def init(self, seed: Int[Array, ""], hyper: Hyper | None = None) -> tuple[Member, Shared]:
        """A member at its beginning, and the counters at zero."""
        cfg, spec = self.cfg, self.env.spec
        learner = self.learner.init(jax.random.fold_in(jax.random.key(seed), 0))
        worst = jnp.float32(-jnp.inf)
        member = Member(
            seed=jnp.asarray(seed, jnp.int32),
            hyper=hyper_of(cfg) if hyper is None else hyper,
            learner=learner,
            moments=normalise.init(spec.state_size),
            reward_moments=normalise.init(1) if cfg.algo.reward_norm == "running" else None,
            replay=replay.init(self.env, self.slots, cfg.replay.capacity, cfg.replay.dtype),
            priority=priorities.init(cfg.replay.capacity) if cfg.replay.prioritised else None,
            env_steps=count.of(0),
            fault=Fault(jnp.int32(0), count.of(0)),
            best=Best(jax.tree.map(jnp.copy, learner.params["agent"]), worst, worst, count.of(0)),
            tally=self._empty_tally(),
        )
        none = jnp.int32(0)
        return member, Shared(count.of(0), count.of(0), none, none, none, none)

    def _empty_tally(self) -> Tally:
        none = jnp.zeros(())
        shown = jax.eval_shape(lambda key: self.env.reset(key)[1].info, jax.random.key(0))
        episodes = Episodes(none, none, none, none if "won" in shown else None)
        return Tally(episodes, UpdateStats(*(none for _ in UpdateStats._fields)), none, none, episodes)

    @property
    def plan(self) -> Plan:
        """K iterations, then an evaluation."""
        k, turns = iterations_per_chunk(self.cfg, self.env.spec), self.evaluation_turns
        return Plan(k, turns, 1, self.cfg.eval.episodes, True, False)

    def chunk(self, member: Member, shared: Shared, plan: Plan | None = None) -> tuple[Member, Shared, dict[str, Any]]:
        """What the plan says; without one, K iterations, and greedy episodes with what was learned."""
        plan = Plan(*map(jnp.asarray, self.plan if plan is None else plan))
        member = self._begin_evaluation(member, plan)

        def one(i: Array, carry: tuple[Member, Shared]) -> tuple[Member, Shared]:
            member, shared = carry
            number = jnp.where(i < plan.iterations, 0, i - plan.iterations + plan.first)
            member, shared, stats = self.turn(member, shared, number, plan.absolute)
            return member._replace(tally=self._add(member.tally, stats, number, plan)), shared

        member, shared = jax.lax.fori_loop(0, plan.iterations + plan.greedy, one, (member, shared))
        metrics = self._metrics(member)
        return *self._end_evaluation(member, shared, plan), metrics

    def _begin_evaluation(self, member: Member, plan: Plan) -> Member:
        greedy = jax.tree.map(lambda x: jnp.where(plan.first == 1, 0.0, x), member.tally.greedy)
        return member._replace(tally=member.tally._replace(greedy=greedy))

    def _end_evaluation(self, member: Member, shared: Shared, plan: Plan) -> tuple[Member, Shared]:
        """Where it is complete, what played best is kept, and the sums over training begin anew."""
        means, best = member.tally.greedy.means(), member.best
        win_rate, return_mean = means.get("win_rate", jnp.zeros(())), means["return_mean"]
        better = (win_rate > best.win_rate) | ((win_rate == best.win_rate) & (return_mean > best.return_mean))
        better &= plan.complete & (member.fault.code == 0)
        new = Best(member.learner.params["agent"], win_rate, return_mean, member.env_steps)
        tally = self._empty_tally()._replace(greedy=member.tally.greedy)
        member = member._replace(best=_where(better, new, best), tally=_where(plan.complete, tally, member.tally))
        return member, shared._replace(since_evaluation=jnp.where(plan.complete, 0, shared.since_evaluation))

    def _add(self, tally: Tally, stats: TurnStats, number: Int[Array, ""], plan: Plan) -> Tally:
        """A turn's sums: of an iteration, or of as many episodes of a greedy turn as an evaluation still counts."""
        e = self.cfg.rollouts
        training = (number == 0).astype(jnp.float32)
        counted = (number > 0) & ((number - 1) * e + jnp.arange(e) < plan.episodes)
        return Tally(
            jax.tree.map(lambda total, x: total + jnp.sum(x) * training, tally.trained, stats.episodes),
            jax.tree.map(jnp.add, tally.learning, stats.learning),
            tally.learned + stats.learned,
            tally.strange + stats.strange,
            jax.tree.map(lambda total, x: total + jnp.sum(x * counted), tally.greedy, stats.episodes),
        )

    def iteration(self, member: Member, shared: Shared) -> tuple[Member, Shared, TurnStats]:
        """A window from every rollout into replay, U updates from it, and the target copy when it is due."""
        return self.turn(member, shared, jnp.zeros((), jnp.int32))

    def turn(
        self, member: Member, shared: Shared, evaluation: Int[Array, ""], absolute: bool | Bool[Array, ""] = False
    ) -> tuple[Member, Shared, TurnStats]:
        """An iteration; or, where ``evaluation`` > 0, a greedy window of every rollout, whose first episode counts.

        ``evaluation`` 1, 2, … are windows of their own. What they hold is written where the next iteration's will be,
        before anything is drawn from replay again: so the write needs no condition, under which the replay would be
        copied. Where something is not finite, the member's learner stays from then on as it was before.
        """
        cfg, hyper, training = self.cfg, member.hyper, evaluation <= 0
        key_collect, key_update = jax.random.split(self._key(member, shared, evaluation, absolute))
        epsilon = jnp.where(training, self.epsilon(member), 0.0)
        agent, params = self.learner.agent, member.learner.params["agent"]
        with jax.named_scope("collecting"):  # for profiles
            window, episodes = collect(agent, params, self.env, key_collect, epsilon, self.slots, ~training)
        member = member._replace(replay=replay.add(member.replay, window, shared.position))
        member, strange = self._remember(member, window, shared.position, training)
        held = jnp.minimum(shared.held + cfg.rollouts, cfg.replay.capacity)
        ready = training & (held >= cfg.replay.batch)
        learned, learning = jax.lax.cond(
            ready, self._learn, self._wait, member, key_update, self.learning_rate(member, hyper), held
        )
        member = member._replace(**learned)
        windows = shared.since_copy + cfg.rollouts
        if cfg.algo.target_update == "hard":
            due = training & (windows >= cfg.algo.target_period)
            sound = member.fault.code == 0
            copy = lambda l: l._replace(target=_where(sound, l.params, l.target))  # noqa: E731, E741
            member = member._replace(learner=jax.lax.cond(due, copy, lambda l: l, member.learner))  # noqa: E741
        collected = Shared(
            iteration=count.add(shared.iteration, 1),
            updates=count.add(shared.updates, jnp.where(ready, cfg.updates, 0)),
            position=(shared.position + cfg.rollouts) % cfg.replay.capacity,
            held=held,
            since_copy=windows % cfg.algo.target_period,
            since_evaluation=shared.since_evaluation + 1,
        )
        stats = TurnStats(episodes, learning, ready.astype(jnp.float32), strange)
        return member, _where(training, collected, shared), stats

    def _remember(
        self, member: Member, window: Packed, position: Array, training: Array
    ) -> tuple[Member, Float[Array, ""]]:
        """Windows collected in training enter the count of steps, the running statistics and the priorities.

        Also how many rewards are outside the range that the environment declares.
        """
        seen, bounds = self.env.unpack(window.seen), self.env.spec.reward_range
        member = member._replace(fault=health.found(member.fault, health.of_window(window, seen), member.env_steps))
        changes: dict[str, Any] = {
            "env_steps": count.add(member.env_steps, jnp.sum(~window.last)),
            "moments": normalise.update(member.moments, seen.state),
        }
        if member.reward_moments is not None:
            changes["reward_moments"] = normalise.update(member.reward_moments, window.reward[..., None], ~window.last)
        if member.priority is not None:
            changes["priority"] = priorities.add(member.priority, position, self.cfg.rollouts)
        kept = {name: getattr(member, name) for name in changes}
        strange = jnp.sum(health.outside(window.reward, bounds) & ~window.last & training, dtype=jnp.float32)
        return member._replace(**_where(training & (member.fault.code == 0), changes, kept)), strange

    def _key(self, member: Member, shared: Shared, evaluation: Int[Array, ""], absolute: bool | Array) -> Array:
        """Of a turn. Initialisation has number 0, iterations count up from 1, greedy turns down from -1, and are told
        from those of other evaluations by the iteration."""
        root, training = jax.random.key(member.seed), evaluation <= 0
        other = evaluation + jnp.where(absolute, 2**20, 0)
        key = jax.random.fold_in(root, jnp.where(training, shared.iteration.low + 1, -other))
        key = jnp.where(training, key, jax.random.fold_in(key, shared.iteration.low))
        return jnp.where(shared.iteration.high > 0, jax.random.fold_in(key, shared.iteration.high), key)

    @property
    def evaluation_turns(self) -> int:
        """How many windows of all rollouts make an evaluation."""
        return turns_of(self.cfg.eval.episodes, self.cfg)

    def epsilon(self, member: Member) -> Float[Array, ""]:
        start, end, steps = (member.hyper[f"explore.eps_{name}"] for name in ("start", "end", "steps"))
        return linear_schedule(count.as_float(member.env_steps), start, end, steps)

    def learning_rate(self, member: Member, hyper: Hyper) -> Float[Array, ""]:
        return self._over_all_steps(member, hyper["optim.lr"], hyper["optim.lr"] * hyper["optim.lr_end"])

    def priority_beta(self, member: Member) -> Float[Array, ""]:
        return self._over_all_steps(member, member.hyper["replay.priority_beta"], jnp.ones(()))

    def _over_all_steps(self, member: Member, start: Array, end: Array) -> Float[Array, ""]:
        return linear_schedule(count.as_float(member.env_steps), start, end, jnp.float32(self.cfg.total_steps))

    def _draw(self, key: Array, member: Member, held: Array) -> tuple[Int[Array, " B"], float | Float[Array, " share"]]:
        """Where in replay the windows of a batch are, and how much each of this device's share counts."""
        batch, priority, alpha = self.cfg.replay.batch, member.priority, member.hyper["replay.priority_alpha"]
        if priority is None:
            return replay.draw(key, member.replay, held, batch), 1.0
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

    def _learn(self, member: Member, key: Array, lr: Array, held: Array) -> tuple[dict[str, Any], UpdateStats]:
        """The updates of an iteration: what they change of the member, without the replay, which would be copied.

        From the first one on in which something is not finite, nothing changes.
        """
        split = self.learner.split

        def one(carry: tuple[LearnerState, Array | None, Fault], key: Array) -> tuple[Any, UpdateStats]:
            learner, priority, fault = carry
            index, weight = self._draw(key, member._replace(priority=priority), held)
            window = self._window(member, replay.take(member.replay, split.mine(index)))
            after, stats, new = self.learner.update(
                learner, window, member.moments, member.hyper, lr, weight, jax.random.fold_in(key, 1)
            )
            fault = health.found(fault, health.of_update(after, stats), member.env_steps)
            sound = fault.code == 0
            if priority is not None:
                priority = jnp.where(sound, priority.at[index].set(split.gather(new)), priority)
            stats = jax.tree.map(lambda x: jnp.where(sound, x, 0.0), stats)
            return (_where(sound, after, learner), priority, fault), stats

        carry = member.learner, member.priority, member.fault
        with jax.named_scope("learning"):
            carry, stats = jax.lax.scan(one, carry, jax.random.split(key, self.cfg.updates))
        learner, priority, fault = carry
        return {"learner": learner, "priority": priority, "fault": fault}, jax.tree.map(jnp.mean, stats)

    def _wait(self, member: Member, key: Array, lr: Array, held: Array) -> tuple[dict[str, Any], UpdateStats]:
        """Replay does not hold a batch yet."""
        del key, lr, held
        same = {"learner": member.learner, "priority": member.priority, "fault": member.fault}
        return same, UpdateStats(*(jnp.zeros(()) for _ in UpdateStats._fields))

    def _metrics(self, member: Member) -> dict[str, Any]:
        """What the log is made of. Means over nothing are 0, as ``…/episodes`` and ``train/updates`` then are."""
        tally = member.tally
        learned = jnp.maximum(tally.learned, 1.0)
        learning = {name: x / learned for name, x in tally.learning._asdict().items()}
        train = tally.trained.means() | learning | {"updates": tally.learned * self.cfg.updates}
        train |= {"epsilon": self.epsilon(member), "lr": self.learning_rate(member, member.hyper)}
        train |= {"strange_rewards": tally.strange}
        return {
            "env_steps": member.env_steps,
            "fault": member.fault,
            **{f"train/{k}": v for k, v in train.items()},
            **{f"eval/{k}": v for k, v in tally.greedy.means().items()},
        }


def _where(condition: Bool[Array, ""], a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def build_env(cfg: Config, batch: int) -> BatchedDecPOMDP:
    """E environments as the configuration describes them."""
    return make_env(cfg.env.name, batch=batch, **_options(cfg))


def check_own_env(cfg: Config) -> None:
    """Plays an environment that is not one of ours as it is, for a moment. Raises ``EnvError`` for what is wrong."""
    env = cfg.env
    if env.factory or env.kwargs or entries()[env.name].sizes is None:
        check_env(make_env(env.name, **_options(cfg)))


def _options(cfg: Config) -> dict[str, Any]:
    env = cfg.env
    limits = {"time_limit": env.time_limit, "episode_limit": env.episode_limit}
    return {"factory": env.factory, **limits, **env.kwargs}


def make_program(cfg: Config, split: Split = WHOLE) -> _Program:
    env = build_env(cfg, cfg.rollouts)
    slots = window_length(cfg, env.spec) + 1
    return _Program(cfg, env, make_learner(cfg, env.spec, split), slots)


def make_train(cfg: Config) -> Train:
    """``init(seed, hyper=None)`` and ``chunk(member, shared, plan=None) -> (member, shared, metrics)``.

    Both are pure and for one member: jit, vmap and shard them as the module's text shows. Without a plan, a chunk is
    K iterations, which make about ``eval.every`` environment steps, and an evaluation.
    """
    program = make_program(cfg)
    return Train(program.init, program.chunk)
