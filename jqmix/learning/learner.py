"""The learner: loss, double Q-learning, optimiser, target copy. IQL, VDN and QMIX differ in the mixer alone."""

from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jqmix.config import AlgoConfig, Config, flatten, to_dict
from jqmix.learning import normalise, priorities
from jqmix.learning.exploration import greedy
from jqmix.learning.returns import corrected_returns, lambda_returns, n_step_returns
from jqmix.learning.split import WHOLE, Split
from jqmix.networks.agent import Agent
from jqmix.networks.mixers import Mixer, make_mixer
from jqmix.types import EnvSpec, Window

Params = dict[str, Any]  # {"agent": …, "mixer": …}


class Hyper(NamedTuple):
    """The hyperparameters that are numbers: traced, so a grid of them is more members and not more compilations."""

    lr: Float[Array, ""]
    lr_end: Float[Array, ""]
    grad_clip: Float[Array, ""]
    gamma: Float[Array, ""]
    td_lambda: Float[Array, ""]
    n_step: Float[Array, ""]
    target_tau: Float[Array, ""]
    reward_scale: Float[Array, ""]
    priority_alpha: Float[Array, ""]
    priority_beta: Float[Array, ""]
    eps_start: Float[Array, ""]
    eps_end: Float[Array, ""]
    eps_steps: Float[Array, ""]


# Where the configuration has them.
TRACED: dict[str, str] = {
    "lr": "optim.lr",
    "lr_end": "optim.lr_end",
    "grad_clip": "optim.grad_clip",
    "gamma": "algo.gamma",
    "td_lambda": "algo.td_lambda",
    "n_step": "algo.n_step",
    "target_tau": "algo.target_tau",
    "reward_scale": "algo.reward_scale",
    "priority_alpha": "replay.priority_alpha",
    "priority_beta": "replay.priority_beta",
    "eps_start": "explore.eps_start",
    "eps_end": "explore.eps_end",
    "eps_steps": "explore.eps_steps",
}


def hyper_of(cfg: Config) -> Hyper:
    values = flatten(to_dict(cfg))
    return Hyper(**{name: jnp.float32(values[path]) for name, path in TRACED.items()})


class LearnerState(NamedTuple):
    params: Params
    target: Params
    opt_state: Any


class UpdateStats(NamedTuple):
    """Means over the valid slots of one batch, for the log."""

    loss: Float[Array, ""]
    td_error_abs: Float[Array, ""]
    q_taken: Float[Array, ""]
    target: Float[Array, ""]
    grad_norm: Float[Array, ""]


