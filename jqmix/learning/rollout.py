"""Acting: one window from every rollout, and whole greedy episodes. Both take the same actor step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.envs.base import BatchedDecPOMDP
from jqmix.learning.exploration import epsilon_greedy
from jqmix.networks.agent import Agent
from jqmix.types import Packed, TimeStep

# A window draws its resets at once, before its scan: one per rollout for every so many slots. A rollout that needs
# more starts over with its own first ones.
SLOTS_PER_RESET = 16


class Episodes(NamedTuple):
    """Sums over episodes that ended; ``won`` is None where the environment has no notion of it."""

    ended: Float[Array, "*batch"]
    score: Float[Array, "*batch"]
    length: Float[Array, "*batch"]
    won: Float[Array, "*batch"] | None

    def means(self) -> dict[str, Array]:
        """Per episode, over all; NaN if none ended."""
        n = jnp.sum(self.ended)
        means = {"return_mean": jnp.sum(self.score) / n, "length_mean": jnp.sum(self.length) / n, "episodes": n}
        if self.won is not None:
            means["win_rate"] = jnp.sum(self.won) / n
        return means


class Actor(NamedTuple):
    """What acting carries from slot to slot, for E rollouts; ``score`` and ``length`` are of the running episode."""

    env_state: Any
    timestep: TimeStep
    h: Float[Array, "E N H"]
    action: Int[Array, "E N"]
    first: Bool[Array, " E"]
    score: Float[Array, " E"]
    length: Float[Array, " E"]


def start(agent: Agent, env: BatchedDecPOMDP, reset: tuple[Any, TimeStep]) -> Actor:
    e = env.size
    return Actor(
        env_state=reset[0],
        timestep=reset[1],
        h=agent.initial_state(e),
        action=jnp.zeros((e, env.spec.n_agents), jnp.int32),
        first=jnp.ones((e,), bool),
        score=jnp.zeros((e,)),
        length=jnp.zeros((e,)),
    )


def actor_step(
    agent: Agent, params: Any, env: BatchedDecPOMDP, actor: Actor, u: Float[Array, "2 E N"], key: Array, epsilon: Array
) -> tuple[Actor, Episodes]:
    """Acts in every rollout and steps it; also says which episodes that ended. Resets nothing.

    Where the actor's observation was an episode's last one, what comes back is not to be used.
    """
    seen = actor.timestep
    q, h = agent.step(params, actor.h, seen.obs, actor.action, actor.first)
    action = epsilon_greedy(u, q, seen.avail, epsilon)
    env_state, after = env.step(key, actor.env_state, action)
    score = actor.score + after.info.get("score", after.reward)
    length = actor.length + 1.0
    ended = (after.last & ~seen.last).astype(jnp.float32)
    won = after.info["won"] * ended if "won" in after.info else None
    episodes = Episodes(ended, score * ended, length * ended, won)
    return Actor(env_state, after, h, action, seen.last, score, length), episodes


def _where(mask: Bool[Array, " E"], a: Any, b: Any) -> Any:
    """Leaf by leaf, the rollouts of ``a`` where ``mask``, else those of ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y), a, b)


def collect(
    agent: Agent, params: Any, env: BatchedDecPOMDP, key: Array, epsilon: Float[Array, ""], slots: int
) -> tuple[Packed, Episodes]:
    """A window of ``slots`` = T + 1 slots from each of E rollouts, and the episodes that ended in it."""
    e, n = env.size, env.spec.n_agents
    key_reset, key_act, key_env = jax.random.split(key, 3)
    pool_size = 1 + slots // SLOTS_PER_RESET
    pool = jax.vmap(env.reset)(jax.random.split(key_reset, pool_size))
    u = jax.random.uniform(key_act, (slots, 2, e, n))

    def slot(carry: tuple[Actor, Array], xs: tuple[Array, Array]) -> tuple[tuple[Actor, Array], Any]:
        actor, used = carry
        seen = actor.timestep
        stepped, episodes = actor_step(agent, params, env, actor, xs[0], xs[1], epsilon)
        record = Packed(
            seen=env.pack(actor.env_state, seen),
            action=stepped.action,
            reward=stepped.timestep.reward,
            discount=stepped.timestep.discount,
            first=actor.first,
            last=seen.last,
        )
        turn = used % pool_size
        fresh = start(agent, env, jax.tree.map(lambda x: x[turn, jnp.arange(e)], pool))
        return (_where(seen.last, fresh, stepped), used + seen.last), (record, episodes)

    begin = start(agent, env, jax.tree.map(lambda x: x[0], pool)), jnp.ones((e,), jnp.int32)
    _, (window, episodes) = jax.lax.scan(slot, begin, (u, jax.random.split(key_env, slots)))
    last = window.last.at[-1].set(True)
    return window._replace(last=last, reward=jnp.where(last, 0.0, window.reward)), episodes


def evaluate(agent: Agent, params: Any, env: BatchedDecPOMDP, key: Array) -> Episodes:
    """Exactly one whole greedy episode in each of E environments: [E] sums, every count 1."""
    e, n = env.size, env.spec.n_agents
    key_reset, key_env = jax.random.split(key)
    greedy_u = jnp.ones((2, e, n))
    no_exploration = jnp.zeros(())

    def going(carry: tuple[Actor, Episodes, Array]) -> Array:
        return ~jnp.all(carry[0].timestep.last)

    def step(carry: tuple[Actor, Episodes, Array]) -> tuple[Actor, Episodes, Array]:
        actor, total, t = carry
        stepped, episodes = actor_step(
            agent, params, env, actor, greedy_u, jax.random.fold_in(key_env, t), no_exploration
        )
        # An episode that is over stays where it ended, so it is counted once.
        kept = _where(actor.timestep.last, actor, stepped)
        return kept, jax.tree.map(jnp.add, total, episodes), t + 1

    actor = start(agent, env, env.reset(key_reset))
    zeros = jnp.zeros((e,))
    won = zeros if "won" in actor.timestep.info else None
    total = Episodes(zeros, zeros, zeros, won)
    return jax.lax.while_loop(going, step, (actor, total, jnp.zeros((), jnp.int32)))[1]
