"""Acting and exploring: a window from every rollout, that begins at a reset or goes on where the last one ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jqmix.envs.base import BatchedDecPOMDP
from jqmix.kernels.platform import platform
from jqmix.kernels.rows import fit_rows, to_rows
from jqmix.learning.acting import choose_actions
from jqmix.learning.split import WHOLE, Split
from jqmix.networks.agent import Agent, AgentStart
from jqmix.types import Packed

# On a CPU, starts of episodes are drawn for all rollouts at once: one for every so many slots before a window is
# collected, and as many again whenever one of the rollouts has used up its own. On accelerators one for every slot:
# more to draw, at once, but nothing that the host would have to decide on slot by slot.
SLOTS_PER_START = 16


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
    Where ``first`` is true an episode is to begin: :func:`collect` takes a start for it, and what the actor holds is of
    an episode that is over, and does not count.
    """

    env_state: Any
    packed: Any
    last: Bool[Array, " E"]
    first: Bool[Array, " E"]
    memory: Any  # the agents' state, leaves [E, N, …]
    action: Int[Array, "E N"]
    score: Float[Array, " E"]
    length: Float[Array, " E"]


class Ongoing(NamedTuple):
    """Rollouts that go on: their actors, and the slots of the last window that the next one begins with.

    ``tail`` [burn_in, E] is None where windows share no slots. Its ``start``: the agents' memory where it begins.
    """

    actor: Actor
    tail: Packed | None


class Start(NamedTuple):
    """Where episodes begin: the environments' state, and what it shows as they pack it."""

    env_state: Any
    packed: Any


class EpisodeStarts(NamedTuple):
    """Starts of episodes, [K, E], of which each rollout has used up its first ``used``; the key of the next ones."""

    drawn: Start
    used: Int[Array, " E"]
    key: Array


class Collecting(NamedTuple):
    """What collecting carries from slot to slot."""

    actor: Actor
    starts: EpisodeStarts | None  # None where every slot has its own
    kept: AgentStart  # where the next window's tail begins
    episodes: Episodes  # [E], so far


class CollectingInRows(NamedTuple):
    """The same on a GPU (:func:`carry_in_rows`)."""

    rows: UInt32[Array, "E K"]  # a start, what else there is of an actor but its memory, and the episodes
    memory: Any
    kept: AgentStart


class Outcome(NamedTuple):
    """What an action led to."""

    reward: Float[Array, " E"]
    discount: Float[Array, " E"]
    episodes: Episodes  # that ended with it


def fresh(env: BatchedDecPOMDP, key: Array) -> Start:
    """E new episodes."""
    state, timestep = env.reset(key)
    return Start(state, env.pack(state, timestep))


def draws_start_by_slot() -> bool:
    """Whether there is a start for every slot, else for every ``SLOTS_PER_START``."""
    return platform() != "cpu"


def records_in_rows() -> bool:
    """Whether what a slot records is one array, else a tree of them: on accelerators each would be a launch."""
    return platform() != "cpu"


def starts_at_once(transitions: int) -> int:
    """K: how many starts are drawn for each rollout at a time."""
    return transitions if draws_start_by_slot() else 1 + (transitions + 1) // SLOTS_PER_START


def draw_starts(env: BatchedDecPOMDP, key: Array, count: int) -> Start:
    """``count`` independent starts for every rollout."""
    return jax.vmap(lambda key: fresh(env, key))(jax.random.split(key, count))


def no_starts(env: BatchedDecPOMDP, key: Array, count: int) -> EpisodeStarts:
    """Room for ``count`` starts for every rollout, all of them used up."""
    shapes = jax.eval_shape(lambda key: draw_starts(env, key, count), key)
    return EpisodeStarts(_empty(shapes), jnp.full((env.size,), count, jnp.int32), key)


