"""Playing greedily: exactly one whole episode in every environment, each counted once."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jqmix.envs.base import BatchedDecPOMDP
from jqmix.learning.rollout import Actor, Episodes, actor_step, begin, fresh, only
from jqmix.networks.agent import Agent

Playing = tuple[Array, Actor, Bool[Array, " E"], Episodes]


def opening(agent: Agent, env: BatchedDecPOMDP, key: Array) -> tuple[Actor, Any]:
    """Actors at the start of an episode, and all that its steps draw, leaves [T, …]."""
    key_reset, key_env = jax.random.split(key)
    noise = jax.vmap(env.noise)(jax.random.split(key_env, env.spec.episode_limit))
    return begin(agent, *fresh(env, key_reset), env.size), noise


def no_exploration(env: BatchedDecPOMDP) -> Float[Array, "2 E N"]:
    """Chances that no ε of 0 is above."""
    return jnp.ones((2, env.size, env.spec.n_agents))


def evaluate(agent: Agent, params: Any, env: BatchedDecPOMDP, key: Array) -> Episodes:
    """[E] sums over one greedy episode each, every count 1. Ends when the last of them has ended.

    ``params`` are the agents' alone.
    """
    limit, never = env.spec.episode_limit, no_exploration(env)
    actor, noise = opening(agent, env, key)

    def step(carry: Playing) -> Playing:
        t, actor, over, sums = carry
        drawn = jax.tree.map(lambda x: x[t], noise)
        actor, outcome = actor_step(agent, params, env, actor, never, drawn, jnp.zeros(()))
        ended = only(~over, outcome.episodes)
        return t + 1, actor, over | actor.last, jax.tree.map(jnp.add, sums, ended)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _episodes_shape(agent, params, env, actor, noise))
    carry = jnp.int32(0), actor, jnp.zeros((env.size,), bool), nothing
    return jax.lax.while_loop(lambda carry: (carry[0] < limit) & ~jnp.all(carry[2]), step, carry)[3]


def _episodes_shape(agent: Agent, params: Any, env: BatchedDecPOMDP, actor: Actor, noise: Any) -> Episodes:
    """Shapes alone: what is summed depends on the environment."""
    u, first = no_exploration(env), jax.tree.map(lambda x: x[0], noise)
    return jax.eval_shape(lambda a: actor_step(agent, params, env, a, u, first, jnp.zeros(()))[1].episodes, actor)
