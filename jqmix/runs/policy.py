"""A trained policy, to run on its own: each agent acts on its own history."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jqmix.config import Config, ConfigError, foreign_code, load_config, read_fields
from jqmix.envs.base import BatchedDecPOMDP
from jqmix.files import read_json, warn, whole_number
from jqmix.inputs import quoted, shown
from jqmix.learning.evaluation import evaluate
from jqmix.learning.exploration import greedy
from jqmix.learning.learner import Learner, make_learner
from jqmix.learning.rollout import Episodes
from jqmix.learning.train import build_env
from jqmix.networks.agent import Agent
from jqmix.runs import checkpoint
from jqmix.runs.devices import shares
from jqmix.runs.exported import MOST_SIZES, ProgramAgent, is_exported, load_exported, read_entities
from jqmix.runs.jax_settings import settled
from jqmix.runs.memory import check_room, playing_bytes, tree_bytes
from jqmix.runs.shapes import by_name, difference
from jqmix.types import EnvSpec

# The largest sizes that a run's metadata may speak of.
MOST = {name: MOST_SIZES[name] for name in ("n_agents", "n_actions", "obs_size")} | {"state_size": 2**24}


class PolicyState(NamedTuple):
    """What the agents remember: their core's state, the last action, and whether an episode starts.

    Of one agent alone, without the axis N.
    """

    memory: Any  # the core's state, leaves [B, N, …]
    last_action: Int[Array, "B *N"]
    first: Bool[Array, " B"]


class Policy(NamedTuple):
    """A team's agents with what they learned. Each acts on what it observes and remembers, and may act alone."""

    agent: Agent | ProgramAgent
    params: Any

    def __repr__(self) -> str:
        agent, count = self.agent, sum(int(x.size) for x in jax.tree.leaves(self.params))
        sizes = f"{agent.n_agents} agents, {agent.n_actions} actions"
        if isinstance(agent, Agent):
            sizes += f", observations of {agent.obs_size} numbers; {agent.core} of {agent.hidden}"
        return f"Policy({sizes}, {count:,} parameters)"

    @settled()
    def initial_state(self, batch: int, agent: int | None = None) -> PolicyState:
        """For ``batch`` parallel episodes, at their start; of all agents, or of one alone, without the axis N."""
        n = self.agent.n_agents
        state = PolicyState(self.agent.initial_state(batch), jnp.zeros((batch, n), jnp.int32), jnp.ones((batch,), bool))
        return state if agent is None else self._alone(state, agent)

    @settled()
    def act(
        self,
        state: PolicyState,
        obs: Float[Array, "B *N O"],
        avail: Bool[Array, "B *N A"],
        agent: int | None = None,
    ) -> tuple[Int[Array, "B *N"], PolicyState]:
        """Greedy actions, and the state to act from next; of all agents, or of one alone, without the axis N.

        Where an episode of the batch starts anew, ``state.first`` must be true.
        """
        if agent is not None:
            memory, last_action, seen, allowed = self._in_team((state.memory, state.last_action, obs, avail), agent)
            action, after = self.act(PolicyState(memory, last_action, state.first), seen, allowed)
            return action[:, agent], self._alone(after, agent)
        seen = jnp.asarray(obs, jnp.float32)
        q, memory = self.agent.step(self.params, state.memory, seen, state.last_action, state.first)
        action = greedy(q, avail)
        return action, PolicyState(memory, action, jnp.zeros_like(state.first))

    def _alone(self, state: PolicyState, agent: int) -> PolicyState:
        self._check_agent(agent)
        memory, last_action = jax.tree.map(lambda x: x[:, agent], (state.memory, state.last_action))
        return PolicyState(memory, last_action, state.first)

    def _in_team(self, values: Any, agent: int) -> Any:
        """One agent's values [B, …] as a team's [B, N, …]; the others' are zeros, and what they do is dropped."""
        self._check_agent(agent)
        n = self.agent.n_agents

        def put(x: Array) -> Array:
            x = jnp.asarray(x)
            return jnp.zeros((x.shape[0], n, *x.shape[1:]), x.dtype).at[:, agent].set(x)

        return jax.tree.map(put, values)

    def _check_agent(self, agent: int) -> None:
        if not 0 <= agent < self.agent.n_agents:
            raise ConfigError(f"agent: {agent} is not one of 0 … {self.agent.n_agents - 1}")


