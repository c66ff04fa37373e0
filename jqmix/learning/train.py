"""The compiled step, as pure functions of one member: ``train`` collects and learns, ``evaluate`` plays greedily.

``init(seed)`` makes a member's state. A member is what is vmapped; ``Shared`` holds the counters, equal for all members
and never batched, so that under ``vmap`` every ``lax.cond`` stays a branch and every write to a buffer stays one
contiguous update. ``chunk`` is both together:

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

from jqmix.buffers.windows import BATCH_AXIS
from jqmix.config import CHOICES, Config, check_window, window_start
from jqmix.envs.base import BatchedDecPOMDP, DecPOMDP
from jqmix.envs.check import check_env
from jqmix.envs.registry import entries, make_env
from jqmix.kernels.products import products_in
from jqmix.learning import count, dqn, health, pqn
from jqmix.learning.algorithm import Algorithm, LearningResult, Room, select
from jqmix.learning.evaluation import evaluate
from jqmix.learning.exploration import linear_schedule
from jqmix.learning.health import Fault
from jqmix.learning.hyper import Hyper, bind, hyper_of
from jqmix.learning.learner import empty_stats
from jqmix.learning.rollout import Episodes, Ongoing, agent_start, begin_ongoing, collect, no_episodes
from jqmix.learning.split import WHOLE, RolloutsShare, Split, noise_axes
from jqmix.learning.state import Best, Iterations, Member, Rounds, Shared, Tally
from jqmix.networks import normalise
from jqmix.types import EnvSpec, Packed

ALGORITHMS: dict[str, Room] = {"dqn": dqn.ROOM, "pqn": pqn.ROOM}


class Train(NamedTuple):
    init: Callable[..., tuple[Member, Shared]]
    chunk: Callable[..., tuple[Member, Shared, dict[str, Any]]]


def window_length(cfg: Config, spec: EnvSpec) -> int:
    """T: transitions of a window. Raises ``ConfigError`` if one that begins at a reset is shorter than an episode."""
    check_window(cfg, spec.episode_limit)
    return cfg.window or spec.episode_limit


def window_slots(cfg: Config, spec: EnvSpec) -> int:
    """What a stored window has: T transitions, the slot that the last one led to, and the slots that warm up memory."""
    return cfg.replay.burn_in + window_length(cfg, spec) + 1


def iterations_per_chunk(cfg: Config, spec: EnvSpec) -> int:
    """K: iterations that make ``eval.every`` environment steps (fewer steps where episodes end inside windows)."""
    return math.ceil(cfg.eval.every / (cfg.rollouts * window_length(cfg, spec)))


def learning_batch(cfg: Config) -> int:
    """Windows per update."""
    return ALGORITHMS[cfg.algo.name].batch(cfg)


def updates_per_iteration(cfg: Config) -> int:
    return ALGORITHMS[cfg.algo.name].updates(cfg)


def divides(cfg: Config, parts: int) -> bool:
    """Whether so many devices can share all that a member has of rollouts, buffer and batches equally.

    Not where environments draw within their steps: there is no telling what one device would draw for all of them.
    """
    if parts == 1 or not ALGORITHMS[cfg.algo.name].divides(cfg, parts):
        return parts == 1
    every, mine = build_env(cfg, cfg.rollouts), build_env(cfg, cfg.rollouts // parts)
    return all(axis >= 0 for axis in jax.tree.leaves(noise_axes(every, mine)))


def episodes_at_once(cfg: Config) -> int:
    """How many episodes a round of an evaluation plays."""
    return min(cfg.eval.episodes, cfg.eval.parallel)


def rounds_for(episodes: int, cfg: Config) -> int:
    """Rounds that so many whole episodes take."""
    return math.ceil(episodes / episodes_at_once(cfg))


def whole_evaluation(cfg: Config) -> Rounds:
    """All rounds of an evaluation at once."""
    return Rounds(rounds_for(cfg.eval.episodes, cfg), 0, cfg.eval.episodes, True, False)


class Program(NamedTuple):
    """The static parts of training."""

    cfg: Config
    env: BatchedDecPOMDP
    eval_env: BatchedDecPOMDP
    algorithm: Algorithm
    collecting: Split = WHOLE  # how rollouts are divided
    evaluating: Split = WHOLE  # and the episodes of an evaluation

    def __repr__(self) -> str:
        return f"Program({self.cfg.algo.mixer} on {self.env.spec.name})"

    def init(self, seed: Int[Array, ""], hyper: Hyper | None = None) -> tuple[Member, Shared]:
        """A member at its beginning, and the counters at zero."""
        cfg, spec, none = self.cfg, self.env.spec, jnp.int32(0)
        root = jax.random.key(seed)
        learner = self.algorithm.init(jax.random.fold_in(root, 0))
        worst = jnp.float32(-jnp.inf)
        ongoing = self._begin_rollouts()
        member = Member(
            seed=jnp.asarray(seed, jnp.int32),
            hyper=hyper_of(cfg) if hyper is None else hyper,
            learner=learner,
            buffer=self.algorithm.init_buffer(self._window_start()),
            ongoing=ongoing,
            moments=normalise.init(spec.state_size),
            reward_moments=normalise.init(1) if cfg.algo.reward_norm == "running" else None,
            env_steps=count.from_int(0),
            fault=Fault(none, count.from_int(0)),
            best=Best(jax.tree.map(jnp.copy, learner.params["agent"]), worst, worst, count.from_int(0)),
            tally=self._empty_tally(),
        )
        return member, Shared(count.from_int(0), count.from_int(0), none, self.algorithm.init_counters())

    def _begin_rollouts(self) -> Ongoing | None:
        if window_start(self.cfg) == "reset":
            return None
        return begin_ongoing(self.algorithm.learner.agent, self.env, self.cfg.replay.burn_in)

    def _window_start(self) -> Any:
        """The shapes of what a stored window starts from; None where that is a reset."""
        ongoing = jax.eval_shape(self._begin_rollouts)
        return None if ongoing is None else agent_start(ongoing.actor)

    def _empty_tally(self) -> Tally:
        none, episodes = jnp.zeros(()), jax.tree.map(lambda x: x[0], no_episodes(self.env))
        stats = empty_stats(self.algorithm.learner, self.cfg)
        return Tally(episodes, stats, none, none, none, episodes)

    # Collecting and learning

    def train(self, member: Member, shared: Shared, iterations: Iterations) -> tuple[Member, Shared, dict[str, Any]]:
        """So many iterations. Also how far the member is: ``env_steps`` and ``fault``."""

        def one_more(_: Array, carry: tuple[Member, Shared]) -> tuple[Member, Shared]:
            return self.iteration(*carry, iterations.total_steps)

        with products_in(self.cfg.precision):
            member, shared = jax.lax.fori_loop(0, jnp.asarray(iterations.count), one_more, (member, shared))
        return member, shared, {"env_steps": member.env_steps, "fault": member.fault}

    def iteration(
        self, member: Member, shared: Shared, total_steps: Float[Any, ""] | None = None
    ) -> tuple[Member, Shared]:
        """A window from every rollout, and what the algorithm learns from it. Schedules end at ``total_steps``, which
        are the configuration's unless told.

        Where something is not finite, what the member learned stays from then on as it was before.
        """
        agent = self._algorithm(member).learner.agent
        key_collect, key_learn = jax.random.split(self._training_key(member, shared))
        with jax.named_scope("collecting"):  # for profiles
            windows, episodes, ongoing = collect(
                agent,
                member.learner.params["agent"],
                self.env,
                key_collect,
                self.epsilon(member),
                window_length(self.cfg, self.env.spec),
                member.ongoing,
                self.collecting,
            )
            windows, episodes = self.collecting.gather((windows, episodes), (BATCH_AXIS, 0))
        member, strange = self._remember(member._replace(ongoing=ongoing), windows)
        now = self.now(member, total_steps)
        learned = self._algorithm(member).learn(member, shared.counters, windows, now, key_learn)
        member = member._replace(
            learner=learned.learner,
            buffer=learned.buffer,
            fault=learned.fault,
            tally=_with_iteration(member.tally, episodes, learned, strange),
        )
        shared = Shared(
            iteration=count.add(shared.iteration, 1),
            updates=count.add(shared.updates, learned.updates),
            since_evaluation=shared.since_evaluation + 1,
            counters=learned.counters,
        )
        return member, shared

    def _remember(self, member: Member, windows: Packed) -> tuple[Member, Float[Array, ""]]:
        """Windows enter the count of steps and the running statistics. Also how many rewards are outside the range that
        the environment declares."""
        cfg, bounds = self.cfg, self.env.spec.reward_range
        new = jax.tree.map(lambda x: x[cfg.replay.burn_in :], windows._replace(start=None))
        seen = self.env.unpack(new.seen)
        # Where rollouts go on, the next window begins with this one's last slot: what that shows is counted there.
        counted = seen if member.ongoing is None else jax.tree.map(lambda x: x[:-1], seen)
        member = member._replace(fault=health.found(member.fault, health.in_window(new, seen), member.env_steps))
        changes: dict[str, Any] = {
            "env_steps": count.add(member.env_steps, jnp.sum(~new.last)),
            "moments": normalise.update(member.moments, counted.state),
        }
        if member.reward_moments is not None:
            changes["reward_moments"] = normalise.update(member.reward_moments, new.reward[..., None], ~new.last)
        if cfg.agent.obs_norm == "running":
            known = normalise.Moments(**member.learner.params["agent"]["obs_norm"])
            changes["learner"] = _with_obs_norm(member.learner, normalise.update(known, counted.obs))
        kept = {name: getattr(member, name) for name in changes}
        strange = jnp.sum(health.outside(new.reward, bounds) & ~new.last, dtype=jnp.float32)
        return member._replace(**select(member.fault.code == 0, changes, kept)), strange

    # Evaluation

    def evaluate(self, member: Member, shared: Shared, rounds: Rounds) -> tuple[Member, Shared, dict[str, Any]]:
        """Rounds of greedy episodes with what was learned. Reads neither ``buffer`` nor ``ongoing``.

        Where an evaluation is complete, what played best is kept, and the sums over training begin anew; also all that
        there is to log.
        """
        rounds = jax.tree.map(jnp.asarray, rounds)
        greedy = jax.tree.map(lambda x: jnp.where(rounds.first == 0, 0.0, x), member.tally.greedy)
        size = episodes_at_once(self.cfg)

        def one_more(i: Array, greedy: Episodes) -> Episodes:
            number = rounds.first + i
            key = self._evaluation_key(member, shared, number, rounds.absolute)
            agent, params = self._algorithm(member).learner.agent, member.learner.params["agent"]
            episodes = evaluate(agent, params, self.eval_env, key)
            counted = self.evaluating.mine(number * size + jnp.arange(size) < rounds.episodes)
            played = self.evaluating.total(jax.tree.map(lambda x: jnp.sum(x * counted), episodes))
            return jax.tree.map(jnp.add, greedy, played)

        with products_in(self.cfg.precision):
            greedy = jax.lax.fori_loop(0, rounds.count, one_more, greedy)
        member = member._replace(tally=member.tally._replace(greedy=greedy))
        metrics = self._metrics(member, rounds.total_steps)
        done = rounds.complete & ~rounds.absolute
        tally = self._empty_tally()._replace(greedy=greedy)
        member = member._replace(best=self._best(member, done), tally=select(done, tally, member.tally))
        shared = shared._replace(since_evaluation=jnp.where(done, 0, shared.since_evaluation))
        return member, shared, metrics

    def _best(self, member: Member, done: Array) -> Best:
        means, best = member.tally.greedy.means(), member.best
        win_rate, return_mean = means.get("win_rate", jnp.zeros(())), means["return_mean"]
        better = (win_rate > best.win_rate) | ((win_rate == best.win_rate) & (return_mean >= best.return_mean))
        new = Best(member.learner.params["agent"], win_rate, return_mean, member.env_steps)
        return select(better & done & (member.fault.code == 0), new, best)

    def _metrics(self, member: Member, total_steps: Float[Any, ""] | None) -> dict[str, Any]:
        """What the log is made of. Means over nothing are 0, as ``…/episodes`` and ``train/updates`` then are."""
        tally = member.tally
        learning = {name: x / jnp.maximum(tally.learned, 1.0) for name, x in tally.learning.items()}
        train = tally.trained.means() | learning | {"updates": tally.updates}
        train |= {
            "epsilon": self.epsilon(member),
            "lr": self.now(member, total_steps).optim.lr,
            "strange_rewards": tally.strange,
        }
        return {
            "env_steps": member.env_steps,
            "fault": member.fault,
            **{f"train/{k}": v for k, v in train.items()},
            **{f"eval/{k}": v for k, v in tally.greedy.means().items()},
        }

    # Both

    def _algorithm(self, member: Member) -> Algorithm:
        """With the member's own settings of mixer and core, where some of them are traced."""
        traced = any(path.partition(".")[0] in CHOICES for path in member.hyper)
        return self.algorithm.bound(bind(self.cfg, member.hyper)) if traced else self.algorithm

    def chunk(
        self, member: Member, shared: Shared, iterations: int | None = None
    ) -> tuple[Member, Shared, dict[str, Any]]:
        """So many iterations (unless told K, about ``eval.every`` environment steps), and an evaluation."""
        k = iterations_per_chunk(self.cfg, self.env.spec) if iterations is None else iterations
        member, shared, _ = self.train(member, shared, Iterations(k))
        return self.evaluate(member, shared, whole_evaluation(self.cfg))

    # Random numbers: initialisation has number 0, iterations count up from 1, rounds of evaluations down from -1, and
    # are told from those of other evaluations by the iteration.

    def _training_key(self, member: Member, shared: Shared) -> Array:
        key = jax.random.fold_in(jax.random.key(member.seed), shared.iteration.low + 1)
        return _beyond_32_bits(key, shared)

    def _evaluation_key(self, member: Member, shared: Shared, number: Array, absolute: Array) -> Array:
        number = number + 1 + jnp.where(absolute, 2**20, 0)
        key = jax.random.fold_in(jax.random.key(member.seed), -number)
        return _beyond_32_bits(jax.random.fold_in(key, shared.iteration.low), shared)

    # Schedules, in environment steps

    def now(self, member: Member, total_steps: Float[Any, ""] | None = None) -> Config:
        """The configuration with the member's own traced fields, and schedules at their value of now."""
        cfg, steps = bind(self.cfg, member.hyper), count.as_float(member.env_steps)
        end = jnp.float32(self.cfg.total_steps) if total_steps is None else total_steps
        lr = linear_schedule(steps, cfg.optim.lr, cfg.optim.lr * cfg.optim.lr_end_factor, end)
        beta = linear_schedule(steps, cfg.replay.priority_beta, 1.0, end)
        return bind(cfg, {"optim.lr": lr, "replay.priority_beta": beta})

    def epsilon(self, member: Member) -> Float[Array, ""]:
        explore = bind(self.cfg, member.hyper).explore
        return linear_schedule(count.as_float(member.env_steps), explore.eps_start, explore.eps_end, explore.eps_steps)