def next_start(env: BatchedDecPOMDP, starts: EpisodeStarts, needed: Bool[Array, " E"]) -> tuple[Start, EpisodeStarts]:
    """A start for every rollout that needs one: new ones are drawn for all where some rollout has none left.

    A loop of no turn or one, and no condition, as a condition under ``vmap`` would draw new starts at every slot. It is
    the only place where starts are drawn, so that they are compiled once.
    """
    count = jax.tree.leaves(starts.drawn)[0].shape[0]

    def renewed(starts: EpisodeStarts) -> EpisodeStarts:
        none = jnp.zeros((env.size,), jnp.int32)
        return EpisodeStarts(draw_starts(env, starts.key, count), none, jax.random.fold_in(starts.key, count))

    starts = jax.lax.while_loop(lambda starts: jnp.any(needed & (starts.used >= count)), renewed, starts)
    index, rollout = jnp.minimum(starts.used, count - 1), jnp.arange(env.size)
    return jax.tree.map(lambda x: x[index, rollout], starts.drawn), starts._replace(used=starts.used + needed)


def begin(agent: Agent, env_state: Any, packed: Any, e: int) -> Actor:
    """Actors at the start of an episode."""
    no_action, zeros = jnp.zeros((e, agent.n_agents), jnp.int32), jnp.zeros((e,))
    no, yes = jnp.zeros((e,), bool), jnp.ones((e,), bool)
    return Actor(env_state, packed, no, yes, agent.initial_state(e), no_action, zeros, zeros)


def unbegun(agent: Agent, env: BatchedDecPOMDP) -> Actor:
    """Actors whose episodes are still to begin."""
    shapes = jax.eval_shape(lambda key: fresh(env, key), jax.random.key(0))
    return begin(agent, _empty(shapes.env_state), _empty(shapes.packed), env.size)


def _empty(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def begin_ongoing(agent: Agent, env: BatchedDecPOMDP, burn_in: int) -> Ongoing:
    """Rollouts at their very beginning. The slots before it hold nothing: no episode and no transition is in them."""
    actor = unbegun(agent, env)
    if burn_in == 0:
        return Ongoing(actor, None)
    e, slots = env.size, (burn_in, env.size)
    tail = Packed(
        seen=jax.tree.map(lambda x: jnp.broadcast_to(x, (burn_in, *x.shape)), actor.packed),
        action=jnp.zeros((*slots, agent.n_agents), jnp.int32),
        reward=jnp.zeros(slots),
        discount=jnp.zeros(slots),
        first=jnp.ones(slots, bool),
        last=jnp.ones(slots, bool),
        start=AgentStart(agent.initial_state(e), jnp.zeros((e, agent.n_agents), jnp.int32)),
    )
    return Ongoing(actor, tail)


def actor_step(
    agent: Agent, params: Any, env: BatchedDecPOMDP, actor: Actor, u: Float[Array, "2 E N"], noise: Any, epsilon: Array
) -> tuple[Actor, Outcome]:
    """Acts in every rollout and steps it with the environments' ``noise``. Resets nothing.

    Where the actor's observation was an episode's last one, what comes back is not to be used.
    """
    seen = env.unpack(actor.packed)
    remembered = actor.memory, seen.obs, actor.action, actor.first
    action, memory = choose_actions(agent, params, *remembered, seen.avail, u, epsilon)
    env_state, after = env.step_with(noise, actor.env_state, action)
    score = jnp.where(actor.first, 0.0, actor.score) + after.info.get("score", after.reward)
    length = jnp.where(actor.first, 0.0, actor.length) + 1.0
    ended = after.last & ~actor.last
    sums = Episodes(
        jnp.ones_like(score), score, length, jnp.float32(after.info["won"]) if "won" in after.info else None
    )
    outcome = Outcome(after.reward, after.discount, only(ended, sums))
    packed = env.pack(env_state, after)
    return Actor(env_state, packed, ended, actor.last, memory, action, score, length), outcome


def only(mask: Bool[Array, " E"], episodes: Episodes) -> Episodes:
    """What ``mask`` leaves out is 0, and need not be finite."""
    return jax.tree.map(lambda x: jnp.where(mask, x, 0.0), episodes)


def choose_rollouts(mask: Bool[Array, " E"], a: Any, b: Any) -> Any:
    """Leaf by leaf, the rollouts of ``a`` where ``mask``, else those of ``b``."""
    return jax.tree.map(lambda x, y: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y), a, b)


