"""Predator–prey with freezing: the cooperative hunt of 2102.03479, with Weighted QMIX's punishment as an option.

A bounded grid, one entity per cell. Two agents that catch the same neighbouring prey remove it for +10 and freeze;
one alone pays ``miscapture_punishment``. With as many agents as prey the best return is 5 per agent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.types import EnvSpec, TimeStep

MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up, as (row, column)
STAY, CATCH = 4, 5
ACTIONS = ("right", "down", "left", "up", "stay", "catch")
N_ACTIONS = len(ACTIONS)
CAPTURE_REWARD = 10.0


class PredatorPreyState(NamedTuple):
    agent: Int[Array, "N 2"]
    frozen: Bool[Array, " N"]
    prey: Int[Array, "M 2"]
    alive: Bool[Array, " M"]


class Noise(NamedTuple):
    """All the randomness of one step. Orders are permutations: whose turn is first, second, …"""

    agent_order: Int[Array, " N"]
    prey_order: Int[Array, " M"]
    preference: Float[Array, "M 4"]  # of the prey whose turn is k-th: it goes where this is greatest


def _adjacent(a: Int[Array, "... 2"], b: Int[Array, "... 2"]) -> Bool[Array, "..."]:
    return jnp.sum(jnp.abs(a - b), axis=-1) == 1


class PredatorPrey:
    """See the module's text. ``sight`` is the patch's radius: 2 gives the published 5 × 5."""

    def __init__(
        self,
        size: int = 10,
        n_agents: int = 8,
        n_prey: int = 8,
        sight: int = 2,
        miscapture_punishment: int | float = 0.0,
        episode_limit: int = 200,
    ):
        if n_agents < 2 or n_prey < 1 or n_agents + n_prey > size * size:
            raise ValueError("env.kwargs: needs n_agents ≥ 2, n_prey ≥ 1 and n_agents + n_prey ≤ size²")
        if sight < 0:
            raise ValueError(f"env.kwargs.sight: {sight} is out of range; it must be ≥ 0")
        if not isinstance(miscapture_punishment, int | float) or not miscapture_punishment <= 0:
            raise ValueError(f"env.kwargs.miscapture_punishment: {miscapture_punishment!r} must be a number ≤ 0")
        self.size, self.n_prey, self.sight = size, n_prey, sight
        self.punishment = miscapture_punishment
        patch = 2 * sight + 1
        self.spec = EnvSpec(
            "predator_prey",
            n_agents,
            N_ACTIONS,
            patch * patch * 2,
            size * size * 2,
            episode_limit,
            reward_range=(n_prey * min(miscapture_punishment, 0.0), CAPTURE_REWARD * n_prey),
            action_names=ACTIONS,
        )

    def reset(self, key: Array) -> tuple[PredatorPreyState, TimeStep]:
        n, m = self.spec.n_agents, self.n_prey
        cells = jax.random.permutation(key, self.size * self.size)[: n + m]
        position = jnp.stack([cells // self.size, cells % self.size], axis=-1).astype(jnp.int32)
        state = PredatorPreyState(position[:n], jnp.zeros((n,), bool), position[n:], jnp.ones((m,), bool))
        return state, self._observe(state, jnp.float32(0.0))

    def noise(self, key: Array) -> Noise:
        key_agents, key_prey, key_moves = jax.random.split(key, 3)
        return Noise(
            jax.random.permutation(key_agents, self.spec.n_agents),
            jax.random.permutation(key_prey, self.n_prey),
            jax.random.uniform(key_moves, (self.n_prey, len(MOVES))),
        )

    def step(
        self, key: Array, state: PredatorPreyState, actions: Int[Array, " N"]
    ) -> tuple[PredatorPreyState, TimeStep]:
        return self.step_with(self.noise(key), state, actions)

    def step_with(
        self, noise: Noise, state: PredatorPreyState, actions: Int[Array, " N"]
    ) -> tuple[PredatorPreyState, TimeStep]:
        """One step, its randomness given."""
        state = self._move_agents(noise.agent_order, state, actions)
        turns = noise.prey_order, noise.preference
        state, rewards = jax.lax.scan(lambda s, turn: self._one_prey(s, actions, *turn), state, turns)
        return state, self._observe(state, jnp.sum(rewards))

    def _free(self, state: PredatorPreyState, cells: Int[Array, "K 2"]) -> Bool[Array, " K"]:
        """Which cells lie on the grid and hold no live entity."""
        on_grid = jnp.all((cells >= 0) & (cells < self.size), axis=-1)
        agents = jnp.all(cells[:, None] == state.agent[None], axis=-1) & ~state.frozen
        prey = jnp.all(cells[:, None] == state.prey[None], axis=-1) & state.alive
        return on_grid & ~jnp.any(agents, axis=-1) & ~jnp.any(prey, axis=-1)

    def _move_agents(
        self, order: Int[Array, " N"], state: PredatorPreyState, actions: Int[Array, " N"]
    ) -> PredatorPreyState:
        """Live agents move one after another, each blocked by whatever stands there by then."""
        moves = jnp.array([*MOVES, (0, 0), (0, 0)], jnp.int32)

        def move(state: PredatorPreyState, i: Array) -> tuple[PredatorPreyState, None]:
            target = state.agent[i] + moves[actions[i]]
            goes = self._free(state, target[None])[0] & ~state.frozen[i]
            return state._replace(agent=state.agent.at[i].set(jnp.where(goes, target, state.agent[i]))), None

        return jax.lax.scan(move, state, order)[0]

    def _one_prey(
        self, state: PredatorPreyState, actions: Int[Array, " N"], j: Array, preference: Float[Array, "4"]
    ) -> tuple[PredatorPreyState, Float[Array, ""]]:
        """Prey j is caught, or moves to a random free neighbour cell."""
        here, alive = state.prey[j], state.alive[j]
        catching = (actions == CATCH) & ~state.frozen & _adjacent(state.agent, here[None]) & alive
        n_catching = jnp.sum(catching)
        caught = n_catching >= 2
        reward = jnp.where(caught, CAPTURE_REWARD, jnp.where(n_catching == 1, self.punishment, 0.0))

        neighbours = here[None] + jnp.array(MOVES, jnp.int32)
        free = self._free(state, neighbours)
        pick = jnp.argmax(jnp.where(free, preference, -1.0))
        moves = alive & ~caught & jnp.any(free)
        state = PredatorPreyState(
            agent=state.agent,
            frozen=state.frozen | (catching & caught),
            prey=state.prey.at[j].set(jnp.where(moves, neighbours[pick], here)),
            alive=state.alive.at[j].set(alive & ~caught),
        )
        return state, reward

    def _observe(self, state: PredatorPreyState, reward: Array) -> TimeStep:
        grid = jnp.zeros((self.size, self.size, 2))
        grid = grid.at[state.agent[:, 0], state.agent[:, 1], 0].max((~state.frozen).astype(jnp.float32))
        grid = grid.at[state.prey[:, 0], state.prey[:, 1], 1].max(state.alive.astype(jnp.float32))
        padded = jnp.pad(grid, ((self.sight, self.sight), (self.sight, self.sight), (0, 0)))
        patch = 2 * self.sight + 1

        def look(position: Array) -> Array:
            return jax.lax.dynamic_slice(padded, (position[0], position[1], 0), (patch, patch, 2)).reshape(-1)

        obs = jax.vmap(look)(state.agent) * (~state.frozen)[:, None]
        ended = jnp.all(state.frozen) | ~jnp.any(state.alive)
        return TimeStep(
            obs=obs,
            state=grid.reshape(-1),
            avail=self._available(state),
            reward=reward,
            discount=1.0 - ended.astype(jnp.float32),
            last=ended,
            info={},
        )

    def _available(self, state: PredatorPreyState) -> Bool[Array, "N A"]:
        """Walls forbid moves, entities do not; catching needs a prey next to the agent; the frozen stay."""
        target = state.agent[:, None] + jnp.array(MOVES, jnp.int32)[None]
        on_grid = jnp.all((target >= 0) & (target < self.size), axis=-1)
        near = jnp.any(_adjacent(state.agent[:, None], state.prey[None]) & state.alive[None], axis=-1)
        live = ~state.frozen
        stay = jnp.ones_like(live)
        return jnp.concatenate([on_grid & live[:, None], stay[:, None], (near & live)[:, None]], axis=-1)