def taken(q: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """q at ``action``. A masked sum: its gradient is a product, where a gather's would be a scatter."""
    return jnp.sum(q * jax.nn.one_hot(action, q.shape[-1], dtype=q.dtype), axis=-1)


def was_greedy(
    q: Float[Array, "*batch A"], avail: Bool[Array, "*batch A"], action: Int[Array, "*batch"]
) -> Bool[Array, "*batch"]:
    """Whether ``action`` is a best available one; among equals each is."""
    return taken(q, action) >= jnp.max(jnp.where(avail, q, -jnp.inf), axis=-1)


class Learner(NamedTuple):
    """Static parts of learning; every method is a pure function of its arguments."""

    agent: Agent
    mixer: Mixer
    algo: AlgoConfig
    optimizer: optax.GradientTransformation
    split: Split = WHOLE

    def init(self, key: Array) -> LearnerState:
        key_agent, key_mixer = jax.random.split(key)
        params = {"agent": self.agent.init(key_agent), "mixer": self.mixer.init(key_mixer)}
        return LearnerState(params, jax.tree.map(jnp.copy, params), self.optimizer.init(params))

    def mixer_state(self, moments: normalise.Moments, state: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
        """What the mixer reads of the global state."""
        return normalise.apply(moments, state) if self.algo.state_norm == "running" else state

    def targets(
        self, q: Float[Array, "T1 B N A"], target: Params, window: Window, state: Array, hyper: Hyper
    ) -> Float[Array, "T1 B *agents"]:
        """Returns from the target networks' values of the online network's greedy actions (double Q-learning)."""
        q_target = self.agent.unroll(target["agent"], window.obs, window.action, window.first)
        chooser = q if self.algo.double_q else q_target
        best = taken(q_target, greedy(chooser, window.avail))
        value = self.mixer.apply(target["mixer"], best, state)
        reward, discount, last = window.reward * hyper.reward_scale, window.discount * hyper.gamma, window.last
        if self.mixer.per_agent:
            reward, discount, last = (jnp.broadcast_to(x[..., None], value.shape) for x in (reward, discount, last))
        transitions = reward, discount, value, last
        if self.algo.target == "nstep":
            return n_step_returns(*transitions, hyper.n_step)
        if self.algo.target == "qstar":
            baseline = self.mixer.apply(target["mixer"], taken(q_target, window.action), state)
            return corrected_returns(*transitions, baseline, jnp.broadcast_to(hyper.td_lambda, value.shape))
        if self.algo.target == "watkins":
            kept = was_greedy(chooser, window.avail, window.action)
            kept = kept if self.mixer.per_agent else jnp.all(kept, axis=-1)
            return corrected_returns(*transitions, value, hyper.td_lambda * kept)
        return lambda_returns(*transitions, hyper.td_lambda)

    def loss(
        self,
        params: Params,
        target: Params,
        window: Window,
        state: Array,
        hyper: Hyper,
        weight: float | Float[Array, " B"] = 1.0,
    ) -> tuple[Float[Array, ""], tuple[UpdateStats, Float[Array, " B"]]]:
        """Σ w m ½ (Q_tot − G)² / Σ m, with m = 1 exactly on the slots that a transition leaves, w the windows' weights.

        Where devices split the batch, this device's share of it: Σ m counts the slots of all. Beside it what to log,
        and the windows' new priorities.
        """
        q = self.agent.unroll(params["agent"], window.obs, window.action, window.first)
        q_tot = self.mixer.apply(params["mixer"], taken(q, window.action), state)
        returns = jax.lax.stop_gradient(self.targets(jax.lax.stop_gradient(q), target, window, state, hyper))
        mask = ~window.last
        if self.mixer.per_agent:
            mask = jnp.broadcast_to(mask[..., None], q_tot.shape)
        error = q_tot - returns
        count = jnp.maximum(self.split.total(jnp.sum(mask)), 1)

        def mean(x: Array) -> Array:
            return jnp.sum(jnp.where(mask, x, 0.0)) / count

        per_slot = jnp.reshape(weight, (-1, *(1,) * (error.ndim - 2)))  # over the axes that follow B
        loss = mean(per_slot * 0.5 * jnp.square(error))
        stats = UpdateStats(loss, mean(jnp.abs(error)), mean(q_tot), mean(returns), jnp.zeros(()))
        return loss, (stats, priorities.of_errors(error, ~window.last))

    def update(
        self,
        learner: LearnerState,
        window: Window,
        moments: normalise.Moments,
        hyper: Hyper,
        lr: Float[Array, ""],
        weight: float | Float[Array, " B"] = 1.0,
    ) -> tuple[LearnerState, UpdateStats, Float[Array, " B"]]:
        """One gradient step on a batch, its global norm clipped; a soft target follows at once.

        Also the windows' new priorities: where devices split the batch, of this device's share.
        """
        state = self.mixer_state(moments, window.state)
        gradient = jax.grad(self.loss, has_aux=True)
        grads, (stats, priority) = gradient(learner.params, learner.target, window, state, hyper, weight)
        grads, stats = self.split.total((grads, stats))
        norm = optax.tree.norm(grads)
        scale = jnp.minimum(1.0, hyper.grad_clip / (norm + 1e-6))
        steps, opt_state = self.optimizer.update(jax.tree.map(lambda g: g * scale, grads), learner.opt_state)
        params = jax.tree.map(lambda p, s: p - lr * s, learner.params, steps)
        target = learner.target
        if self.algo.target_update == "soft":
            target = jax.tree.map(lambda t, p: t + hyper.target_tau * (p - t), target, params)
        return LearnerState(params, target, opt_state), stats._replace(grad_norm=norm), priority


def make_optimizer(name: str) -> optax.GradientTransformation:
    """The direction of a step, before the learning rate. RMSProp as published: ε outside the square root."""
    if name == "rmsprop":
        return optax.scale_by_rms(decay=0.99, eps=1e-5, eps_in_sqrt=False)
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def make_learner(cfg: Config, spec: EnvSpec, split: Split = WHOLE) -> Learner:
    algo = cfg.algo
    init = {"orthogonal": algo.init == "orthogonal", "head_gain": algo.init_gain}
    agent = Agent(spec.n_agents, spec.n_actions, spec.obs_size, **asdict(cfg.agent), **init)
    mixer = make_mixer(
        algo.mixer,
        spec.n_agents,
        spec.state_size,
        embed=algo.embed,
        hypernet_hidden=algo.hypernet_hidden,
        positivity=algo.positivity,
    )
    return Learner(agent, mixer, algo, make_optimizer(cfg.optim.name), split)
