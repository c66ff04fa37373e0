"""What all algorithms learn with: a team's values, the loss towards targets, and the gradient step.

Algorithms differ in where windows come from and in what the targets are made of (:mod:`jqmix.learning.dqn`,
:mod:`jqmix.learning.pqn`); members of the family differ in the mixer. A mixer may bring two things more: a ``critic``,
which is learned beside it, weights its errors and gives the targets (weighted QMIX), and an ``auxiliary`` loss (QTRAN).
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jqmix.config import Config
from jqmix.inputs import ConfigError
from jqmix.learning.exploration import greedy
from jqmix.learning.returns import TARGETS, Actions, Transitions
from jqmix.learning.split import WHOLE, Split
from jqmix.networks import normalise
from jqmix.networks.agent import Agent, AgentStart
from jqmix.networks.cores import CORES
from jqmix.networks.cores.check import check_core
from jqmix.networks.mixers import MIXERS, build_mixer
from jqmix.networks.mixers.base import Joint, Mixer, MixerBatch, MixerSizes, zero_batch
from jqmix.networks.mixers.check import check_auxiliary
from jqmix.types import EnvSpec, Window

Params = dict[str, Any]  # {"agent": …, "mixer": …}, and where there is a critic its own two under "critic"
Stats = dict[str, Float[Array, ""]]  # for the log: means over the valid slots of a batch, by name
TOLD = ("loss", "td_error_abs", "q_taken", "target", "grad_norm")  # of every update
LARGEST = 0.9  # R2D2's share of the largest error in a window's surprise: a mean would drown what is rare


class Values(NamedTuple):
    """What a team's agents tell of a window."""

    q: Float[Array, "T1 B N A"]
    hidden: Float[Array, "T1 B N H"]

    def joint(self, action: Int[Array, "T1 B N"], window: Window) -> tuple[Float[Array, "T1 B N"], Joint]:
        """The agents' values of joint actions, and what else a mixer may read of these."""
        best = greedy(self.q, window.avail)
        return taken(self.q, action), Joint(action, best, taken(self.q, best), window.obs, self.hidden)


class Aim(NamedTuple):
    """What the values of the actions taken are to be: ``returns``; and ``value``, V_t, from which they bootstrap."""

    returns: Float[Array, "T1 B *agents"]
    value: Float[Array, "T1 B *agents"]


# What gives the targets: (the parameters that learn, their agents' values, window, state that the mixer reads) -> Aim.
AimOf = Callable[[Params, Values, Window, Array], Aim]


class Summed(NamedTuple):
    """What comes beside a loss, of the same windows."""

    stats: Stats  # summed over the valid slots
    slots: Float[Array, ""]  # how many these are
    surprise: Float[Array, " B"]


class Updated(NamedTuple):
    """What a gradient step makes."""

    params: Params
    opt_state: Any
    stats: Stats
    surprise: Float[Array, " B"]  # of the whole batch


