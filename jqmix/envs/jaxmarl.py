"""One adapter from JaxMARL's environments (dicts of agents, flags mixed with resets) to the Dec-POMDP contract.

JaxMARL's ``step_env`` is used, never ``step``: nothing resets by itself, so final observations survive. Its time
limits are switched off where the observation does not depend on them, and ours takes their place, at the length
episodes really have there (MPE and SMAX compare the counter before raising it: one step more than ``max_steps``).
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jqmix.envs.errors import EnvError
from jqmix.envs.mpe import ACTIONS
from jqmix.envs.smax import smax_actions
from jqmix.types import EnvSpec, Seen, TimeLimitMode, TimeStep

NO_LIMIT = 2**30


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """JaxMARL says two lines on import and warns of its own older environments; one of its imports also puts
    ``sys.stdout`` back, so it is the file descriptor that is sent away for the time being.

    Raises ``EnvError`` where JaxMARL, or something that it needs, is not installed: nothing else here needs it.
    """
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as error:
        package = (error.name or "jaxmarl").partition(".")[0]
        missing = f"JaxMARL's environments need the package {package}, which is not installed"
        raise EnvError(f"env.name: {missing} (pip install jaxmarl)") from None
    finally:
        for stream in {sys.stdout, sys.__stdout__} - {None}:
            stream.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _jaxmarl_make(env_id: str, **kwargs: Any) -> Any:
    """``jaxmarl.make``, without its greetings and deprecation notes, which are not our user's business."""
    with _quiet():
        import jaxmarl

        return jaxmarl.make(env_id, **kwargs)


def _size(space: Any) -> int:
    """Number of entries of an observation space (Discrete's are one-hot elsewhere; none is observed here)."""
    return int(np.prod(np.atleast_1d(space.shape))) if np.size(space.shape) else 1


def _strongly_typed(tree: Any) -> Any:
    """Python numbers leave weak types in JaxMARL's states, which would make a first step compile on its own."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), tree)


class JaxMARLEnv:
    """The general case: state = all observations, every action always available, reward = sum over agents.

    Observations are flattened, and padded with zeros to the largest agent's; actions that an agent does not have
    are never available. The families below change what differs.
    """

    time_limit: TimeLimitMode = "bootstrap"

    def __init__(self, env: Any, name: str, episode_limit: int):
        self.env = env
        self.agents: list[str] = list(env.agents)
        self._n_actions = [int(env.action_space(a).n) for a in self.agents]
        self._obs_sizes = [_size(env.observation_space(a)) for a in self.agents]
        sizes = len(self.agents), max(self._n_actions), max(self._obs_sizes), 0
        probe = EnvSpec(name, *sizes, episode_limit, self.time_limit)
        self.spec = probe
        shapes = jax.eval_shape(self.reset, jax.random.key(0))[1]
        self.spec = probe._replace(state_size=shapes.state.shape[-1], action_names=self.action_names())

    # What families change.

    def global_state(self, obs: dict[str, Array], state: Any) -> Array:
        """[S]: what the mixer sees in training. JaxMARL's rule where there is no global state."""
        del state
        return jnp.concatenate([obs[a].reshape(-1).astype(jnp.float32) for a in self.agents])

    def available(self, state: Any) -> Bool[Array, "N A"]:
        """[N, A]: every action that the agent has."""
        del state
        return jnp.arange(self.spec.n_actions)[None] < jnp.asarray(self._n_actions)[:, None]

    def reward(self, rewards: dict[str, Array]) -> Array:
        """[]: the shared reward. JaxMARL sums over agents."""
        return jnp.sum(jnp.stack([rewards[a] for a in self.agents]))

    def terminated(self, done: Array) -> Array:
        """[]: whether ``done`` means a true termination."""
        return done

    def info(self, state: Any, reward: Array, infos: dict[str, Any]) -> dict[str, Array]:
        del state, reward, infos
        return {}

    def action_names(self) -> tuple[str, ...]:
        """What each action means, where all agents have the same."""
        return ()

    def shaped(self, infos: dict[str, Any]) -> Array | float:
        """[]: what is added to the reward for learning, and left out of the reported score."""
        del infos
        return 0.0

    # The contract.

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        obs, state = self.env.reset(key)
        state = _strongly_typed(state)
        shapes = jax.eval_shape(self.env.step_env, key, state, {a: jnp.int32(0) for a in self.agents})[4]
        infos = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return state, self._timestep(obs, state, jnp.float32(0.0), jnp.bool_(False), infos)

    def step(self, key: Array, state: Any, actions: Int[Array, " N"]) -> tuple[Any, TimeStep]:
        chosen = {a: actions[i] for i, a in enumerate(self.agents)}
        obs, state, rewards, dones, infos = self.env.step_env(key, state, chosen)
        state = _strongly_typed(state)
        reward = self.reward(rewards).astype(jnp.float32)
        return state, self._timestep(obs, state, reward, self.terminated(dones["__all__"]), infos)

    def _timestep(
        self, obs: dict[str, Array], state: Any, score: Array, ended: Array, infos: dict[str, Any]
    ) -> TimeStep:
        info = self.info(state, score, infos)
        return TimeStep(
            **self.seen(obs, state)._asdict(),
            reward=score + self.shaped(infos),
            discount=1.0 - ended.astype(jnp.float32),
            last=ended,
            info={**info, "score": score},
        )

    def seen(self, obs: dict[str, Array], state: Any) -> Seen:
        rows = [self._padded(obs[a]) for a in self.agents]
        return Seen(jnp.stack(rows), self.global_state(obs, state).astype(jnp.float32), self.available(state))

    def _padded(self, x: Array) -> Array:
        flat = x.reshape(-1).astype(jnp.float32)
        return jnp.pad(flat, (0, self.spec.obs_size - flat.size))


