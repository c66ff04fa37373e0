"""Matrix games and the two-step game as tables of payoffs, the joint action that was played marked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jqmix.envs.games import TwoStepGame
from jqmix.rendering.canvas import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    WHITE,
    Area,
    Canvas,
    Colour,
    Number,
    agent_colour,
    blend,
    number,
)
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene

LARGEST = 64.0  # pixels of a cell


class MatrixGameScene(Scene):
    """The last agent chooses the column, the others together the row."""

    aspect, pace = 0.6, 1.0

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        super().__init__(env, episodes)
        self._payoff = np.asarray(env.payoff)

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        joint = tuple(self.episodes[index].action[0].tolist()) if step else None
        _table(canvas, Area(0, 0, canvas.width, canvas.height), self._payoff, joint, "")


class TwoStepScene(Scene):
    """Agent 1's first action chooses one of two games, which is then played."""

    aspect, pace = 0.5, 1.0

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        action = self.episodes[index].action.tolist()
        chosen = action[0][0] if step else None
        half, top = canvas.width / 2, 30.0
        told = "step 1: agent 1 chooses the game" if chosen is None else f"agent 1 chose game {'AB'[chosen]}"
        canvas.text((half, 18), told, 11, INK, "mm")
        for game in range(2):
            joint = tuple(action[1]) if step == 2 and chosen == game else None
            area = Area(game * half, top, half, canvas.height - top)
            _table(canvas, area, TwoStepGame.payoff[game], joint, f"game {'AB'[game]}", chosen in (None, game))


def fits(payoff: Any) -> bool:
    """Whether a table is small enough to be read."""
    shape = np.shape(payoff)
    return shape[-1] <= 9 and np.size(payoff) // shape[-1] <= 9


def _table(
    canvas: Canvas,
    area: Area,
    payoff: Float[np.ndarray, "*joint"],
    joint: tuple[int, ...] | None,
    title: str,
    lively: bool = True,
) -> None:
    """Payoffs in their colours within an area; pale where it is not ``lively``."""
    x, y, width, height = area
    rows = list(np.ndindex(*payoff.shape[:-1]))
    columns, label = payoff.shape[-1], 12.0 + 11.0 * (payoff.ndim - 1)
    cell = min((width - label - 24) / columns, (height - 52) / len(rows), LARGEST)
    left, top = x + (width + label - cell * columns) / 2, y + (height + 30 - cell * len(rows)) / 2
    last = agent_colour(payoff.ndim - 1)
    canvas.text((left + cell * columns / 2, top - 26), title, 11, INK if lively else MUTED, "mm", bold=True)
    for j in range(columns):
        canvas.text((left + (j + 0.5) * cell, top - 10), str(j), 10, last, "mm", bold=True)
    for i, row in enumerate(rows):
        for k, action in enumerate(row):
            at = left - 10 - 11.0 * (len(row) - 1 - k)
            canvas.text((at, top + (i + 0.5) * cell), str(action), 10, agent_colour(k), "mm", bold=True)
        for j in range(columns):
            value = float(payoff[(*row, j)])
            colour = _value_colour(value, payoff) if lively else PAPER
            canvas.rect(left + j * cell, top + i * cell, cell - 2, cell - 2, colour, radius=3)
            ink = INK if lively else MUTED
            canvas.text((left + (j + 0.5) * cell - 1, top + (i + 0.5) * cell - 1), number(value, 4), 12, ink, "mm")
    if joint is not None:
        i, j = rows.index(joint[:-1]), joint[-1]
        canvas.rect(left + j * cell - 2, top + i * cell - 2, cell + 2, cell + 2, None, INK, 2.5, radius=5)


def _value_colour(value: Number, payoff: Float[np.ndarray, "*joint"]) -> Colour:
    """Blue above nothing, orange below; the stronger, the greater."""
    share = abs(value) / max(float(np.abs(payoff).max()), 1e-9)
    return blend(WHITE, BLUE if value >= 0 else ORANGE, 0.08 + 0.5 * share)
