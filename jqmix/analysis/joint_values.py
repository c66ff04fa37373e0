"""Learned joint values next to the true ones: tables, text and a picture. Imports no JAX.

IGM (individual–global–max) holds where the joint action with the greatest Q_tot is the tuple of the agents' own
greedy actions; that it is also the one that pays most is a further matter. Both are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jqmix.config import ConfigError


@dataclass(frozen=True)
class ValueTables:
    """What every member (axis P) learned in one situation of a game: utilities and the values of all joint actions.

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
        """A member's seed, and the situation where a game has several."""
        return f"seed {self.seeds[p]}" + (f", {self.situation}" if self.situation else "")

    def text(self) -> str:
        """Every member's tables side by side; rows are the actions of all agents but the last, columns the last's."""
        return "\n\n".join(self._member_text(p) for p in range(len(self.seeds)))

    def _member_text(self, p: int) -> str:
        greedy, best = self.greedy[p], self.best[p]
        lines = [
            f"{self.mixer}, {self.where(p)}: the agents play {_spell_action(greedy)}, "
            f"worth {self.payoff[tuple(greedy)]:g} of {self.payoff.max():g}; "
            f"Q_tot is greatest at {_spell_action(best)}: IGM {'holds' if self.igm[p] else 'is violated'}"
        ]
        lines += [f"  Q_{i + 1}  " + _numbers(q) for i, q in enumerate(self.utilities[p])]
        panels = {"payoff": self.payoff, **{name: table[p] for name, table in self.tables.items()}}
        lines += [_side_by_side({name: _rows_and_columns(table) for name, table in panels.items()})]
        return "\n".join(lines)


def _spell_action(action: Any) -> str:
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


def draw_value_tables(situations: Sequence[ValueTables], path: str | Path) -> Path:
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


def _panel(ax: Any, values: ValueTables, p: int, title: str, table: np.ndarray, limit: float) -> None:
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
