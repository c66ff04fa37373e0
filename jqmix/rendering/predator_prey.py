"""Predator–prey: a grid of agents and prey, who tries to catch, and what was caught."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jqmix.envs.predator_prey import CATCH
from jqmix.rendering.canvas import BLUE, FAINT, INK, LINE, ORANGE, PAPER, WHITE, Canvas, Number, Point, blend
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene


class PredatorPreyScene(Scene):
    """Agents are blue discs, with a ring while they try to catch, pale once they are frozen; prey are diamonds."""

    aspect, frames, pace = 0.8, 2, 5.0

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        super().__init__(env, episodes)
        self._size = env.size

    def actions(self) -> list[str]:
        return ["→", "↓", "←", "↑", "·", "×"]

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        episode, cell = self.episodes[index], (canvas.height - 12) / self._size
        s = episode.states
        left, after = (canvas.width - cell * self._size) / 2, min(step + 1, episode.length)
        self._grid(canvas, left, cell)

        def place(cells: Any) -> Any:
            at = cells[step] + phase * (cells[after] - cells[step]).astype(float)
            return np.stack([left + (at[:, 1] + 0.5) * cell, 6 + (at[:, 0] + 0.5) * cell], axis=-1)

        for j, at in enumerate(place(s.prey)):
            if s.alive[step, j]:
                caught = phase if not s.alive[after, j] else 0.0
                _diamond(canvas, at, 0.34 * cell, caught)
        catching = episode.action[min(step, episode.length - 1)] == CATCH
        for i, at in enumerate(place(s.agent)):
            frozen = s.frozen[step, i]
            canvas.circle(at, 0.36 * cell, blend(BLUE, PAPER, 0.75) if frozen else BLUE, WHITE, 1.0)
            if catching[i] and not frozen and step < episode.length:
                canvas.circle(at, 0.47 * cell, None, INK, 1.2)
            canvas.text(at, str(i + 1), min(0.38 * cell, 10.0), WHITE, "mm", bold=True)

    def _grid(self, canvas: Canvas, left: Number, cell: Number) -> None:
        length = cell * self._size
        for k in range(self._size + 1):
            colour = FAINT if k in (0, self._size) else LINE
            canvas.line([(left + k * cell, 6), (left + k * cell, 6 + length)], colour, 0.5)
            canvas.line([(left, 6 + k * cell), (left + length, 6 + k * cell)], colour, 0.5)


def _diamond(canvas: Canvas, at: Point, r: Number, caught: Number) -> None:
    """A prey; where it is being caught, it fades within a ring that grows."""
    (x, y), colour = at, blend(ORANGE, PAPER, 0.8 * caught)
    canvas.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], colour, WHITE, 1.0)
    if caught:
        canvas.circle((x, y), r * (1 + caught), None, ORANGE, 1.5)
