"""What a run learned about a matrix game or the two-step game: utilities and joint values, next to the true values.

IGM (individual–global–max) holds where the joint action with the greatest Q_tot is the tuple of the agents' own
greedy actions; that it is also the one that pays most is a further matter. Both are shown.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jqmix.config import Config, ConfigError
from jqmix.envs.games import MatrixGame, TwoStepGame
from jqmix.envs.registry import resolve_factory
from jqmix.inputs import shown
from jqmix.learning import normalise
from jqmix.learning.learner import Learner, make_learner
from jqmix.runs import checkpoint
from jqmix.runs.files import warn
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


@dataclass(frozen=True)
class JointValues:
    """Of every member (axis P), in one situation: utilities, joint values of all joint actions u, and what follows.

    ``tables``: Q_tot, and Q̂* where the run learned one; an axis of A actions for each of the N agents.
    """

    mixer: str
    situation: str
    seeds: list[int]
    payoff: Float[np.ndarray, "*joint"]
    utilities: Float[np.ndarray, "P N A"]
    tables: dict[str, Float[np.ndarray, "P *joint"]]

    @property
    def greedy(self) -> Int[np.ndarray, "P N"]:
        """The agents' own greedy actions."""
        return self.utilities.argmax(-1)

    @property
    def best(self) -> Int[np.ndarray, "P N"]:
        """The joint action of the greatest Q_tot."""
        q_tot = self.tables["Q_tot"]
        flat = q_tot.reshape(len(q_tot), -1).argmax(-1)
        return np.stack(np.unravel_index(flat, self.payoff.shape), axis=-1)

    @property
    def igm(self) -> Bool[np.ndarray, " P"]:
        """Whether some joint action of the greatest Q_tot is the agents' own: equal values are no contradiction."""
        q_tot = self.tables["Q_tot"]
        at_greedy = np.array([table[tuple(u)] for table, u in zip(q_tot, self.greedy, strict=True)])
        return at_greedy >= q_tot.reshape(len(q_tot), -1).max(-1)

    def rows(self) -> list[dict[str, Any]]:
        """One member each, as plain numbers: for JSON."""
        return [
            {
                "member": p,
                "seed": seed,
                "mixer": self.mixer,
                "situation": self.situation,
                "payoff": self.payoff.tolist(),
                "utilities": self.utilities[p].tolist(),
                **{name: table[p].tolist() for name, table in self.tables.items()},
                "greedy": self.greedy[p].tolist(),
                "argmax_q_tot": self.best[p].tolist(),
                "igm": bool(self.igm[p]),
                "greedy_payoff": float(self.payoff[tuple(self.greedy[p])]),
                "best_payoff": float(self.payoff.max()),
            }
            for p, seed in enumerate(self.seeds)
        ]

    def where(self, p: int) -> str:
        return f"seed {self.seeds[p]}" + (f", {self.situation}" if self.situation else "")

    def text(self) -> str:
        """Every member's tables side by side; rows are the actions of all agents but the last, columns the last's."""
        return "\n\n".join(self._member_text(p) for p in range(len(self.seeds)))

    def _member_text(self, p: int) -> str:
        greedy, best = self.greedy[p], self.best[p]
        lines = [
            f"{self.mixer}, {self.where(p)}: the agents play {_name(greedy)}, "
            f"worth {self.payoff[tuple(greedy)]:g} of {self.payoff.max():g}; "
            f"Q_tot is greatest at {_name(best)}: IGM {'holds' if self.igm[p] else 'is violated'}"
        ]
        lines += [f"  Q_{i + 1}  " + _numbers(q) for i, q in enumerate(self.utilities[p])]
        panels = {"payoff": self.payoff, **{name: table[p] for name, table in self.tables.items()}}
        lines += [_side_by_side({name: _rows_and_columns(table) for name, table in panels.items()})]
        return "\n".join(lines)


