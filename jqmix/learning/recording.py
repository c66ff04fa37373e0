"""Greedy episodes as :mod:`jqmix.learning.evaluation` plays them, with every step kept: to be looked at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.config import Config
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.learning.evaluation import no_exploration, opening
from jqmix.learning.learner import Learner, Params, mixer_state
from jqmix.learning.rollout import Actor, Episodes, actor_step, only
from jqmix.networks import normalise
from jqmix.types import Window


class Recording(NamedTuple):
    """E episodes, one in every environment; what is after an episode's end does not count.

    ``states`` are those of the environments, [T + 1, E, …], and ``window`` what they show, [T, E, …]. ``score`` is the
    return of the steps so far. ``q_tot`` is None where nothing mixes, or what did is not known.
    """

    states: Any
    window: Window
    score: Float[Array, "T E"]
    q: Float[Array, "T E N A"]
    q_tot: Float[Array, "T E"] | None
    episodes: Episodes  # sums over one episode each


def record(
    learner: Learner,
    params: Params,
    moments: normalise.Moments,
    cfg: Config,
    env: BatchedDecPOMDP,
    key: Array,
) -> Recording:
    """The episodes that :func:`evaluate` plays with the same key and as many environments.

    ``params`` {"agent", "mixer"}; without "mixer" there is no ``q_tot``. ``moments`` are those of the global state.
    """
    never, (actor, noise) = no_exploration(env), opening(learner.agent, env, key)

    def step(carry: tuple[Actor, Bool[Array, " E"]], drawn: Any) -> tuple[Any, Any]:
        actor, over = carry
        after, outcome = actor_step(learner.agent, params["agent"], env, actor, never, drawn, jnp.zeros(()))
        kept = actor.env_state, actor.packed, after.action, after.score, only(~over, outcome.episodes)
        return (after, over | after.last), kept

    carry = actor, jnp.zeros((env.size,), bool)
    (after, _), (states, packed, action, score, episodes) = jax.lax.scan(step, carry, noise)
    states = jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), states, after.env_state)
    none = jnp.zeros_like(score)
    first = jnp.zeros(score.shape, bool).at[0].set(True)
    window = Window(*env.unpack(packed), action=action, reward=none, discount=none, first=first, last=none > 0)
    values = learner.values(params, window)
    q_tot = None
    if "mixer" in params and not learner.mixer.per_agent:
        q, joint = values.joint(window.action, window)
        q_tot = learner.mixer.apply(params["mixer"], q, mixer_state(cfg, moments, window.state), joint)
    return Recording(states, window, score, values.q, q_tot, jax.tree.map(lambda x: jnp.sum(x, axis=0), episodes))
