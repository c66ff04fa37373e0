"""Acting: one window from every rollout. Greedy, and the first episode of each counted, it is an evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.envs.base import BatchedDecPOMDP
from jqmix.learning.exploration import epsilon_greedy
from jqmix.networks.agent import Agent
from jqmix.types import Packed

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
        """Per episode, over all; 0 if none ended, as ``episodes`` then says."""
        n = jnp.sum(self.ended)
        some = jnp.maximum(n, 1.0)
        means = {"return_mean": jnp.sum(self.score) / some, "length_mean": jnp.sum(self.length) / some, "episodes": n}
        if self.won is not None:
            means["win_rate"] = jnp.sum(self.won) / some
        return means


class Actor(NamedTuple):
    """What acting carries from slot to slot, for E rollouts; ``score`` and ``length`` are of the running episode.

    What the environments show is carried as they pack it, and shown once per slot, whether a step or a reset led here.
    Where ``first`` is true, the agents' memory and the sums are of an episode that is over, and do not count.
    """

    env_state: Any
    packed: Any
    last: Bool[Array, " E"]
    first: Bool[Array, " E"]
    state: Any  # of the agents: leaves [E, N, …]
    action: Int[Array, "E N"]
    score: Float[Array, " E"]
    length: Float[Array, " E"]


class Led(NamedTuple):
    """What an action led to."""

    reward: Float[Array, " E"]
    discount: Float[Array, " E"]
    episodes: Episodes  # that ended with it


def fresh(env: BatchedDecPOMDP, key: Array) -> tuple[Any, Any]:
    """(state, what it shows) of E new episodes."""
    state, timestep = env.reset(key)
    return state, env.pack(state, timestep)


def start(agent: Agent, env_state: Any, packed: Any, e: int) -> Actor:
    no_action, zeros = jnp.zeros((e, agent.n_agents), jnp.int32), jnp.zeros((e,))
    no, yes = jnp.zeros((e,), bool), jnp.ones((e,), bool)
    return Actor(env_state, packed, no, yes, agent.initial_state(e), no_action, zeros, zeros)


def actor_step(
    agent: Agent, params: Any, env: BatchedDecPOMDP, actor: Actor, u: Float[Array, "2 E N"], noise: Any, epsilon: Array
) -> tuple[Actor, Led]:
    """Acts in every rollout and steps it with the environments' ``noise``. Resets nothing.

    Where the actor's observation was an episode's last one, what comes back is not to be used.
    """
    seen = env.unpack(actor.packed)
    q, state = agent.step(params, actor.state, seen.obs, actor.action, actor.first)
    action = epsilon_greedy(u, q, seen.avail, epsilon)
    env_state, after = env.step_with(noise, actor.env_state, action)
    score = jnp.where(actor.first, 0.0, actor.score) + after.info.get("score", after.reward)
    length = jnp.where(actor.first, 0.0, actor.length) + 1.0
    ended = after.last & ~actor.last
    sums = Episodes(
        jnp.ones_like(score), score, length, jnp.float32(after.info["won"]) if "won" in after.info else None
    )
    led = Led(after.reward, after.discount, _only(ended, sums))
    packed = env.pack(env_state, after)
    return Actor(env_state, packed, after.last & ~actor.last, actor.last, state, action, score, length), led


def _only(mask: Bool[Array, " E"], episodes: Episodes) -> Episodes:
    """What ``mask`` leaves out is 0, and need not be finite."""
    return jax.tree.map(lambda x: jnp.where(mask, x, 0.0), episodes)


def _where(mask: Bool[Array, " E"], a: Any, b: Any) -> Any:
    """Leaf by leaf, the rollouts of ``a`` where ``mask``, else those of ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y), a, b)


def collect(
    agent: Agent,
    params: Any,
    env: BatchedDecPOMDP,
    key: Array,
    epsilon: Float[Array, ""],
    slots: int,
    only_first: bool | Bool[Array, ""] = False,
) -> tuple[Packed, Episodes]:
    """A window of ``slots`` = T + 1 slots from each of E rollouts, and the episodes in it, summed by rollout.

    Counted are episodes that begin where the window still holds a whole one, however long, at a start of their own: of
    those that begin later only short ones would end, and a start that comes again would come most often where it leads
    to short ones. A window covers an episode, so each rollout's first one always counts: with ε = 0, and no other one
    counted, this is an evaluation.
    """
    e, n = env.size, env.spec.n_agents
    key_reset, key_act, key_env = jax.random.split(key, 3)
    pool_size = 1 + slots // SLOTS_PER_RESET
    pool = jax.vmap(lambda key: fresh(env, key))(jax.random.split(key_reset, pool_size))
    u = jax.random.uniform(key_act, (slots, 2, e, n))
    noise = jax.vmap(env.noise)(jax.random.split(key_env, slots))  # all at once: small draws cost more than large ones

    whole = jnp.where(jnp.asarray(only_first), 0, slots - 1 - env.spec.episode_limit)  # the last slot to begin one at

    def slot(carry: tuple[Actor, Array], xs: Any) -> tuple[tuple[Actor, Array], tuple[Packed, Episodes]]:
        actor, begun = carry
        t, chance, drawn = xs
        stepped, led = actor_step(agent, params, env, actor, chance, drawn, epsilon)
        record = Packed(actor.packed, stepped.action, led.reward, led.discount, actor.first, actor.last)
        counts = (t + 1 - stepped.length <= whole) & (begun <= pool_size)
        new = jax.tree.map(lambda x: x[begun % pool_size, jnp.arange(e)], pool)
        env_state, packed = _where(actor.last, new, (stepped.env_state, stepped.packed))
        begun += actor.last
        return (stepped._replace(env_state=env_state, packed=packed), begun), (
            record,
            _only(counts, led.episodes),
        )

    env_state, packed = jax.tree.map(lambda x: x[0], pool)
    begin = start(agent, env_state, packed, e), jnp.ones((e,), jnp.int32)
    _, (window, episodes) = jax.lax.scan(slot, begin, (jnp.arange(slots), u, noise))
    episodes = jax.tree.map(lambda x: jnp.sum(x, axis=0), episodes)
    last = window.last.at[-1].set(True)
    return window._replace(last=last, reward=jnp.where(last, 0.0, window.reward)), episodes


def evaluate(agent: Agent, params: Any, env: BatchedDecPOMDP, key: Array) -> Episodes:
    """Exactly one whole greedy episode in each of E environments: [E] sums, every count 1."""
    slots = env.spec.episode_limit + 1
    return collect(agent, params, env, key, jnp.zeros(()), slots, only_first=True)[1]
