"""A trained policy, to run on its own: each agent acts on its own history."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jqmix.config import Config, ConfigError, load_config
from jqmix.learning.exploration import greedy
from jqmix.networks.agent import Agent
from jqmix.runs import checkpoint


class PolicyState(NamedTuple):
    """What the agents remember: hidden state, last action, and whether an episode starts."""

    h: Float[Array, "B N H"]
    last_action: Int[Array, "B N"]
    first: Bool[Array, " B"]


class Policy(NamedTuple):
    agent: Agent
    params: Any

    def initial_state(self, batch: int) -> PolicyState:
        """For ``batch`` parallel episodes, at their start."""
        n = self.agent.n_agents
        return PolicyState(self.agent.initial_state(batch), jnp.zeros((batch, n), jnp.int32), jnp.ones((batch,), bool))

    def act(
        self, state: PolicyState, obs: Float[Array, "B N O"], avail: Bool[Array, "B N A"]
    ) -> tuple[Int[Array, "B N"], PolicyState]:
        """Greedy actions, and the state to act from next."""
        q, h = self.agent.step(self.params, state.h, obs, state.last_action, state.first)
        action = greedy(q, avail)
        return action, PolicyState(h, action, jnp.zeros_like(state.first))


def load_policy(run_dir: str | Path, member: int = 0, best: bool = False) -> Policy:
    """The policy of one member of a run, from its newest checkpoint: the last, or the one that played best in an
    evaluation. Builds no environment."""
    run_dir = Path(run_dir)
    cfg = load_run_config(run_dir)
    if not 0 <= member < cfg.seeds:
        raise ConfigError(f"member: {member} is not one of 0 … {cfg.seeds - 1}")
    spec = json.loads((run_dir / "metadata.json").read_text(encoding="utf-8"))["environment"]
    agent = Agent(spec["n_agents"], spec["n_actions"], spec["obs_size"], **asdict(cfg.agent))
    learned = checkpoint.load_learned(run_dir, cfg, warnings.warn)
    if member not in learned.members:
        raise ConfigError(f"member: {member} was not trained yet; {', '.join(map(str, learned.members))} were")
    row = learned.members.index(member)
    params = jax.tree.map(lambda x: jnp.asarray(x[row]), learned.agents(best))
    return Policy(agent, params)


def load_run_config(run_dir: Path) -> Config:
    """The configuration that a run was made with. Raises ``ConfigError`` if this is no run directory."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"run_dir: {run_dir} is not a run directory (no config.yaml)")
    return load_config(run_dir / "config.yaml")


def evaluate_run(
    run_dir: str | Path, episodes: int = 128, seed: int = 0, best: bool = False
) -> list[dict[str, int | float]]:
    """Exactly ``episodes`` whole greedy episodes for every member of a run that was trained, all of them from the same
    key, with what it learned last, or with what played best in an evaluation."""
    from jqmix.learning.rollout import evaluate
    from jqmix.learning.train import build_env

    run_dir = Path(run_dir)
    cfg = load_run_config(run_dir)
    learned = checkpoint.load_learned(run_dir, cfg, warnings.warn)
    params = learned.agents(best)
    env = build_env(cfg, episodes)
    spec = env.spec
    agent = Agent(spec.n_agents, spec.n_actions, spec.obs_size, **asdict(cfg.agent))
    key = jax.random.key(seed)
    means = jax.jit(jax.vmap(lambda p: evaluate(agent, p, env, key).means()))(params)
    host = jax.device_get(means)
    return [
        {"member": m, "seed": cfg.seed + m, **{k: float(v[row]) for k, v in host.items()}}
        for row, m in enumerate(learned.members)
    ]
