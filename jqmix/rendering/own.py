"""An environment's own picture: what its ``render(state)`` returns."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jqmix.envs.check import rendered
from jqmix.rendering.canvas import Canvas, Number
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene


class OwnScene(Scene):
    """As large as fits, in its own proportions. Raises ``EnvError``, one line, for a picture that is none."""

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        super().__init__(env, episodes)
        self._env = env
        height, width = self._picture(episodes[0], 0).shape[:2]
        self.aspect = float(np.clip(height / width, 0.3, 1.2))

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        pixels = self._picture(self.episodes[index], step)
        scale = min(canvas.width / pixels.shape[1], canvas.height / pixels.shape[0])
        width, height = pixels.shape[1] * scale, pixels.shape[0] * scale
        canvas.picture(pixels, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height)

    def _picture(self, episode: Episode, step: int) -> Any:
        return rendered(self._env, jax.tree.map(lambda x: jnp.asarray(x[step]), episode.states))
