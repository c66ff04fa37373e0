"""The learner: loss, double Q-learning, optimiser, target copy. Algorithms differ in the mixer alone.

Two things a mixer may bring: a ``critic``, which is learned beside it, weights its errors and gives the targets
(weighted QMIX), and an ``auxiliary`` loss (QTRAN).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jqmix.config import AlgoConfig, Config
from jqmix.learning import normalise, priorities
from jqmix.learning.exploration import greedy
from jqmix.learning.hyper import Hyper, bind
from jqmix.learning.returns import corrected_returns, lambda_returns, n_step_returns
from jqmix.learning.split import WHOLE, Split
from jqmix.networks.agent import Agent
from jqmix.networks.mixers import build_mixer
from jqmix.networks.mixers.base import Joint, Mixer, MixerBatch, MixerSizes
from jqmix.networks.mixers.check import check_auxiliary
from jqmix.types import EnvSpec, Window

Params = dict[str, Any]  # {"agent": …, "mixer": …}, and where there is a critic its own two under "critic"


class LearnerState(NamedTuple):
    params: Params
    target: Params
    opt_state: Any  # of all parameters as one vector


class UpdateStats(NamedTuple):
    """Means over the valid slots of one batch, for the log."""

    loss: Float[Array, ""]
    td_error_abs: Float[Array, ""]
    q_taken: Float[Array, ""]
    target: Float[Array, ""]
    grad_norm: Float[Array, ""]


class Summed(NamedTuple):
    """What comes beside a loss, of the same windows."""

    stats: UpdateStats  # summed over the valid slots
    slots: Float[Array, ""]  # how many these are
    priority: Float[Array, " B"]  # the windows' new ones


def taken(q: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """q at ``action``. A masked sum: its gradient is a product, where a gather's would be a scatter."""
    return jnp.sum(q * jax.nn.one_hot(action, q.shape[-1], dtype=q.dtype), axis=-1)


