"""MPE's simple_spread (1706.02275) as whole-array operations: agents cover landmarks and collide with one another.

It is the same environment as JaxMARL 0.2's ``MPE_simple_spread_v3``: equal states and actions lead to equal states,
observations and rewards (``tests/test_mpe.py``, against the installed JaxMARL), the reward being summed over agents.
What differs: nothing is drawn in a step, JaxMARL's noise being zero; the silent agents' messages, which are zeros in
every observation, are no state; and agents that stand on one another are pushed by a finite force.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jqmix.types import EnvSpec, Seen, TimeStep

ACTIONS = ("nothing", "left", "right", "down", "up")
N_ACTIONS = len(ACTIONS)
DIRECTIONS = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], np.float32)
DT = 0.1  # seconds of a step
ACCELERATION = 5.0
DAMPING = 0.25  # of the velocity, in a step
AGENT_RADIUS = 0.15
CONTACT_FORCE, CONTACT_MARGIN = 1e2, 1e-3


class SpreadState(NamedTuple):
    position: Float[Array, "N 2"]
    velocity: Float[Array, "N 2"]
    landmark: Float[Array, "L 2"]


def _distances(a: Float[Array, "*n 2"], b: Float[Array, "*m 2"]) -> Float[Array, "*nm"]:
    dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    return jnp.sqrt(dx * dx + dy * dy)


class SimpleSpread:
    """See the module's text. ``local_ratio`` weighs an agent's own collisions against what all are rewarded for."""

    def __init__(
        self, num_agents: int = 3, num_landmarks: int = 3, local_ratio: int | float = 0.5, max_steps: int = 25
    ):
        for name, value in (("num_agents", num_agents), ("num_landmarks", num_landmarks), ("max_steps", max_steps)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"env.kwargs.{name}: {value!r} must be an integer ≥ 1")
        if not isinstance(local_ratio, int | float) or not 0 <= local_ratio <= 1:
            raise ValueError(f"env.kwargs.local_ratio: {local_ratio!r} must be a number from 0 to 1")
        self.n_landmarks, self.local_ratio = num_landmarks, local_ratio
        obs_size = 4 + 2 * num_landmarks + 4 * (num_agents - 1)
        # JaxMARL compares its step counter before raising it: an episode has one step more than ``max_steps``.
        self.spec = EnvSpec(
            "mpe_simple_spread_v3",
            num_agents,
            N_ACTIONS,
            obs_size,
            num_agents * obs_size,
            max_steps + 1,
            reward_range=(-float("inf"), 0.0),
            action_names=ACTIONS,
        )

    def reset(self, key: Array) -> tuple[SpreadState, TimeStep]:
        n = self.spec.n_agents
        place = jax.random.uniform(key, (n + self.n_landmarks, 2), minval=-1.0, maxval=1.0)
        state = SpreadState(place[:n], jnp.zeros((n, 2)), place[n:])
        return state, self._timestep(state, jnp.float32(0.0))

    def step(self, key: Array, state: SpreadState, actions: Int[Array, " N"]) -> tuple[SpreadState, TimeStep]:
        """Forces act on the velocity after it has moved everybody."""
        del key
        force = ACCELERATION * jnp.asarray(DIRECTIONS)[actions] + self._contacts(state.position)
        position = state.position + state.velocity * DT
        velocity = state.velocity * (1 - DAMPING) + force * DT
        state = SpreadState(position, velocity, state.landmark)
        return state, self._timestep(state, self._reward(state))

    def pack(self, state: SpreadState, timestep: TimeStep) -> SpreadState:
        del timestep
        return state

    def unpack(self, packed: SpreadState) -> Seen:
        obs = self._observe(packed)
        return Seen(obs, obs.reshape(-1), jnp.ones((self.spec.n_agents, N_ACTIONS), bool))

    @property
    def _apart(self) -> Bool[np.ndarray, "N N"]:
        """Which pairs are two agents."""
        return ~np.eye(self.spec.n_agents, dtype=bool)

    def _contacts(self, position: Float[Array, "N 2"]) -> Float[Array, "N 2"]:
        """What pushes each agent away from the others, softly: a force that grows where two overlap."""
        away = position[:, None] - position[None]
        distance = _distances(position[:, None], position[None])
        overlap = CONTACT_MARGIN * jnp.logaddexp(0.0, (2 * AGENT_RADIUS - distance) / CONTACT_MARGIN)
        force = jnp.where(self._apart, CONTACT_FORCE * overlap / jnp.maximum(distance, 1e-12), 0.0)
        return jnp.sum(away * force[..., None], axis=1)

    def _reward(self, state: SpreadState) -> Float[Array, ""]:
        """Summed over agents: each one's collisions, and how far every landmark is from the nearest of all."""
        n = self.spec.n_agents
        collisions = (_distances(state.position[:, None], state.position[None]) < 2 * AGENT_RADIUS) & self._apart
        uncovered = jnp.sum(jnp.min(_distances(state.position[:, None], state.landmark[None]), axis=0))
        return -self.local_ratio * jnp.sum(collisions) - (1 - self.local_ratio) * n * uncovered

    def _observe(self, state: SpreadState) -> Float[Array, "N O"]:
        """Own velocity and position; where landmarks are, then the other agents, from here; and their silence."""
        n = self.spec.n_agents
        here = state.position[:, None]
        # The m-th other agent of agent i is m, or m + 1 from i itself on.
        before = (np.arange(n - 1)[None] < np.arange(n)[:, None])[..., None]
        others = jnp.where(before, state.position[None, :-1], state.position[None, 1:])
        seen = (state.landmark[None] - here, others - here, jnp.zeros((n, n - 1, 2)))
        return jnp.concatenate([state.velocity, state.position, *(v.reshape(n, -1) for v in seen)], axis=-1)

    def _timestep(self, state: SpreadState, reward: Float[Array, ""]) -> TimeStep:
        return TimeStep(
            **self.unpack(state)._asdict(),
            reward=reward,
            discount=jnp.ones(()),
            last=jnp.zeros((), bool),
            info={},
        )