class Carried(NamedTuple):
    """How collecting is carried from slot to slot."""

    pack: Callable[[Collecting], Any]
    unpack: Callable[[Any], Collecting]
    pack_starts: Callable[[Start], Any]  # every slot's
    begin: Callable[[Any, Any], Collecting]  # unpacks it, and takes the slot's start where an episode is to begin


def as_it_is(env: BatchedDecPOMDP) -> Carried:
    """Array by array, with starts that are drawn here where there is not one for every slot."""

    def begin(carry: Collecting, start: Start | None) -> Collecting:
        actor, starts = carry.actor, carry.starts
        if starts is not None:
            start, starts = next_start(env, starts, actor.first)
        shown = choose_rollouts(actor.first, start, Start(actor.env_state, actor.packed))
        return carry._replace(actor=actor._replace(**shown._asdict()), starts=starts)

    return Carried(lambda carry: carry, lambda carry: carry, lambda starts: starts, begin)


def carries_rows(carry: Collecting) -> bool:
    """Whether all but the agents' memory is carried as one array: on a GPU, where each would have its own copies from
    slot to slot, if all of it can be."""
    return platform() == "gpu" and fit_rows(carry.actor._replace(memory=None))


def carry_in_rows(like: Collecting) -> Carried:
    """All but the agents' memory as one array. ``like``: the shapes and types of what is carried."""

    def parts(carry: Collecting) -> tuple[Start, Actor, Episodes]:
        actor = carry.actor
        others = actor._replace(env_state=None, packed=None, memory=None)
        return Start(actor.env_state, actor.packed), others, carry.episodes

    def rows(tree: Any, like: Any) -> UInt32[Array, "E K"]:
        return to_rows(jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like), 0)[0]

    def pack(carry: Collecting) -> CollectingInRows:
        return CollectingInRows(rows(parts(carry), parts(like)), carry.actor.memory, carry.kept)

    def unpack(carry: CollectingInRows) -> Collecting:
        start, actor, episodes = to_rows(parts(like), 0)[1](carry.rows)
        return Collecting(actor._replace(**start._asdict(), memory=carry.memory), None, carry.kept, episodes)

    def begin(carry: CollectingInRows, start: UInt32[Array, "E S"]) -> Collecting:
        begun = jnp.concatenate([start, carry.rows[:, start.shape[1] :]], axis=1)
        return unpack(carry._replace(rows=choose_rollouts(unpack(carry).actor.first, begun, carry.rows)))

    return Carried(pack, unpack, jax.vmap(lambda start: rows(start, parts(like)[0])), begin)


