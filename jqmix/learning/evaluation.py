"""Playing greedily: exactly one whole episode in every environment, each counted once."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jqmix.envs.base import BatchedDecPOMDP
from jqmix.learning.rollout import Actor, Episodes, actor_step, begin, fresh, only
from jqmix.networks.agent import Agent

Playing = tuple[Array, Actor, Bool[Array, " E"], Episodes]


def evaluate(agent: Agent, params: Any, env: BatchedDecPOMDP, key: Array) -> Episodes:
    """[E] sums over one greedy episode each, every count 1. Ends when the last of them has ended.

    ``params`` are the agents' alone.
    """
    e, n, limit = env.size, env.spec.n_agents, env.spec.episode_limit
    key_reset, key_env = jax.random.split(key)
    noise = jax.vmap(env.noise)(jax.random.split(key_env, limit))
    never = jnp.ones((2, e, n))  # ε is 0: no chance is below it

    def step(carry: Playing) -> Playing:
        t, actor, over, sums = carry
        drawn = jax.tree.map(lambda x: x[t], noise)
        actor, outcome = actor_step(agent, params, env, actor, never, drawn, jnp.zeros(()))
        ended = only(~over, outcome.episodes)
        return t + 1, actor, over | actor.last, jax.tree.map(jnp.add, sums, ended)

    actor = begin(agent, *fresh(env, key_reset), e)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _episodes_shape(agent, params, env, actor, noise))
    carry = jnp.int32(0), actor, jnp.zeros((e,), bool), nothing
    return jax.lax.while_loop(lambda carry: (carry[0] < limit) & ~jnp.all(carry[2]), step, carry)[3]


def _episodes_shape(agent: Agent, params: Any, env: BatchedDecPOMDP, actor: Actor, noise: Any) -> Episodes:
    """Shapes alone: what is summed depends on the environment."""
    u, first = jnp.ones((2, env.size, env.spec.n_agents)), jax.tree.map(lambda x: x[0], noise)
    return jax.eval_shape(lambda a: actor_step(agent, params, env, a, u, first, jnp.zeros(()))[1].episodes, actor)
