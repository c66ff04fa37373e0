"""What a run learned about a matrix game or the two-step game: its utilities and joint values, from its checkpoint.

``analysis/joint_values.py`` shows them next to the true values.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jqmix.analysis.joint_values import ValueTables
from jqmix.config import Config, ConfigError
from jqmix.envs.games import MatrixGame, TwoStepGame
from jqmix.envs.registry import resolve_factory
from jqmix.files import warn
from jqmix.inputs import shown
from jqmix.learning.learner import Learner, make_learner, mixer_state
from jqmix.networks import normalise
from jqmix.runs import checkpoint
from jqmix.runs.jax_settings import settled
from jqmix.runs.policy import check_fits, load_run_config
from jqmix.types import Window

Game = MatrixGame | TwoStepGame
GAMES: dict[str, type[Game]] = {"matrix_game": MatrixGame, "two_step_game": TwoStepGame}


class Situation(NamedTuple):
    """Where joint actions are compared: after ``history``, joint actions from the start. ``payoff``: what each leads
    to, played on with the best that follow."""

    name: str
    history: list[tuple[int, ...]]
    payoff: Float[np.ndarray, "*joint"]


def situations(game: Game, gamma: float) -> list[Situation]:
    """All of a game's states."""
    if isinstance(game, MatrixGame):
        return [Situation("", [], np.asarray(game.payoff))]
    second = game.payoff
    first = np.repeat(gamma * second.max((1, 2))[:, None], 2, axis=1)  # agent 1's action decides
    return [Situation("step 1", [], first), *(Situation(f"2{'AB'[k]}", [(k, 0)], second[k]) for k in range(2))]


@settled()
def joint_values(run_dir: str | Path, trust: bool = False) -> list[ValueTables]:
    """The joint values that a run learned, from its newest checkpoint, in every situation of its game.

    Raises ``ConfigError`` if the run is of another environment, or of a mixer that has no joint value; if it is
    damaged; and, unless told to ``trust`` it, if its game is code of its own.
    """
    run_dir = Path(run_dir)
    cfg = load_run_config(run_dir, trust)
    game = _game(cfg, run_dir)
    learner = make_learner(cfg, game.spec)
    if learner.mixer.per_agent:
        raise ConfigError(f"run_dir: {shown(run_dir)} has no joint value; {cfg.algo.mixer} mixes nothing")
    learned = checkpoint.load_learned(run_dir, cfg, warn)
    check_fits(learned.params, learner, run_dir)
    moments = normalise.Moments(**learned.tree["moments"])
    seeds = [cfg.seed + member for member in learned.members]

    def compare(situation: Situation) -> ValueTables:
        window = every_joint_action(game, situation.history)
        read = jax.vmap(lambda params, moments: _tables(learner, cfg, window, params, moments))
        utilities, flat = jax.device_get(read(learned.params, moments))
        tables = {name: table.reshape(-1, *situation.payoff.shape) for name, table in flat.items()}
        return ValueTables(cfg.algo.mixer, situation.name, seeds, situation.payoff, utilities, tables)

    return [compare(situation) for situation in situations(game, cfg.algo.gamma)]


def _game(cfg: Config, run_dir: Path) -> Game:
    """The run's game, without its time limit. Raises ``ConfigError`` if it is of another environment."""
    factory = cfg.env.factory
    build = resolve_factory(factory) if factory is not None else GAMES.get(cfg.env.name)
    try:
        game = build(**cfg.env.kwargs) if build is not None else None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"run_dir: the game of {shown(run_dir)} cannot be built: {error}") from None
    if not isinstance(game, Game):
        known = " and ".join(GAMES)
        raise ConfigError(
            f"run_dir: joint values are shown for {known} alone; {shown(run_dir)} is of {factory or cfg.env.name}"
        )
    return game


def _tables(learner: Learner, cfg: Config, window: Window, params: Any, moments: normalise.Moments) -> Any:
    """One member's utilities [N, A] and joint values [A^N], in the window's last slot."""
    state = mixer_state(cfg, moments, window.state)
    teams = {"Q_tot": (learner.mixer, params)}
    if learner.mixer.critic is not None:
        teams["Q̂*"] = (learner.mixer.critic.mixer, params["critic"])
    tables = {name: learner.joint_value(mixer, team, window, state)[-1] for name, (mixer, team) in teams.items()}
    return learner.values(params, window).q[-1, 0], tables


def every_joint_action(game: Game, history: Sequence[tuple[int, ...]]) -> Window:
    """A window that plays ``history`` in every rollout, and then every joint action in a rollout of its own."""
    n, a = game.spec.n_agents, game.spec.n_actions
    last = np.array(list(itertools.product(range(a), repeat=n)), np.int32)
    key = jax.random.key(0)
    played = [game.reset(key)]
    for joint in history:
        played.append(game.step(key, played[-1][0], jnp.array(joint)))
    t, b = len(played), len(last)
    seen = jax.tree.map(lambda *x: jnp.stack(x), *(timestep for _, timestep in played))
    obs, state, avail = (jnp.broadcast_to(x[:, None], (t, b, *x.shape[1:])) for x in (seen.obs, seen.state, seen.avail))
    action = np.stack([*(np.broadcast_to(np.array(joint, np.int32), (b, n)) for joint in history), last])
    none = jnp.zeros((t, b))
    return Window(
        obs=obs,
        state=state,
        avail=avail,
        action=jnp.asarray(action),
        reward=none,
        discount=none,
        first=jnp.arange(t)[:, None] + none == 0,
        last=jnp.arange(t)[:, None] + none == t,
    )