def collect(
    agent: Agent,
    params: Any,
    env: BatchedDecPOMDP,
    key: Array,
    epsilon: Float[Array, ""],
    transitions: int,
    ongoing: Ongoing | None = None,
    split: Split = WHOLE,
) -> tuple[Packed, Episodes, Ongoing | None]:
    """A window of T = ``transitions`` from each of E rollouts, the episodes that ended in it, summed by rollout, and
    the rollouts to go on with.

    Without ``ongoing`` a window begins at a reset, and episodes are counted that begin where it still holds a whole
    one, however long: of those that begin later only short ones would end in it. With it, rollouts go on from where
    they stand, every episode is counted where it ends, and the window begins with the slots of ``ongoing.tail``.
    Every window ends with the slot that its last transition led to; where rollouts go on, the next one begins there.
    Where devices ``split`` the rollouts, those of ``env`` are this device's (``split.RolloutsShare``).
    """
    e, n = env.size, env.spec.n_agents
    key_reset, key_act, key_env = jax.random.split(key, 3)
    # Every slot's start, or where they come from; the other is None.
    by_slot = draw_starts(env, key_reset, transitions) if draws_start_by_slot() else None
    starts = no_starts(env, key_reset, starts_at_once(transitions)) if by_slot is None else None
    u = split.mine(jax.random.uniform(key_act, (transitions, 2, e * split.parts, n)), axis=2)
    noise = jax.vmap(env.noise)(jax.random.split(key_env, transitions))  # at once: small draws cost the most
    # ``latest``: the last slot at which an episode that counts begins.
    overlap, actor, latest = 0, unbegun(agent, env), transitions - env.spec.episode_limit
    if ongoing is not None:
        actor, latest = ongoing.actor, transitions
        overlap = 0 if ongoing.tail is None else ongoing.tail.reward.shape[0]

    like = Packed(actor.packed, actor.action, actor.score, actor.score, actor.first, actor.last)

    def as_row(record: Packed) -> Array:
        return to_rows(jax.tree.map(lambda x, y: x.astype(y.dtype), record, like), 0)[0]

    begun = Collecting(actor, starts, agent_start(actor), no_episodes(env))
    carried = carry_in_rows(begun) if carries_rows(begun) else as_it_is(env)

    def slot(carry: Any, xs: Any) -> tuple[Any, Any]:
        t, chance, drawn, start = xs
        actor, starts, kept, episodes = carried.begin(carry, start)
        if overlap:
            kept = jax.tree.map(lambda x, y: jnp.where(t == transitions - overlap, x, y), agent_start(actor), kept)
        stepped, outcome = actor_step(agent, params, env, actor, chance, drawn, epsilon)
        record = Packed(actor.packed, stepped.action, outcome.reward, outcome.discount, actor.first, actor.last)
        counts = t + 1 - stepped.length <= latest
        episodes = jax.tree.map(jnp.add, episodes, only(counts, outcome.episodes))
        carry = carried.pack(Collecting(stepped, starts, kept, episodes))
        return carry, as_row(record) if records_in_rows() else record

    xs = jnp.arange(transitions), u, noise, None if by_slot is None else carried.pack_starts(by_slot)
    last, window = jax.lax.scan(slot, carried.pack(begun), xs)
    after, _, kept, episodes = carried.unpack(last)
    window = _ended(jax.vmap(to_rows(like, 0)[1])(window) if records_in_rows() else window, after)
    if ongoing is None:
        return window, episodes, None
    window, ongoing = _joined(ongoing, window._replace(start=agent_start(actor)), after, kept)
    return window, episodes, ongoing


def no_episodes(env: BatchedDecPOMDP) -> Episodes:
    """Sums over none, [E]; ``won`` is None where the environment does not tell it."""
    none = jnp.zeros((env.size,))
    told = jax.eval_shape(lambda key: env.reset(key)[1].info, jax.random.key(0))
    return Episodes(none, none, none, none if "won" in told else None)


def agent_start(actor: Actor) -> AgentStart:
    """What the agents remember before they see what the actor shows."""
    return AgentStart(actor.memory, actor.action)


def _ended(window: Packed, after: Actor) -> Packed:
    """A window of T slots with the one that its last transition led to; no transition leaves that, in this window.

    Where an episode is to begin there, nothing is to be seen yet, and nothing reads it: it shows the slot before.
    """
    none = jnp.zeros_like(after.score)
    shown = choose_rollouts(after.first, jax.tree.map(lambda x: x[-1], window.seen), after.packed)
    final = Packed(shown, jnp.zeros_like(after.action), none, none, after.first, jnp.ones_like(after.last))
    window = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), window, final)
    return window._replace(reward=jnp.where(window.last, 0.0, window.reward))


def _joined(ongoing: Ongoing, window: Packed, after: Actor, kept: AgentStart) -> tuple[Packed, Ongoing]:
    """The window with the slots of the last one before it, and the rollouts with those of this one.

    ``after``: the actors at the window's end; ``kept``: what the agents remember where the next window's tail begins.
    """
    if ongoing.tail is None:
        return window, Ongoing(after, None)
    overlap, slots = ongoing.tail.reward.shape[0], window.reward.shape[0]
    steps = window._replace(start=None)
    tail = jax.tree.map(lambda x: x[slots - 1 - overlap : slots - 1], steps)
    joined = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), ongoing.tail._replace(start=None), steps)
    return joined._replace(start=ongoing.tail.start), Ongoing(after, tail._replace(start=kept))
