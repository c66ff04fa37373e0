"""A film: several episodes side by side, each with its scene, its values and, at its end, its result."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from PIL import Image

from jqmix.rendering.canvas import (
    BLUE,
    INK,
    LINE,
    MUTED,
    ORANGE,
    PAPER,
    WHITE,
    Canvas,
    Colour,
    Number,
    blend,
    number,
    text_width,
)
from jqmix.rendering.episode import Episode
from jqmix.rendering.scene import Scene
from jqmix.rendering.values import draw_strip, strip_height

WIDTHS = {1: 520, 2: 400, 3: 300, 4: 240}  # pixels of an episode, by how many stand in a row
MOST_EPISODES = 16
SMOOTH = 300  # frames; of longer films a step takes fewer
MOST_FRAMES = 600  # a film of more leaves out steps
TITLE, HEADER, GAP = 28, 26, 10  # pixels


class PanelSizes(NamedTuple):
    """Pixels of an episode's picture, and of its scene and strip within."""

    width: int
    scene: int
    strip: int

    @property
    def height(self) -> int:
        return HEADER + self.scene + self.strip


class Film:
    """``len(film)`` frames, each of which can be drawn by itself."""

    def __init__(self, scene: Scene, episodes: Sequence[Episode], title: str):
        self.scene, self.episodes, self.title = scene, episodes, title
        self.columns = math.ceil(math.sqrt(len(episodes)))
        self.rows = math.ceil(len(episodes) / self.columns)
        width = WIDTHS[self.columns]
        strip = strip_height(scene.spec.n_agents, scene.spec.n_actions, width)
        self.sizes = PanelSizes(width, round(width * scene.aspect), math.ceil(strip))
        self.longest = max(e.length for e in episodes)
        self.frames = max(1, min(scene.frames, SMOOTH // self.longest))  # of a step
        self.stride = math.ceil(self.longest / MOST_FRAMES)  # steps from one frame to the next
        if self.stride > 1:
            self.title += f"  ·  a frame for {self.stride} steps"
        self._kept: dict[int, Image.Image] = {}  # of episodes that are over

    def __len__(self) -> int:
        return math.ceil(self.longest / self.stride) * self.frames + 1

    @property
    def fps(self) -> float:
        """Frames per second at the scene's pace."""
        return self.scene.pace * self.frames

    def images(self) -> Iterator[Image.Image]:
        """All frames, one after another."""
        return (self.image(k) for k in range(len(self)))

    def image(self, frame: int) -> Image.Image:
        """A frame; width and height are even, as video codecs want them."""
        image = self._page.copy()
        for index in range(len(self.episodes)):
            row, column = divmod(index, self.columns)
            at = GAP + column * (self.sizes.width + GAP), TITLE + row * (self.sizes.height + GAP)
            image.paste(self._panel(index, frame), at)
        return image

    @cached_property
    def _page(self) -> Image.Image:
        """What all frames have in common."""
        width = self.columns * self.sizes.width + (self.columns + 1) * GAP
        height = TITLE + self.rows * (self.sizes.height + GAP)
        canvas = Canvas(width + width % 2, height + height % 2)
        canvas.text((GAP + 2, TITLE / 2 + 2), self.title, 11, MUTED)
        return canvas.image()

    def _panel(self, index: int, frame: int) -> Image.Image:
        episode = self.episodes[index]
        step, part = divmod(frame, self.frames)
        step *= self.stride
        if step < episode.length:
            return self._drawn(index, step, part / self.frames)
        if index not in self._kept:
            self._kept[index] = self._drawn(index, episode.length, 0.0)
        return self._kept[index]

    def _drawn(self, index: int, step: int, phase: Number) -> Image.Image:
        episode, (width, height, strip) = self.episodes[index], self.sizes
        panel = Canvas(width, self.sizes.height)
        self._header(panel, index, step)
        scene = Canvas(width, height, PAPER)
        self.scene.draw(scene, index, step, phase)
        panel.put(scene, 0, HEADER)
        values = Canvas(width, strip)
        draw_strip(values, episode, step, self.scene.actions(), self.longest)
        panel.put(values, 0, HEADER + height)
        panel.rect(0, 0, width, self.sizes.height, None, LINE, 1.0, radius=5)
        return panel.image()

    def _header(self, panel: Canvas, index: int, step: int) -> None:
        episode, middle = self.episodes[index], HEADER / 2
        panel.text((10, middle), f"Episode {index + 1}", 11, INK, bold=True)
        x = 18 + text_width(f"Episode {index + 1}", 11, bold=True)
        panel.text((x, middle), f"step {step}", 10, MUTED)
        right = panel.width - 10
        if step == episode.length:
            right = _pill(panel, right, middle, *result(episode))
        panel.text((right, middle), f"return {number(episode.score_at(step), 3)}", 10, INK, "rm")


def result(episode: Episode) -> tuple[str, Colour]:
    """What an episode came to, and in which colour it is said."""
    if episode.won is None:
        return "ended", MUTED
    return ("won", BLUE) if episode.won else ("lost", ORANGE)


def _pill(panel: Canvas, right: Number, y: Number, text: str, colour: Colour) -> float:
    """A caption in a rounded box; returns where what is left of it may end."""
    width = text_width(text, 10, bold=True) + 14
    panel.rect(right - width, y - 8, width, 16, blend(colour, WHITE, 0.05), radius=8)
    panel.text((right - width / 2, y), text, 10, WHITE, "mm", bold=True)
    return right - width - 8