def was_greedy(
    q: Float[Array, "*batch A"], avail: Bool[Array, "*batch A"], action: Int[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether ``action`` is a best available one; among equals each is."""
    return taken(q, action) >= jnp.max(jnp.where(avail, q, -jnp.inf), axis=-1)


class Values(NamedTuple):
    """What a team's agents tell of a window."""

    q: Float[Array, "T1 B N A"]
    hidden: Float[Array, "T1 B N H"]

    def of(self, action: Int[Array, "T1 B N"], window: Window) -> tuple[Float[Array, "T1 B N"], Joint]:
        """The agents' values of joint actions, and what else a mixer may read of these."""
        best = greedy(self.q, window.avail)
        return taken(self.q, action), Joint(action, best, taken(self.q, best), window.obs, self.hidden)


class Learner(NamedTuple):
    """Static parts of learning; every method is a pure function of its arguments."""

    agent: Agent
    mixer: Mixer
    cfg: Config
    optimizer: optax.GradientTransformation
    split: Split = WHOLE

    @property
    def algo(self) -> AlgoConfig:
        return self.cfg.algo

    def init(self, key: Array) -> LearnerState:
        params = self._init_team(self.mixer, key)
        if self.mixer.critic is not None:
            params["critic"] = self._init_team(self.mixer.critic.mixer, jax.random.fold_in(key, 2))
        return LearnerState(params, jax.tree.map(jnp.copy, params), self.optimizer.init(ravel_pytree(params)[0]))

    def _init_team(self, mixer: Mixer, key: Array) -> Params:
        key_agent, key_mixer = jax.random.split(key)
        return {"agent": self.agent.init(key_agent), "mixer": mixer.init(key_mixer)}

    def mixer_state(self, moments: normalise.Moments, state: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
        """What the mixer reads of the global state."""
        return normalise.apply(moments, state) if self.algo.state_norm == "running" else state

    def values(self, team: Params, window: Window) -> Values:
        return Values(*self.agent.unroll_hidden(team["agent"], window.obs, window.action, window.first))

    def joint_value(self, mixer: Mixer, team: Params, window: Window, state: Array) -> Float[Array, "T1 B *agents"]:
        """What a team's mixer says of the window's actions; ``team``: {"agent": …, "mixer": …}."""
        q, joint = self.values(team, window).of(window.action, window)
        return mixer.apply(team["mixer"], q, state, joint)

    def targets(
        self, q: Float[Array, "T1 B N A"], target: Params, window: Window, state: Array, hyper: Hyper
    ) -> tuple[Float[Array, "T1 B *agents"], Float[Array, "T1 B *agents"]]:
        """λ-returns, or the like, over the target networks' values at the online network's greedy actions (double
        Q-learning); and V_t, those values. They are the critic's where there is one."""
        algo = bind(self.cfg, hyper).algo
        values = self.values(target, window)
        chooser, mixer = q if self.algo.double_q else values.q, self.mixer
        if mixer.critic is not None:
            mixer, target = mixer.critic.mixer, target["critic"]
            values = self.values(target, window)

        def joint_value(action: Array) -> Array:
            each, joint = values.of(action, window)
            return mixer.apply(target["mixer"], each, state, joint)

        value = joint_value(greedy(chooser, window.avail))
        reward, discount, last = window.reward * algo.reward_scale, window.discount * algo.gamma, window.last
        if self.mixer.per_agent:
            reward, discount, last = (jnp.broadcast_to(x[..., None], value.shape) for x in (reward, discount, last))
        transitions = reward, discount, value, last
        if self.algo.target == "nstep":
            return n_step_returns(*transitions, algo.n_step), value
        if self.algo.target == "qstar":
            baseline, trace = joint_value(window.action), jnp.broadcast_to(algo.td_lambda, value.shape)
            return corrected_returns(*transitions, baseline, trace), value
        if self.algo.target == "watkins":
            kept = was_greedy(chooser, window.avail, window.action)
            kept = kept if self.mixer.per_agent else jnp.all(kept, axis=-1)
            return corrected_returns(*transitions, value, algo.td_lambda * kept), value
        return lambda_returns(*transitions, algo.td_lambda), value

    def loss(
        self,
        params: Params,
        target: Params,
        window: Window,
        state: Array,
        hyper: Hyper,
        weight: float | Float[Array, " B"] = 1.0,
        key: Array | None = None,
    ) -> tuple[Float[Array, ""], Summed]:
        """Σ w m ½ (Q_tot − G)², with m = 1 exactly on the slots that a transition leaves, w the windows' weights; and
        what the mixer adds, weighted alike. To be divided by Σ m, which is ``slots`` beside it.

        Where devices split the batch, the sum over this device's share: dividing comes when they have added theirs up.
        """
        mixer, settings = self.mixer, bind(self.cfg, hyper).mixer
        values = self.values(params, window)
        q, joint = values.of(window.action, window)
        q_tot = mixer.apply(params["mixer"], q, state, joint)
        aims = self.targets(jax.lax.stop_gradient(values.q), target, window, state, hyper)
        returns, value = jax.lax.stop_gradient(aims)
        error = q_tot - returns
        losses = 0.5 * jnp.square(error)
        if mixer.critic is not None:
            losses *= mixer.critic.weight(joint, q_tot, returns, value, settings)
            q_hat = self.joint_value(mixer.critic.mixer, params["critic"], window, state)
            losses += 0.5 * jnp.square(q_hat - returns)
        if mixer.auxiliary is not None:
            team = {name: params[name] for name in ("agent", "mixer")}
            batch = MixerBatch(window, state, q, joint, q_tot, returns)
            extra, _ = mixer.auxiliary(team, batch, settings, jax.random.key(0) if key is None else key)
            losses += extra[..., None] if mixer.per_agent else extra

        mask = ~window.last
        if mixer.per_agent:
            mask = jnp.broadcast_to(mask[..., None], q_tot.shape)

        def total(x: Array) -> Array:
            return jnp.sum(jnp.where(mask, x, 0.0))

        per_slot = jnp.reshape(weight, (-1, *(1,) * (error.ndim - 2)))  # over the axes that follow B
        loss = total(per_slot * losses)
        stats = UpdateStats(loss, total(jnp.abs(error)), total(q_tot), total(returns), jnp.zeros(()))
        slots = jnp.sum(mask, dtype=jnp.float32)  # of one type with what it is added up with
        return loss, Summed(stats, slots, priorities.of_errors(error, ~window.last))

    def update(
        self,
        learner: LearnerState,
        window: Window,
        moments: normalise.Moments,
        hyper: Hyper,
        lr: Float[Array, ""],
        weight: float | Float[Array, " B"] = 1.0,
        key: Array | None = None,
    ) -> tuple[LearnerState, UpdateStats, Float[Array, " B"]]:
        """One gradient step on a batch, its global norm clipped; a soft target follows at once.

        Also the windows' new priorities: where devices split the batch, of this device's share.
        """
        state = self.mixer_state(moments, window.state)
        gradient = jax.grad(self.loss, has_aux=True)
        grads, summed = gradient(learner.params, learner.target, window, state, hyper, weight, key)
        # As one vector: an optimiser would have its few operations for each of a few dozen arrays.
        vector, restore = ravel_pytree(grads)
        vector, stats, slots = self.split.total((vector, summed.stats, summed.slots))  # devices wait once
        each = 1.0 / jnp.maximum(slots, 1.0)
        norm = jnp.linalg.norm(vector) * each
        scale = jnp.minimum(1.0, hyper["optim.grad_clip"] / (norm + 1e-6)) * each
        stats = jax.tree.map(lambda x: x * each, stats)._replace(grad_norm=norm)
        steps, opt_state = self.optimizer.update(vector * scale, learner.opt_state)
        params = jax.tree.map(lambda p, s: p - lr * s, learner.params, restore(jnp.asarray(steps)))
        target = learner.target
        if self.algo.target_update == "soft":
            target = jax.tree.map(lambda t, p: t + hyper["algo.target_tau"] * (p - t), target, params)
        return LearnerState(params, target, opt_state), stats, summed.priority


def make_optimizer(name: str) -> optax.GradientTransformation:
    """The direction of a step, before the learning rate. RMSProp as published: ε outside the square root."""
    if name == "rmsprop":
        return optax.scale_by_rms(decay=0.99, eps=1e-5, eps_in_sqrt=False)
    if name == "radam":
        return optax.scale_by_radam(b1=0.9, b2=0.999, eps=1e-8)
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def make_learner(cfg: Config, spec: EnvSpec, split: Split = WHOLE) -> Learner:
    algo, options = cfg.algo, cfg.agent
    agent = Agent(
        spec.n_agents,
        spec.n_actions,
        spec.obs_size,
        hidden=options.hidden,
        recurrent=options.core == "gru",
        layer_norm=options.layer_norm,
        share_parameters=options.share_parameters,
        agent_id=options.agent_id,
        last_action=options.last_action,
        one_kernel=getattr(cfg.core, "one_kernel", False),
        orthogonal=algo.init == "orthogonal",
        head_gain=algo.init_gain,
    )
    sizes = MixerSizes(spec.n_agents, spec.state_size, spec.n_actions, spec.obs_size, options.hidden)
    mixer = build_mixer(algo.mixer, sizes, cfg.mixer)
    check_auxiliary(mixer, _team_shapes(agent, mixer), sizes, cfg.mixer)
    return Learner(agent, mixer, cfg, make_optimizer(cfg.optim.name), split)


def _team_shapes(agent: Agent, mixer: Mixer) -> Params:
    return jax.eval_shape(lambda key: {"agent": agent.init(key), "mixer": mixer.init(key)}, jax.random.key(0))
