"""Colours, fonts and a canvas in logical pixels that smooths edges: it is drawn at twice its size, and reduced."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Number = int | float | np.number[Any]
Colour = tuple[int, int, int]
Point = Sequence[Number] | np.ndarray  # (x, y)


class Area(NamedTuple):
    """A part of a canvas, in its pixels."""

    x: Number
    y: Number
    width: Number
    height: Number


SCALE = 2  # drawn at so many times the size


def rgb(code: str) -> Colour:
    """``#rrggbb`` as three numbers from 0 to 255."""
    return (int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16))


def blend(colour: Colour, other: Colour, share: Number) -> Colour:
    """``colour`` with this ``share`` of ``other`` in it."""
    r, g, b = (round(x + (y - x) * share) for x, y in zip(colour, other, strict=True))
    return (r, g, b)


WHITE = rgb("#ffffff")
PAPER = rgb("#f5f7fa")  # behind a scene
LINE = rgb("#e1e6ec")
FAINT = rgb("#b9c2cd")
MUTED = rgb("#6b7785")
INK = rgb("#1f2a37")
# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN = rgb("#0072b2"), rgb("#d55e00"), rgb("#009e73")
PINK, SKY, AMBER = rgb("#cc79a7"), rgb("#56b4e9"), rgb("#e69f00")
THEME = (WHITE, PAPER, LINE, FAINT, MUTED, INK, BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
AGENTS = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, rgb("#7a5195"), rgb("#8c6d31"))


def agent_colour(agent: int) -> Colour:
    """The colour of an agent's number and lines; of many agents some share one."""
    return AGENTS[agent % len(AGENTS)]


@lru_cache
def _font(size: Number, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, round(size * SCALE))


class Canvas:
    """A picture of ``width`` × ``height`` pixels to draw on; the origin is at the top left."""

    def __init__(self, width: Number, height: Number, background: Colour = WHITE):
        self.width, self.height = width, height
        self._image = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), background)
        self._draw = ImageDraw.Draw(self._image)

    def image(self) -> Image.Image:
        """What was drawn, at its own size."""
        return self._image.reduce(SCALE)

    def put(self, other: "Canvas", x: Number, y: Number) -> None:
        """Another canvas with its top left corner at (x, y)."""
        self._image.paste(other._image, (round(x * SCALE), round(y * SCALE)))

    def picture(self, pixels: UInt8[np.ndarray, "H W 3"], x: Number, y: Number, width: Number, height: Number) -> None:
        """Pixels, stretched to ``width`` × ``height``; small ones keep their edges."""
        size = round(width * SCALE), round(height * SCALE)
        enlarged = pixels.shape[1] < size[0]
        how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        self._image.paste(Image.fromarray(pixels).resize(size, how), (round(x * SCALE), round(y * SCALE)))

    def line(self, points: Sequence[Point], colour: Colour, width: Number = 1.0) -> None:
        self._draw.line(_scaled(points), colour, max(1, round(width * SCALE)), joint="curve")

    def polygon(
        self, points: Sequence[Point], fill: Colour, outline: Colour | None = None, width: Number = 1.0
    ) -> None:
        self._draw.polygon(_scaled(points), fill, outline, max(1, round(width * SCALE)))

    def circle(
        self, at: Point, r: Number, fill: Colour | None, outline: Colour | None = None, width: Number = 1.0
    ) -> None:
        self._draw.ellipse(_box(at, r), fill, outline, max(1, round(width * SCALE)))

    def arc(self, at: Point, r: Number, share: Number, colour: Colour, width: Number = 1.0) -> None:
        """A ``share`` of a circle, clockwise from the top."""
        self._draw.arc(_box(at, r), -90, -90 + 360 * share, colour, max(1, round(width * SCALE)))

    def rect(
        self,
        x: Number,
        y: Number,
        width: Number,
        height: Number,
        fill: Colour | None,
        outline: Colour | None = None,
        line: Number = 1.0,
        radius: Number = 0.0,
    ) -> None:
        box = tuple(round(v * SCALE) for v in (x, y, x + width, y + height))
        box = (*box[:2], max(box[0], box[2] - 1), max(box[1], box[3] - 1))  # Pillow's corners are both inside
        self._draw.rounded_rectangle(box, radius * SCALE, fill, outline, max(1, round(line * SCALE)))

    def text(
        self,
        at: Point,
        text: str,
        size: Number = 11.0,
        colour: Colour = INK,
        anchor: str = "lm",
        bold: bool = False,
    ) -> None:
        """``anchor``: l, m, r and a, m, b (left … right, ascender … bottom), as Pillow spells it."""
        self._draw.text((float(at[0]) * SCALE, float(at[1]) * SCALE), text, colour, _font(size, bold), anchor=anchor)


def _box(at: Point, r: Number) -> tuple[float, float, float, float]:
    x, y, r = float(at[0]), float(at[1]), float(r)
    return ((x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE)


def _scaled(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(float(x) * SCALE, float(y) * SCALE) for x, y in points]


def number(value: Number, digits: int) -> str:
    """A number as text, with a minus sign that is as wide as a plus."""
    return f"{value:.{digits}g}".replace("-", "−")


def text_width(text: str, size: Number = 11.0, bold: bool = False) -> float:
    return _font(size, bold).getlength(text) / SCALE
