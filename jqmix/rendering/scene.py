"""What a scene is: how a family of environments is drawn, one state after another."""

from collections.abc import Sequence
from typing import Any

from jqmix.rendering.canvas import Canvas, Number
from jqmix.rendering.episode import Episode
from jqmix.types import EnvSpec


class Scene:
    """Draws the states of episodes of one environment. Made once for a film, for all of its ``episodes``.

    ``aspect``: height over width. ``frames``: so many show one environment step; more than one where movement is drawn
    smoothly. ``pace``: environment steps per second.
    """

    aspect: float = 0.7
    frames: int = 1
    pace: float = 4.0

    def __init__(self, env: Any, episodes: Sequence[Episode]):
        self.spec: EnvSpec = env.spec
        self.episodes = episodes

    def draw(self, canvas: Canvas, index: int, step: int, phase: Number) -> None:
        """An episode's state before ``step`` (from 0 to T), moved on by ``phase`` (below 1) of the way to the next."""
        raise NotImplementedError

    def actions(self) -> list[str]:
        """What stands above an agent's actions: one or two characters each."""
        return [str(a) for a in range(self.spec.n_actions)]