class Trained(NamedTuple):
    """A policy, and what it comes from: a run's configuration and member, and after how many environment steps."""

    agent: Agent
    params: Any
    cfg: Config
    member: int
    best: bool
    env_steps: int | None  # None where a run of an earlier version does not say

    @property
    def policy(self) -> Policy:
        return Policy(self.agent, self.params)


@settled()
def load_policy(run_dir: str | Path, member: int = 0, best: bool = False, trust: bool = False) -> Policy:
    """The policy of one member of a run, from its newest checkpoint: the last, or the one that played best in an
    evaluation. ``run_dir`` may also be a folder that :func:`jqmix.export` wrote, which holds one policy. Builds no
    environment, and so executes no environment's code.

    Raises ``ConfigError`` for anything that is damaged, for a configuration that does not fit the weights, and, unless
    told to ``trust`` it, for one whose mixer or core is code of its own.
    """
    path = Path(run_dir)
    if not is_exported(path):
        return load_trained(path, member, best, trust).policy
    if member != 0 or best:
        field = "member" if member else "best"
        raise ConfigError(f"{field}: {shown(path)} is an exported policy, which holds one alone")
    return Policy(*load_exported(path, trust))


def load_trained(run_dir: Path, member: int, best: bool, trust: bool) -> Trained:
    """As :func:`load_policy`, of a run's directory."""
    cfg = load_run_config(run_dir, trust, harmless=("env.factory",))
    check_member(cfg, member)
    learner = make_learner(cfg, read_spec(run_dir))
    learned = checkpoint.load_learned(run_dir, cfg, warn)
    check_fits(learned.params, learner, run_dir)
    row = learned.row(member)
    params = jax.tree.map(lambda x: jnp.asarray(x[row]), learned.agents(best))
    return Trained(learner.agent, params, cfg, member, best, learned.env_steps(row, best))


def check_member(cfg: Config, member: int) -> None:
    """Raises ``ConfigError`` unless the run has such a member."""
    if not 0 <= member < cfg.seeds:
        raise ConfigError(f"member: {member} is not one of 0 … {cfg.seeds - 1}")


def load_run_config(run_dir: Path, trust: bool = False, harmless: Sequence[str] = ()) -> Config:
    """The configuration that a run was made with.

    Raises ``ConfigError`` if this is no run directory or its configuration is damaged, and, unless told to ``trust``
    it, where it names code from outside to be executed, but for ``harmless`` fields, whose code the caller does not
    execute. Whoever builds a run's environment asks here, and does not say so on the user's behalf.
    """
    path = run_dir / "config.yaml"
    if not os.path.isfile(path):  # false for a name that is none, too
        raise ConfigError(f"run_dir: {shown(run_dir)} is not a run directory (no config.yaml)")
    values = read_fields(path)  # whole, every field of its type
    for field, code in () if trust else foreign_code(values).items():
        if field not in harmless:
            raise ConfigError(f"{field}: this run names code of its own ({shown(code)}); --trust runs it")
    try:
        return load_config(path)
    except ConfigError as error:
        raise ConfigError(f"{shown(path)}: {error}") from None


def read_spec(run_dir: Path) -> EnvSpec:
    """A run's environment as its metadata describes it. Raises ``ConfigError`` if it does not."""
    path = run_dir / "metadata.json"
    environment = read_json(path).get("environment")
    if not isinstance(environment, dict):
        raise ConfigError(f"{shown(path)}: environment: {quoted(environment)} is not allowed; it takes the sizes")
    sizes = {name: whole_number(path, environment, name, most, "environment.") for name, most in MOST.items()}
    entities = read_entities(path, environment, sizes, "environment")
    return EnvSpec(str(environment.get("name")), *sizes.values(), episode_limit=1, entities=entities)


