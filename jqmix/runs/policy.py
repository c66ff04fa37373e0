"""A trained policy, to run on its own: each agent acts on its own history."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jqmix.config import Config, ConfigError, load_config
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.learning.exploration import greedy
from jqmix.learning.rollout import Episodes, evaluate
from jqmix.learning.train import build_env
from jqmix.networks.agent import Agent
from jqmix.runs import checkpoint
from jqmix.runs.devices import shares
from jqmix.runs.jax_settings import settled
from jqmix.runs.memory import check_fits, playing_bytes, tree_bytes


class PolicyState(NamedTuple):
    """What the agents remember: hidden state, last action, and whether an episode starts."""

    h: Float[Array, "B N H"]
    last_action: Int[Array, "B N"]
    first: Bool[Array, " B"]


class Policy(NamedTuple):
    agent: Agent
    params: Any

    @settled()
    def initial_state(self, batch: int) -> PolicyState:
        """For ``batch`` parallel episodes, at their start."""
        n = self.agent.n_agents
        return PolicyState(self.agent.initial_state(batch), jnp.zeros((batch, n), jnp.int32), jnp.ones((batch,), bool))

    @settled()
    def act(
        self, state: PolicyState, obs: Float[Array, "B N O"], avail: Bool[Array, "B N A"]
    ) -> tuple[Int[Array, "B N"], PolicyState]:
        """Greedy actions, and the state to act from next."""
        q, h = self.agent.step(self.params, state.h, jnp.asarray(obs, jnp.float32), state.last_action, state.first)
        action = greedy(q, avail)
        return action, PolicyState(h, action, jnp.zeros_like(state.first))


@settled()
def load_policy(run_dir: str | Path, member: int = 0) -> Policy:
    """The policy of one member of a run, from its newest checkpoint. Builds no environment."""
    run_dir = Path(run_dir)
    cfg = load_run_config(run_dir)
    if not 0 <= member < cfg.seeds:
        raise ConfigError(f"member: {member} is not one of 0 … {cfg.seeds - 1}")
    spec = json.loads((run_dir / "metadata.json").read_text(encoding="utf-8"))["environment"]
    agent = Agent(spec["n_agents"], spec["n_actions"], spec["obs_size"], **asdict(cfg.agent))
    params = jax.tree.map(lambda x: jnp.asarray(x[member]), checkpoint.load_params(run_dir, cfg)["agent"])
    return Policy(agent, params)


def load_run_config(run_dir: Path) -> Config:
    """The configuration that a run was made with. Raises ``ConfigError`` if this is no run directory."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"run_dir: {run_dir} is not a run directory (no config.yaml)")
    return load_config(run_dir / "config.yaml")


# Episodes are played so many at a time, whatever the memory, so that results do not depend on it.
EPISODES_AT_ONCE = 1024
SUMMED = {"length_mean": "length", "return_mean": "score", "win_rate": "won"}


@settled()
def evaluate_run(run_dir: str | Path, episodes: int = 128, seed: int = 0) -> list[dict[str, int | float]]:
    """Exactly ``episodes`` whole greedy episodes for every member of a run, all of them from the same key.

    Raises ``ConfigError`` where what is played at a time does not fit in memory.
    """
    for name, value, low in (("episodes", episodes, 1), ("seed", seed, 0)):
        if not low <= value < 2**31:
            raise ConfigError(f"{name}: {value} is out of range; it must be ≥ {low} and < {2**31}")
    run_dir = Path(run_dir)
    cfg = load_run_config(run_dir)
    params = checkpoint.load_params(run_dir, cfg)["agent"]
    env = build_env(cfg, min(episodes, EPISODES_AT_ONCE))
    at_once = shares(cfg.seeds, max(1, EPISODES_AT_ONCE // env.size))  # members
    need = at_once * playing_bytes(env, cfg.agent.hidden, env.spec.episode_limit + 1) + tree_bytes(params)
    check_fits("episodes", f"{env.size} at a time", need)
    agent = Agent(env.spec.n_agents, env.spec.n_actions, env.spec.obs_size, **asdict(cfg.agent))
    play = jax.jit(partial(_play, agent, env, at_once))
    key, sums = jax.random.key(seed), {}
    for first in range(0, episodes, env.size):
        played = play(params, key if first == 0 else jax.random.fold_in(key, first // env.size))
        new = _sums(jax.device_get(played), min(env.size, episodes - first))
        sums = {name: x + sums.get(name, 0.0) for name, x in new.items()}
    means = {name: sums[of] / sums["ended"] for name, of in SUMMED.items() if of in sums}
    return [
        {"member": m, "seed": cfg.seed + m, "episodes": float(sums["ended"][m])}
        | {name: float(x[m]) for name, x in means.items()}
        for m in range(cfg.seeds)
    ]


def _play(agent: Agent, env: BatchedDecPOMDP, at_once: int, params: Any, key: Array) -> Episodes:
    """One episode in every environment, [P, E]; ``at_once`` members at a time."""
    return jax.lax.map(lambda p: evaluate(agent, p, env, key), params, batch_size=at_once)


def _sums(episodes: Episodes, count: int) -> dict[str, Float[np.ndarray, " P"]]:
    """Over the first ``count`` episodes of every member, in numbers that stay exact for any number of them."""
    sums = episodes._asdict()
    return {name: x[:, :count].sum(axis=1, dtype=np.float64) for name, x in sums.items() if x is not None}