def _with_iteration(tally: Tally, episodes: Episodes, learned: LearningResult, strange: Array) -> Tally:
    return tally._replace(
        trained=jax.tree.map(lambda total, x: total + jnp.sum(x), tally.trained, episodes),
        learning=jax.tree.map(jnp.add, tally.learning, learned.stats),
        learned=tally.learned + (learned.updates > 0),
        updates=tally.updates + learned.updates,
        strange=tally.strange + strange,
    )


def _with_obs_norm(learner: Any, moments: normalise.Moments) -> Any:
    """What is learned, with these statistics of observations for every team in it: a critic's and a target's, too."""

    def renewed(path: tuple[Any, ...], x: Array) -> Array:
        names = [getattr(part, "key", None) for part in path]
        return getattr(moments, str(names[-1])) if names[-3:-1] == ["agent", "obs_norm"] else x

    return jax.tree_util.tree_map_with_path(renewed, learner)


def _beyond_32_bits(key: Array, shared: Shared) -> Array:
    """A key of its own where the count of iterations passed 30 bits."""
    return jnp.where(shared.iteration.high > 0, jax.random.fold_in(key, shared.iteration.high), key)


def build_env(cfg: Config, batch: int) -> BatchedDecPOMDP:
    """E environments as the configuration describes them."""
    return make_env(cfg.env.name, batch=batch, **_options(cfg))


