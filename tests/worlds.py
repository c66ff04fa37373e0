"""A scripted environment whose every number tells when it was made, and the settings of a short run."""

import jax
import jax.numpy as jnp
import numpy as np

from jqmix.types import EnvSpec, TimeStep


class Counting:
    """Episodes end by themselves after ``length`` steps. obs = [t + 1], reward = t, actions available: t + 1 of 3."""

    def __init__(self, length: int = 3, limit: int = 5, terminates: bool = True):
        self.length, self.terminates = length, terminates
        self.spec = EnvSpec("counting", 2, 3, 1, 1, limit)

    def _emit(self, t, reward):
        ended = (t >= self.length) & self.terminates
        return TimeStep(
            obs=jnp.broadcast_to(t + 1.0, (2, 1)),
            state=jnp.reshape(t + 1.0, (1,)),
            avail=jnp.broadcast_to(jnp.arange(3) <= t, (2, 3)),
            reward=reward,
            discount=1.0 - ended.astype(jnp.float32),
            last=ended,
            info={"won": ended},
        )

    def reset(self, key):
        t = jnp.zeros((), jnp.int32)
        return t, self._emit(t, jnp.float32(0))

    def step(self, key, state, actions):
        return state + 1, self._emit(state + 1, state.astype(jnp.float32))


class Ragged:
    """Episodes of 1 to 4 steps, drawn at the reset; what comes after an episode's end looks like another episode."""

    spec = EnvSpec("ragged", 1, 2, 1, 1, 9)

    def _emit(self, t, reward, ended):
        return TimeStep(
            obs=jnp.reshape(t, (1, 1)).astype(jnp.float32),
            state=jnp.reshape(t, (1,)).astype(jnp.float32),
            avail=jnp.ones((1, 2), bool),
            reward=reward,
            discount=1.0 - ended.astype(jnp.float32),
            last=ended,
            info={},
        )

    def reset(self, key):
        state = (jnp.zeros((), jnp.int32), jax.random.randint(key, (), 1, 5))
        return state, self._emit(state[0], jnp.float32(0), jnp.bool_(False))

    def step(self, key, state, actions):
        t, length = state[0] + 1, state[1]
        return (t, length), self._emit(t, jnp.float32(1), t % length == 0)


class Rolling(Counting):
    """Counting that rewards with a number drawn in the step, which it has as an argument if ``told``."""

    def __init__(self, told: bool):
        super().__init__(99)
        if told:
            self.noise, self.step_with = jax.random.uniform, lambda noise, state, actions: self._roll(state, noise)

    def _roll(self, state, reward):
        return state + 1, self._emit(state + 1, reward)

    def step(self, key, state, actions):
        return self._roll(state, jax.random.uniform(key))


class Keyed(Counting):
    """Counting that rewards with numbers drawn from random keys in its state: of two kinds, each with its own type."""

    def reset(self, key):
        t, timestep = super().reset(key)
        return (t, key, jax.random.wrap_key_data(jnp.arange(4, dtype=jnp.uint32), impl="rbg")), timestep

    def step(self, key, state, actions):
        t, *keys = state
        drawn = sum(jax.random.uniform(key) for key in keys)
        keys = (jax.random.fold_in(key, 1) for key in keys)
        return (t + 1, *keys), self._emit(t + 1, drawn)


class Poisoned(Counting):
    """Counting in which something goes wrong now and then: NaN in ``field``, no action, a reward out of range."""

    def __init__(self, field: str, chance: float = 1 / 500):
        super().__init__(length=9, limit=5)
        self.field, self.chance = field, chance
        self.spec = self.spec._replace(reward_range=(0.0, 5.0))

    def step(self, key, state, actions):
        state, timestep = super().step(key, state, actions)
        now = jax.random.uniform(key) < self.chance
        if self.field == "avail":
            return state, timestep._replace(avail=timestep.avail & ~now)
        wrong = jnp.float32(7.0) if self.field == "range" else jnp.nan
        field = "reward" if self.field == "range" else self.field
        return state, timestep._replace(**{field: jnp.where(now, wrong, getattr(timestep, field))})


class Painted(Counting):
    """Counting that shows itself: a picture as grey as it is late."""

    def render(self, state):
        return np.full((4, 6, 3), 50 * int(state), np.uint8)


# A run of seconds, by the names of the configuration's fields.
SMALL_RUN = {
    "env.name": "chain_probe",
    "agent.hidden": 8,
    "mixer.embed": 8,
    "mixer.hypernet_hidden": 8,
    "replay.capacity": 64,
    "replay.batch": 16,
    "eval.every": 320,
    "eval.episodes": 12,
}