def taken(q: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """q at ``action``. A masked sum: its gradient is a product, where a gather's would be a scatter."""
    return jnp.sum(q * jax.nn.one_hot(action, q.shape[-1], dtype=q.dtype), axis=-1)


def was_greedy(
    q: Float[Array, "*batch A"], avail: Bool[Array, "*batch A"], action: Int[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether ``action`` is a best available one; among equals each is."""
    return taken(q, action) >= jnp.max(jnp.where(avail, q, -jnp.inf), axis=-1)


def surprise(error: Float[Array, "T1 B *agents"], mask: Bool[Array, "T1 B"]) -> Float[Array, " B"]:
    """η max |δ| + (1 − η) mean |δ| over a window's transitions, η = 0.9 (R2D2, Kapturowski et al. 2019, §2.3).

    Where agents have errors of their own (IQL), |δ| is their mean.
    """
    size = jnp.where(mask, jnp.mean(jnp.abs(error).reshape(*mask.shape, -1), axis=-1), 0.0)
    mean = jnp.sum(size, axis=0) / jnp.maximum(jnp.sum(mask, axis=0), 1)
    return LARGEST * jnp.max(size, axis=0) + (1.0 - LARGEST) * mean


def split_off(window: Window, burn_in: int) -> Window:
    """The slots after the first ``burn_in``, which become its ``warm_up``."""
    if burn_in == 0:
        return window
    steps = window._replace(start=None)
    before, after = jax.tree.map(lambda x: x[:burn_in], steps), jax.tree.map(lambda x: x[burn_in:], steps)
    return after._replace(start=window.start, warm_up=before)


class Learner(NamedTuple):
    """Static parts of learning; every method is a pure function of its arguments.

    Where a method takes ``cfg``, it is the configuration with its traced fields bound to a member's (``hyper.bind``).
    """

    agent: Agent
    mixer: Mixer
    sizes: MixerSizes
    optimizer: optax.GradientTransformation
    split: Split = WHOLE

    def bound(self, cfg: Config) -> "Learner":
        """With the settings of mixer and core as ``cfg`` has them. Inside the program those that are traced are arrays,
        wherever a factory uses them."""
        mixer = MIXERS.build(cfg.algo.mixer, self.sizes, cfg.mixer)
        return self._replace(mixer=mixer, agent=self.agent._replace(core_settings=cfg.core))

    def init(self, key: Array) -> tuple[Params, Any]:
        """Parameters, and the optimiser's state: of all of them as one vector."""
        params = self._init_team(self.mixer, key)
        if self.mixer.critic is not None:
            params["critic"] = self._init_team(self.mixer.critic.mixer, jax.random.fold_in(key, 2))
        return params, self.optimizer.init(ravel_pytree(params)[0])

    def _init_team(self, mixer: Mixer, key: Array) -> Params:
        key_agent, key_mixer = jax.random.split(key)
        return {"agent": self.agent.init(key_agent), "mixer": mixer.init(key_mixer)}

    def values(self, team: Params, window: Window) -> Values:
        """``team``: {"agent": …, …}. Where the window has a warm-up, memory comes from there, without a gradient."""
        start, before, agent = window.start, window.warm_up, team["agent"]
        if before is not None:
            warm = self.agent.unroll(jax.lax.stop_gradient(agent), before.obs, before.action, before.first, start)
            start = AgentStart(jax.lax.stop_gradient(warm.state), before.action[-1])
        unrolled = self.agent.unroll(agent, window.obs, window.action, window.first, start)
        return Values(unrolled.q, unrolled.hidden)

    def joint_value(self, mixer: Mixer, team: Params, window: Window, state: Array) -> Float[Array, "T1 B *agents"]:
        """What a team's mixer says of the window's actions; ``team``: {"agent": …, "mixer": …}."""
        q, joint = self.values(team, window).joint(window.action, window)
        return mixer.apply(team["mixer"], q, state, joint)

    def critic_of(self, params: Params) -> tuple[Mixer, Params]:
        """The mixer and the team whose values targets bootstrap from: the critic's where there is one."""
        if self.mixer.critic is None:
            return self.mixer, params
        return self.mixer.critic.mixer, params["critic"]

    def returns(
        self,
        mixer: Mixer,
        team: Params,
        values: Values,
        chooser: Float[Array, "T1 B N A"],
        window: Window,
        state: Array,
        cfg: Config,
    ) -> Aim:
        """λ-returns, or the like (``algo.target``), over a team's values at the greedy actions of ``chooser``."""

        def joint_value(action: Array) -> Array:
            each, joint = values.joint(action, window)
            return mixer.apply(team["mixer"], each, state, joint)

        def all_greedy() -> Array:
            kept = was_greedy(chooser, window.avail, window.action)
            return kept if self.mixer.per_agent else jnp.all(kept, axis=-1)

        value = joint_value(greedy(chooser, window.avail))
        reward, discount, last = window.reward * cfg.algo.reward_scale, window.discount * cfg.algo.gamma, window.last
        if self.mixer.per_agent:
            reward, discount, last = (jnp.broadcast_to(x[..., None], value.shape) for x in (reward, discount, last))
        actions = Actions(lambda: joint_value(window.action), all_greedy)
        return Aim(TARGETS[cfg.algo.target](Transitions(reward, discount, value, last), actions, cfg.algo), value)

    def loss(
        self,
        params: Params,
        aim: AimOf,
        window: Window,
        state: Array,
        cfg: Config,
        weight: float | Float[Array, " B"] = 1.0,
        key: Array | None = None,
    ) -> tuple[Float[Array, ""], Summed]:
        """Σ w m ½ (Q_tot − G)², with m = 1 exactly on the slots that a transition leaves, w the windows' weights; and
        what the mixer adds, weighted alike. To be divided by Σ m, which is ``slots`` beside it.

        ``aim`` gives the targets G, whose gradient is stopped here. ``key`` is the auxiliary loss's.
        Where devices split the batch, the sum over this device's share: dividing comes when they have added theirs up.
        """
        mixer, key = self.mixer, jax.random.key(0) if key is None else key
        values = self.values(params, window)
        q, joint = values.joint(window.action, window)
        q_tot = mixer.apply(params["mixer"], q, state, joint)
        returns, value = jax.lax.stop_gradient(aim(*jax.lax.stop_gradient((params, values)), window, state))
        error, metrics = q_tot - returns, {}
        losses = 0.5 * jnp.square(error)
        if mixer.critic is not None:
            losses *= mixer.critic.weight(joint, q_tot, returns, value, cfg.mixer)
            q_hat = self.joint_value(mixer.critic.mixer, params["critic"], window, state)
            losses += 0.5 * jnp.square(q_hat - returns)
        if mixer.auxiliary is not None:
            batch = MixerBatch(window, state, q, joint, q_tot, returns)
            more, metrics = mixer.auxiliary(params, batch, cfg.mixer, key)
            losses += more[..., None] if mixer.per_agent else more

        valid = ~window.last
        mask = jnp.broadcast_to(valid[..., None], q_tot.shape) if mixer.per_agent else valid

        def total(x: Array) -> Array:
            return jnp.sum(jnp.where(mask, x, 0.0))

        per_window = jnp.reshape(weight, (-1, *(1,) * (error.ndim - 2)))  # over the axes that follow B
        loss = total(per_window * losses)
        stats = {"loss": loss, "td_error_abs": total(jnp.abs(error)), "q_taken": total(q_tot), "target": total(returns)}
        slots = jnp.sum(mask, dtype=jnp.float32)  # of one type with what it is added up with
        errors = math.prod(error.shape[2:])  # of a slot: one, or every agent's
        stats |= {name: jnp.sum(jnp.where(valid, x, 0.0)) * errors for name, x in metrics.items()}
        return loss, Summed(stats, slots, surprise(error, valid))

    def update(
        self,
        params: Params,
        opt_state: Any,
        aim: AimOf,
        window: Window,
        moments: normalise.Moments,
        cfg: Config,
        weight: float | Float[Array, " B"] = 1.0,
        key: Array | None = None,
        factor: float = 1.0,
    ) -> Updated:
        """One gradient step with the rate ``cfg.optim.lr`` on ``factor`` times the loss, its global norm clipped.

        ``moments`` are of the global state, which the mixer reads normalised by them (``algo.state_norm``).
        """
        window = split_off(window, cfg.replay.burn_in)
        state = mixer_state(cfg, moments, window.state)
        grads, summed = jax.grad(self.loss, has_aux=True)(params, aim, window, state, cfg, weight, key)
        # As one vector: an optimiser would have its few operations for each of a few dozen arrays.
        vector, restore = ravel_pytree(grads)
        surprises = self.split.among_zeros(summed.surprise)
        vector, stats, slots, surprises = self.split.total((vector, summed.stats, summed.slots, surprises))  # at once
        each = factor / jnp.maximum(slots, 1.0)
        norm = jnp.linalg.norm(vector) * each
        scale = jnp.minimum(1.0, cfg.optim.grad_clip / (norm + 1e-6)) * each
        stats = {name: x / jnp.maximum(slots, 1.0) for name, x in stats.items()} | {"grad_norm": norm}
        steps, opt_state = self.optimizer.update(vector * scale, opt_state)
        params = restore(ravel_pytree(params)[0] - cfg.optim.lr * jnp.asarray(steps))
        return Updated(params, opt_state, stats, surprises)


def empty_stats(learner: Learner, cfg: Config) -> Stats:
    """Zeros, by the names of all that an update tells."""
    return {name: jnp.zeros(()) for name in [*TOLD, *_auxiliary_names(learner, cfg)]}


def _auxiliary_names(learner: Learner, cfg: Config) -> list[str]:
    """What the mixer's auxiliary loss tells: traced for one slot, not computed. Raises ``ConfigError`` for a name that
    is taken."""
    auxiliary = learner.mixer.auxiliary
    if auxiliary is None:
        return []

    def metrics(key: Array) -> Any:
        batch = zero_batch(learner.sizes, 1, 1, learner.mixer.per_agent)
        return auxiliary(learner.init(key)[0], batch, cfg.mixer, key)[1]

    names = sorted(jax.eval_shape(metrics, jax.random.key(0)))
    taken_names = [name for name in names if name in TOLD]
    if taken_names:
        raise ConfigError(f"algo.mixer: {cfg.algo.mixer}: a metric of its loss is called {taken_names[0]}, as ours is")
    return names


def mixer_state(cfg: Config, moments: normalise.Moments, state: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """What the mixer reads of the global state."""
    return normalise.apply(moments, state) if cfg.algo.state_norm == "running" else state


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
    "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=1e-5, eps_in_sqrt=False),  # as published: ε outside the root
    "radam": lambda: optax.scale_by_radam(b1=0.9, b2=0.999, eps=1e-8),
}


def make_optimizer(name: str) -> optax.GradientTransformation:
    """The direction of a step, before the learning rate."""
    return OPTIMIZERS[name]()


def make_agent(cfg: Config, spec: EnvSpec) -> Agent:
    """Raises ``ConfigError``, one line, for a core from outside that is none, and for an encoder that reads entities
    where an environment tells of none."""
    options: dict[str, Any] = asdict(cfg.agent) | {"obs_norm": cfg.agent.obs_norm == "running"}
    by_entity = options.pop("encoder") == "entities"
    if by_entity and spec.entities is None:
        raise ConfigError(
            f"agent.encoder: entities needs an environment that says how its observations list them, as SMAX does; "
            f"with {spec.name} it takes dense"
        )
    agent = Agent(
        spec.n_agents,
        spec.n_actions,
        spec.obs_size,
        **options,
        core_settings=cfg.core,
        orthogonal=cfg.algo.init == "orthogonal",
        head_gain=cfg.algo.init_gain,
        entities=spec.entities if by_entity else None,
    )
    if cfg.agent.core not in CORES.builtin:
        check_core(cfg.agent.core, agent.core_functions, agent.core_sizes)
    return agent


def make_learner(cfg: Config, spec: EnvSpec, split: Split = WHOLE) -> Learner:
    sizes = MixerSizes(spec.n_agents, spec.state_size, spec.n_actions, spec.obs_size, cfg.agent.hidden)
    agent, mixer = make_agent(cfg, spec), build_mixer(cfg.algo.mixer, sizes, cfg.mixer)
    team = jax.eval_shape(lambda key: {"agent": agent.init(key), "mixer": mixer.init(key)}, jax.random.key(0))
    check_auxiliary(mixer, team, sizes, cfg.mixer)
    return Learner(agent, mixer, sizes, make_optimizer(cfg.optim.name), split)
