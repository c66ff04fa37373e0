"""What a run learned about a matrix game: the agents' utilities and the joint values, next to the true payoffs.

IGM (individual–global–max) holds where the joint action with the greatest Q_tot is the tuple of the agents' own
greedy actions; that it is also the one that pays most is a further matter. Both are shown.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jqmix.config import Config, ConfigError
from jqmix.envs.games import MatrixGame
from jqmix.learning import normalise
from jqmix.learning.learner import Learner, make_learner
from jqmix.runs import checkpoint
from jqmix.runs.policy import load_run_config
from jqmix.types import Window

GAME = "matrix_game"


@dataclass(frozen=True)
class JointValues:
    """Of every member (axis P): utilities, joint values of all joint actions u, and what follows.

    ``tables``: Q_tot, and Q̂* where the run learned one; an axis of A actions for each of the N agents.
    """

    mixer: str
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

    def text(self) -> str:
        """Every member's tables side by side; rows are the actions of all agents but the last, columns the last's."""
        return "\n\n".join(self._member_text(p) for p in range(len(self.seeds)))

    def _member_text(self, p: int) -> str:
        greedy, best = self.greedy[p], self.best[p]
        lines = [
            f"{self.mixer}, seed {self.seeds[p]}: the agents play {_name(greedy)}, "
            f"worth {self.payoff[tuple(greedy)]:g} of {self.payoff.max():g}; "
            f"Q_tot is greatest at {_name(best)}: IGM {'holds' if self.igm[p] else 'is violated'}"
        ]
        lines += [f"  Q_{i + 1}  " + _numbers(q) for i, q in enumerate(self.utilities[p])]
        panels = {"payoff": self.payoff, **{name: table[p] for name, table in self.tables.items()}}
        lines += [_side_by_side({name: _rows_and_columns(table) for name, table in panels.items()})]
        return "\n".join(lines)


def joint_values(run_dir: str | Path) -> JointValues:
    """The joint values that a run on a matrix game learned, from its newest checkpoint.

    Raises ``ConfigError`` if the run is of something else, or of a mixer that has no joint value.
    """
    run_dir = Path(run_dir)
    cfg = load_run_config(run_dir)
    if cfg.env.name != GAME or cfg.env.factory is not None:
        raise ConfigError(f"run_dir: joint values are shown for {GAME} alone; {run_dir} is of {_env_name(cfg)}")
    game = MatrixGame(**cfg.env.kwargs)
    learner = make_learner(cfg, game.spec)
    if learner.mixer.per_agent:
        raise ConfigError(f"run_dir: {run_dir} has no joint value; {cfg.algo.mixer} mixes nothing")
    members = checkpoint.load_members(run_dir, cfg)
    moments = normalise.Moments(**members["moments"])
    utilities, tables = jax.device_get(
        jax.vmap(lambda params, moments: _tables(learner, game, params, moments))(members["learner"]["params"], moments)
    )
    seeds = list(range(cfg.seed, cfg.seed + cfg.seeds))
    return JointValues(cfg.algo.mixer, seeds, np.asarray(game.payoff), utilities, tables)


def _env_name(cfg: Config) -> str:
    return cfg.env.factory or cfg.env.name


def _tables(learner: Learner, game: MatrixGame, params: Any, moments: normalise.Moments) -> Any:
    """One member's utilities [N, A] and tables [A, …, A]: every joint action is a rollout of a window of one slot."""
    window = _every_joint_action(game)
    state = learner.mixer_state(moments, window.state)
    teams = {"Q_tot": (learner.mixer, params)}
    if learner.mixer.critic is not None:
        teams["Q̂*"] = (learner.mixer.critic.mixer, params["critic"])
    tables = {name: learner.joint_value(mixer, team, window, state) for name, (mixer, team) in teams.items()}
    utilities = learner.values(params, window).q[0, 0]
    return utilities, {name: table.reshape(game.payoff.shape) for name, table in tables.items()}


def _every_joint_action(game: MatrixGame) -> Window:
    n, a = game.spec.n_agents, game.spec.n_actions
    actions = np.array(list(itertools.product(range(a), repeat=n)), np.int32)
    _, seen = game.reset(jax.random.key(0))
    b = len(actions)
    obs, state, avail = (jnp.broadcast_to(x, (1, b, *x.shape)) for x in (seen.obs, seen.state, seen.avail))
    no = jnp.zeros((1, b))
    return Window(obs, state, avail, jnp.asarray(actions)[None], no, no, no == 0, no == 1)


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


def draw(values: JointValues, path: str | Path) -> Path:
    """The tables as a picture, one line of them per member. Raises ``ConfigError`` if it cannot be written."""
    from matplotlib.figure import Figure

    titles = ["payoff", *values.tables]
    members = len(values.seeds)
    height, width = _rows_and_columns(values.payoff).shape
    figure = Figure(figsize=(0.8 * (width + 1.4) * len(titles), (0.55 * height + 1.1) * members), layout="constrained")
    axes = figure.subplots(members, len(titles), squeeze=False)
    limit = float(np.abs(values.payoff).max()) or 1.0
    for p, line in enumerate(axes):
        for ax, title in zip(line, titles, strict=True):
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
    name = {"payoff": f"seed {values.seeds[p]}: payoff", "Q_tot": f"{values.mixer}: $Q_{{tot}}$"}
    ax.set_title(name.get(title, title.replace("Q̂*", "$\\hat{Q}^*$")))
