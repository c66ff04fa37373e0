"""The agents' values under a scene: all Q-values of this step; over time those of the actions taken, and Q_tot."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jqmix.rendering.canvas import (
    BLUE,
    FAINT,
    INK,
    LINE,
    MUTED,
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

LABELS = 14.0  # pixels for the names of agents and of actions
LEAST, MOST = 6.0, 20.0  # pixels of a cell's height; its width may be less
LOWEST = 100.0  # pixels of a strip, which is higher for many agents
SHADES = 8  # of a cell: few, so that files are small


def strip_height(n_agents: int, n_actions: int, width: Number) -> float:
    """Pixels that a strip of this width takes."""
    return max(LOWEST, LABELS + n_agents * _cell(n_agents, n_actions, width)[1] + 6)


def _cell(n_agents: int, n_actions: int, width: Number) -> tuple[float, float]:
    """A cell's width and height: all actions take less than half of the width, all agents the height if they can."""
    wide, high = (0.45 * width - 2 * LABELS) / n_actions, (LOWEST - LABELS - 6) / n_agents
    return min(wide, MOST), float(np.clip(high, LEAST, MOST))


def draw_strip(canvas: Canvas, episode: Episode, step: int, actions: Sequence[str], longest: int) -> None:
    """Fills the canvas. ``longest``: of the film's episodes, so that all have one axis of time."""
    n_agents, n_actions = episode.q.shape[1:]
    now = min(step, episode.length - 1)
    cell = _cell(n_agents, n_actions, canvas.width)
    _cells(canvas, episode, now, actions, cell)
    left = LABELS + n_actions * cell[0] + 2 * LABELS + 12
    width, height = canvas.width - left - 8, canvas.height - 8
    curves = [(episode.q_taken, "Q of each agent", agent_colour)]
    if episode.q_tot is not None:
        curves.insert(0, (episode.q_tot[:, None], "Q_tot", lambda agent: INK))
    for k, (values, title, colour) in enumerate(curves):
        area = Area(left, 2 + k * height / len(curves), width, height / len(curves) - 4)
        _chart(canvas, area, values, now, title, colour, longest)


def _cells(canvas: Canvas, episode: Episode, now: int, actions: Sequence[str], cell: tuple[float, float]) -> None:
    """A row for each agent: the darker, the better it takes an action to be; what it can't do is left out. The action
    taken is framed: palely, where there was no other."""
    q, avail, taken = episode.q[now], episode.avail[now], episode.action[now]
    low, high = _range(q, avail)
    shade = np.round(SHADES * np.clip((q - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)) / SHADES
    wide, high = cell
    gap = 1.0 if min(cell) > 6 else min(0.5, wide / 6)
    for a, name in enumerate(actions):
        if wide >= 8:
            canvas.text((2 * LABELS + (a + 0.5) * wide, LABELS / 2), name, 8, MUTED, "mm")
    for i in range(len(q)):
        y = LABELS + i * high
        if high >= 8:
            canvas.text((2 * LABELS - 5, y + high / 2), str(i + 1), 8, agent_colour(i), "rm", bold=True)
        for a in np.flatnonzero(avail[i]):
            colour = blend(blend(BLUE, WHITE, 0.88), BLUE, float(shade[i, a]))
            canvas.rect(2 * LABELS + a * wide, y, wide - gap, high - gap, colour)
        x, colour = 2 * LABELS + int(taken[i]) * wide, INK if np.sum(avail[i]) > 1 else FAINT
        canvas.rect(x - gap, y - gap, wide + gap, high + gap, None, colour, 1.5 * gap)


def _range(q: Float[np.ndarray, "N A"], avail: Bool[np.ndarray, "N A"]) -> tuple[Any, Any]:
    """The least and the greatest value [N, 1] of what an agent can do."""
    low = np.min(q, axis=-1, keepdims=True, where=avail, initial=np.inf)
    return low, np.max(q, axis=-1, keepdims=True, where=avail, initial=-np.inf)


def _chart(
    canvas: Canvas,
    area: Area,
    values: Float[np.ndarray, "T K"],
    now: int,
    title: str,
    colour: Callable[[int], Colour],
    longest: int,
) -> None:
    """Lines up to now, within the range of the whole episode."""
    low, high = float(values.min()), float(values.max())
    pad = 0.08 * (high - low) or 0.5
    top, bottom = area.y + 11, area.y + area.height - 3

    def place(t: int, value: Number) -> tuple[float, float]:
        share = (value - low + pad) / (high - low + 2 * pad)
        return area.x + area.width * t / max(longest - 1, 1), bottom - (bottom - top) * share

    canvas.text((area.x, area.y + 4), title, 8, MUTED)
    ends = number(low, 2), number(high, 2)
    canvas.text((area.x + area.width, area.y + 4), " … ".join(dict.fromkeys(ends)), 8, MUTED, "rm")
    canvas.line([(area.x, bottom), (area.x + area.width, bottom)], LINE, 0.8)
    x = place(now, low)[0]
    canvas.line([(x, top), (x, bottom)], LINE, 0.8)
    for k in range(values.shape[1]):
        points = [place(t, float(values[t, k])) for t in range(now + 1)]
        if len(points) > 1:
            canvas.line(points, colour(k), 1.5)
        canvas.circle(points[-1], 2.2, colour(k))