class _SharedReward(JaxMARLEnv):
    """Every agent is told the same reward: it is taken once."""

    def reward(self, rewards: dict[str, Array]) -> Array:
        return rewards[self.agents[0]]


class MPEEnv(JaxMARLEnv):
    """MPE: everything that is seen follows from positions, velocities, messages and the goal."""

    PHYSICAL = ("p_pos", "p_vel", "c", "goal")

    def action_names(self) -> tuple[str, ...]:
        return ACTIONS if set(self._n_actions) == {len(ACTIONS)} else ()  # otherwise some of them speak

    def pack(self, state: Any, timestep: TimeStep) -> dict[str, Array]:
        del timestep
        return {name: getattr(state, name) for name in self.PHYSICAL if getattr(state, name) is not None}

    def unpack(self, packed: dict[str, Array]) -> Seen:
        with _quiet():
            from jaxmarl.environments.mpe.simple import State
        state = State(done=jnp.zeros((len(self.agents),), bool), step=jnp.int32(0), **packed)
        return self.seen(self.env.get_obs(state), state)


class SMAXEnv(_SharedReward):
    """SMAX against its heuristic enemy. The global state is SMAX's own, unnormalised."""

    def global_state(self, obs: dict[str, Array], state: Any) -> Array:
        del state
        return obs["world_state"]

    def available(self, state: Any) -> Bool[Array, "N A"]:
        masks = self.env.get_avail_actions(state)
        return jnp.stack([masks[a] for a in self.agents]).astype(bool)

    def info(self, state: Any, reward: Array, infos: dict[str, Any]) -> dict[str, Array]:
        alive, n = state.state.unit_alive, len(self.agents)
        return {"won": jnp.any(alive[:n]) & ~jnp.any(alive[n:])}

    def action_names(self) -> tuple[str, ...]:
        return smax_actions(self.env.num_enemies)


class OvercookedEnv(_SharedReward):
    """Overcooked never terminates; the limit is its only end. ``shaping`` weighs the shaped reward for learning."""

    def __init__(self, env: Any, name: str, episode_limit: int, shaping: float, directions: tuple[str, ...]):
        self._shaping, self._directions = shaping, directions
        super().__init__(env, name, episode_limit)

    def terminated(self, done: Array) -> Array:
        return jnp.zeros_like(done)

    def shaped(self, infos: dict[str, Any]) -> Array | float:
        return self._shaping * sum(jax.tree.leaves(infos["shaped_reward"]))

    def action_names(self) -> tuple[str, ...]:
        return *self._directions, "stay", "interact"