def check_fits(params: Any, learner: Learner, run_dir: Path) -> None:
    """That a checkpoint's parameters (leaves lead with P) are of the shapes that this learner has.

    Raises ``ConfigError`` that names the first which is not: as where config.yaml was changed after training.
    """
    expected = jax.eval_shape(lambda key: learner.init(key)[0], jax.random.key(0))
    found = {name: x.shape[1:] for name, x in by_name(params).items()}
    differs = difference(found, {name: x.shape for name, x in by_name(expected).items()})
    if differs:
        name, there, wanted = differs
        raise ConfigError(
            f"run_dir: the configuration of {shown(run_dir)} does not fit its weights: {name} is "
            f"{there} in the checkpoint, {wanted} by the configuration"
        )


# Episodes are played so many at a time, whatever the memory, so that results do not depend on it.
EPISODES_AT_ONCE = 1024
SUMMED = {"length_mean": "length", "return_mean": "score", "win_rate": "won"}


@settled()
def evaluate_run(
    run_dir: str | Path,
    episodes: int = 128,
    seed: int = 0,
    best: bool = False,
    trust: bool = False,
    stage: Callable[[str], None] = lambda what: None,
) -> list[dict[str, int | float]]:
    """Exactly ``episodes`` whole greedy episodes for every member of a run that was trained, all of them from the same
    key, with what it learned last, or with what played best in an evaluation. ``stage`` is told what is being done.

    Raises ``ConfigError`` as :func:`load_policy` does, where what is played at a time does not fit in memory, and,
    unless told to ``trust`` it, for a run whose environment is code of its own.
    """
    for name, value, low in (("episodes", episodes, 1), ("seed", seed, 0)):
        if not low <= value < 2**31:
            raise ConfigError(f"{name}: {value} is out of range; it must be ≥ {low} and < {2**31}")
    run_dir = Path(run_dir)
    stage("loading the run")
    cfg = load_run_config(run_dir, trust)
    env = build_env(cfg, min(episodes, EPISODES_AT_ONCE))
    learner = make_learner(cfg, env.spec)
    learned = checkpoint.load_learned(run_dir, cfg, warn)
    check_fits(learned.params, learner, run_dir)
    params, members = learned.agents(best), learned.members
    at_once = shares(len(members), max(1, EPISODES_AT_ONCE // env.size))  # members
    need = at_once * playing_bytes(env, cfg.agent.hidden, env.spec.episode_limit) + tree_bytes(params)
    check_room("episodes", f"{env.size} at a time", need)
    play = jax.jit(partial(_play, learner.agent, env, at_once))
    key, sums = jax.random.key(seed), {}
    each = f" for each of {len(members)} seeds" if len(members) > 1 else ""
    for first in range(0, episodes, env.size):
        count = f"{min(first + env.size, episodes):,} of {episodes:,}" if episodes > env.size else f"{episodes:,}"
        stage(f"playing {count} episodes{each}")
        played = play(params, key if first == 0 else jax.random.fold_in(key, first // env.size))
        new = _sums(jax.device_get(played), min(env.size, episodes - first))
        sums = {name: x + sums.get(name, 0.0) for name, x in new.items()}
    means = {name: sums[of] / sums["ended"] for name, of in SUMMED.items() if of in sums}
    return [
        {"member": m, "seed": cfg.seed + m, "episodes": float(sums["ended"][row])}
        | {name: float(x[row]) for name, x in means.items()}
        for row, m in enumerate(members)
    ]


def _play(agent: Agent, env: BatchedDecPOMDP, at_once: int, params: Any, key: Array) -> Episodes:
    """One episode in every environment, [P, E]; ``at_once`` members at a time."""
    return jax.lax.map(lambda p: evaluate(agent, p, env, key), params, batch_size=at_once)


def _sums(episodes: Episodes, count: int) -> dict[str, Float[np.ndarray, " P"]]:
    """Over the first ``count`` episodes of every member, in numbers that stay exact for any number of them."""
    sums = episodes._asdict()
    return {name: x[:, :count].sum(axis=1, dtype=np.float64) for name, x in sums.items() if x is not None}