@settled()
def joint_values(run_dir: str | Path, trust: bool = False) -> list[JointValues]:
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

    def of(situation: Situation) -> JointValues:
        window = every_joint_action(game, situation.history)
        read = jax.vmap(lambda params, moments: _tables(learner, window, params, moments))
        utilities, flat = jax.device_get(read(learned.params, moments))
        tables = {name: table.reshape(-1, *situation.payoff.shape) for name, table in flat.items()}
        return JointValues(cfg.algo.mixer, situation.name, seeds, situation.payoff, utilities, tables)

    return [of(situation) for situation in situations(game, cfg.algo.gamma)]


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


def _tables(learner: Learner, window: Window, params: Any, moments: normalise.Moments) -> Any:
    """One member's utilities [N, A] and joint values [A^N], in the window's last slot."""
    state = learner.mixer_state(moments, window.state)
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


# Text and picture


def _name(action: Any) -> str:
    return "(" + ", ".join(str(int(a)) for a in action) + ")"


def _numbers(row: Any) -> str:
    return " ".join(f"{x:7.2f}" for x in row)


def _rows_and_columns(table: np.ndarray) -> np.ndarray:
    """[A, …, A] as [A^(N−1), A]."""
    return table.reshape(-1, table.shape[-1])


def _side_by_side(panels: dict[str, np.ndarray]) -> str:
    width = 8 * next(iter(panels.values())).shape[1] + 2
    lines = ["  " + "".join(name.ljust(width) for name in panels)]
    lines += ["  " + "".join(_numbers(row).ljust(width) for row in rows) for rows in zip(*panels.values(), strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def draw(situations: Sequence[JointValues], path: str | Path) -> Path:
    """The tables as a picture, a line of them per member and situation. Raises ``ConfigError`` if it cannot be
    written."""
    from matplotlib.figure import Figure

    titles = ["payoff", *situations[0].tables]
    lines = [(values, p) for p in range(len(situations[0].seeds)) for values in situations]
    height, width = _rows_and_columns(situations[0].payoff).shape
    figure = Figure(
        figsize=(0.8 * (width + 1.4) * len(titles), (0.55 * height + 1.1) * len(lines)), layout="constrained"
    )
    limit = max(float(np.abs(values.payoff).max()) for values in situations) or 1.0
    for (values, p), axes in zip(lines, figure.subplots(len(lines), len(titles), squeeze=False), strict=True):
        for ax, title in zip(axes, titles, strict=True):
            table = values.payoff if title == "payoff" else values.tables[title][p]
            _panel(ax, values, p, title, table, limit)
    path = Path(path)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out: {path} cannot be written: {error}") from None
    return path


def _panel(ax: Any, values: JointValues, p: int, title: str, table: np.ndarray, limit: float) -> None:
    """One table; the box is what the agents play. Learned tables name each action with its utility."""
    from matplotlib.patches import Rectangle

    shown = _rows_and_columns(table)
    ax.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), x in np.ndenumerate(shown):
        # Dark cells take white figures.
        ax.text(column, row, f"{x:.2f}", ha="center", va="center", color="white" if abs(x) > 0.6 * limit else "black")
    greedy = values.greedy[p]
    row = int(np.ravel_multi_index(tuple(greedy[:-1]), table.shape[:-1])) if len(greedy) > 1 else 0
    ax.add_patch(Rectangle((greedy[-1] - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=3))
    columns = [str(a) for a in range(shown.shape[1])]
    rows = [" ".join(map(str, u)) for u in np.ndindex(*table.shape[:-1])]
    if title == "Q_tot":
        columns = [f"{a}\n{q:.2f}" for a, q in enumerate(values.utilities[p, -1])]
        if len(greedy) == 2:
            rows = [f"{a}  {q:.2f}" for a, q in enumerate(values.utilities[p, 0])]
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    name = {"payoff": f"{values.where(p)}: payoff", "Q_tot": f"{values.mixer}: $Q_{{tot}}$"}
    ax.set_title(name.get(title, title.replace("Q̂*", "$\\hat{Q}^*$")))