class HanabiEnv(_SharedReward):
    """Agents take turns; the others have only the no-op."""

    def available(self, state: Any) -> Bool[Array, "N A"]:
        masks = self.env.get_legal_moves(state)
        legal = jnp.stack([masks[a] for a in self.agents]).astype(bool)
        # A finished game may leave nothing legal; a mask is never empty here, so the no-op (the last) stays.
        no_op = jnp.arange(self.spec.n_actions) == self.spec.n_actions - 1
        return legal | (~jnp.any(legal, axis=-1, keepdims=True) & no_op[None])


class SwitchRiddleEnv(_SharedReward):
    """Won when somebody tells after everybody has been in the room.

    The last day is a rule of the game, not a cut: where the value went on, prisoners would wait for ever.
    """

    time_limit: TimeLimitMode = "terminate"

    def info(self, state: Any, reward: Array, infos: dict[str, Any]) -> dict[str, Array]:
        return {"won": reward > 0}

    def action_names(self) -> tuple[str, ...]:
        return tuple(name.lower().replace("_", " ") for name in self.env.game_actions)


# Factories: what the registry names.


def smax(map_name: str, **kwargs: Any) -> SMAXEnv:
    """SMAX against the heuristic enemy, in the setting of JaxMARL's baselines."""
    with _quiet():
        from jaxmarl.environments.smax import map_name_to_scenario
    settings = {"see_enemy_actions": True, "walls_cause_death": True, "attack_mode": "closest", **kwargs}
    limit = settings.pop("max_steps", 100) + 1
    env = _jaxmarl_make("HeuristicEnemySMAX", scenario=map_name_to_scenario(map_name), max_steps=NO_LIMIT, **settings)
    return SMAXEnv(env, f"jaxmarl/smax_{map_name}", limit)


def mpe(scenario: str, **kwargs: Any) -> MPEEnv:
    """A cooperative MPE scenario; rewards are summed over agents, as JaxMARL reports them."""
    limit = kwargs.pop("max_steps", 25) + 1
    name = f"jaxmarl/mpe_{scenario}" if scenario == "simple_spread_v3" else f"mpe_{scenario}"  # whose name ours has
    return MPEEnv(_jaxmarl_make(f"MPE_{scenario}", max_steps=NO_LIMIT, **kwargs), name, limit)


def overcooked(layout: str, shaping: float = 0.0, **kwargs: Any) -> OvercookedEnv:
    """Overcooked v1. ``shaping`` adds that much of the shaped reward to what is learned from, not to the score."""
    with _quiet():
        from jaxmarl.environments.overcooked import overcooked_layouts
    env = _jaxmarl_make("overcooked", layout=overcooked_layouts[layout], **kwargs)
    return OvercookedEnv(env, f"overcooked_{layout}", int(env.max_steps), shaping, ("up", "down", "right", "left"))


def overcooked_v2(layout: str, shaping: float = 0.0, **kwargs: Any) -> OvercookedEnv:
    """Overcooked v2, likewise."""
    env = _jaxmarl_make("overcooked_v2", layout=layout, **kwargs)
    directions = ("right", "down", "left", "up")
    return OvercookedEnv(env, f"overcooked_v2_{layout}", int(env.max_steps), shaping, directions)


def hanabi(**kwargs: Any) -> HanabiEnv:
    """Hanabi. It has no time limit of its own; no full two-player game lasts 100 moves."""
    return HanabiEnv(_jaxmarl_make("hanabi", **kwargs), "hanabi", 100)


def switch_riddle(**kwargs: Any) -> SwitchRiddleEnv:
    """The hundred prisoners' switch, for three agents unless told otherwise."""
    env = _jaxmarl_make("switch_riddle", **kwargs)
    limit, env.max_steps = int(env.max_steps), NO_LIMIT
    return SwitchRiddleEnv(env, "switch_riddle", limit)