def build_single_env(cfg: Config) -> DecPOMDP:
    """One environment as the configuration describes it."""
    return make_env(cfg.env.name, **_options(cfg))


def check_own_env(cfg: Config) -> None:
    """Plays an environment that is not one of ours as it is, for a moment. Raises ``EnvError`` for what is wrong."""
    env = cfg.env
    if env.factory or env.kwargs or entries()[env.name].sizes is None:
        check_env(build_single_env(cfg))


def _options(cfg: Config) -> dict[str, Any]:
    env = cfg.env
    limits = {"time_limit": env.time_limit, "episode_limit": env.episode_limit}
    return {"factory": env.factory, **limits, **env.kwargs}


def make_program(cfg: Config, split: Split = WHOLE) -> Program:
    """``split``: how a member is divided among devices; one of more parts than one is for programs under a mesh."""
    collecting = evaluating = split.over_rollouts
    if episodes_at_once(cfg) % evaluating.parts:
        evaluating = WHOLE  # all devices play all of them
    env = _share_of_envs(cfg, cfg.rollouts, collecting)
    slots = window_slots(cfg, env.spec)
    algorithm = ALGORITHMS[cfg.algo.name].make(cfg, env, slots, split)
    eval_env = _share_of_envs(cfg, episodes_at_once(cfg), evaluating)
    return Program(cfg, env, eval_env, algorithm, collecting, evaluating)


def _share_of_envs(cfg: Config, batch: int, split: Split) -> BatchedDecPOMDP:
    every = build_env(cfg, batch)
    return every if split.parts == 1 else RolloutsShare(every, build_env(cfg, batch // split.parts), split)


def make_train(cfg: Config) -> Train:
    """``init(seed, hyper=None)`` and ``chunk(member, shared, iterations=None) -> (member, shared, metrics)``.

    Both are pure and for one member: jit, vmap and shard them as the module's text shows. A chunk is so many
    iterations, which unless told make about ``eval.every`` environment steps, and an evaluation.
    """
    program = make_program(cfg)
    return Train(program.init, program.chunk)
