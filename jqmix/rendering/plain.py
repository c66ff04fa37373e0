"""Any other environment: the return, the reward of every step, and what each agent does."""

import numpy as np

from jqmix.rendering.canvas import BLUE, FAINT, INK, MUTED, ORANGE, Canvas, Number, agent_colour, number
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene

ROWS = 10  # agents that are listed


class PlainScene(Scene):
    """Numbers in place of a picture."""

    aspect = 0.6

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        episode = self.episodes[index]
        canvas.text((16, 20), "return", 10, MUTED)
        canvas.text((16, 44), number(episode.score_at(step), 4), 22, INK, bold=True)
        self._rewards(canvas, episode, step)
        now = min(step, episode.length - 1)
        canvas.text((canvas.width * 0.58, 20), "action", 10, MUTED)
        pitch = min(20.0, (canvas.height - 40) / min(self.spec.n_agents, ROWS))
        for i in range(min(self.spec.n_agents, ROWS)):
            y = 40 + i * pitch
            canvas.text((canvas.width * 0.58, y), f"agent {i + 1}", 10, agent_colour(i), bold=True)
            canvas.text((canvas.width - 16, y), str(episode.action[now, i]), 11, INK, "rm")
        if self.spec.n_agents > ROWS:
            canvas.text((canvas.width * 0.58, 40 + ROWS * pitch - 8), "…", 10, MUTED)

    def _rewards(self, canvas: Canvas, episode: Episode, step: int) -> None:
        """A bar for the reward of each step so far."""
        reward = np.diff(episode.score, prepend=0.0)
        left, top, width, height = 16.0, 72.0, canvas.width * 0.48, canvas.height - 92
        canvas.text((left, top - 4), "reward", 10, MUTED)
        most = max(float(np.abs(reward).max()), 1e-9)
        zero = top + 8 + height / 2
        each = width / episode.length
        canvas.line([(left, zero), (left + width, zero)], FAINT, 0.8)
        for t in np.flatnonzero(reward[:step]).tolist():
            size = height / 2 * abs(reward[t]) / most
            y = zero - size if reward[t] > 0 else zero
            canvas.rect(left + t * each, y, max(each - 1, 1.0), size, BLUE if reward[t] > 0 else ORANGE)
