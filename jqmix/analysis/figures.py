"""Figures of grouped runs: a grid of panels with learning curves, or with final results as points and intervals.

Drawn without pyplot: no display is needed, and figures of the caller's are left alone. Sizes are in inches, and type is
of a size for print: 8 points in a figure as wide as a column.
"""

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from jqmix.analysis.statistics import LEVEL, Estimate
from jqmix.config import ConfigError
from jqmix.inputs import one_line, quoted, shorten

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
NEUTRAL = "#555555"
SCORE: dict[str, Any] = {"linestyle": "", "marker": "|", "markersize": 7, "alpha": 0.5}
IQM: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
INTERVAL = 2.2
LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 1.8, "columnspacing": 1.2, "borderaxespad": 0.2}
LOOK: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.fontsize": 8,
    "legend.title_fontsize": 7.5,
    "savefig.dpi": 200,
    # Text stays text: fonts are embedded whole in a PDF, and named in an SVG.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
FORMATS = ("png", "svg", "pdf")
OVER = ("steps", "seconds")
INTERVAL_NAME = f"{100 * LEVEL:g} % CI"
CURVES_SHOW = f"IQM over seeds · shaded: {INTERVAL_NAME} · thin: single seeds"
OUTSIDE: dict[str, Any] = {"loc": "outside lower center"}
WIDTHS = {"column": 3.3, "wide": 6.9}  # of a journal's column and of its page
ALONE = 4.8  # a panel's width where no size is named and it is the only one
LEAST, MOST = 1.0, 40.0  # of a width or a height
NARROWEST = {"curves": 2.1, "points": 3.0}  # of a panel: labels of points stand beside their axes
PER_INCH = 15  # characters of a label
SAMPLE = 6  # characters that the sample of a line beside a label takes

# The unit of an axis by the least that its end is, and what a tick or the axis says of it.
STEP_UNITS = ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, ""))
TIME_UNITS = ((3 * 3600, 3600, "h"), (300, 60, "min"), (0, 1, "s"))


class Size(NamedTuple):
    """Of a figure; None is as wide, or as high, as suits what it shows."""

    width: float | None = None
    height: float | None = None


@dataclass(frozen=True)
class Drawing:
    """How figures are drawn: how large, as which kinds of files, and curves over what."""

    size: Size = Size()
    formats: tuple[str, ...] = ("png",)
    over: Literal["steps", "seconds"] = "steps"


class LearningCurve(NamedTuple):
    """A group's learning curve: its name in the legend, its estimate [K] at so many environment steps or seconds, and
    its members' own curves."""

    label: str
    x: Float[np.ndarray, " K"]
    estimate: Estimate
    members: Float[np.ndarray, "n K"] | None = None


class Point(NamedTuple):
    """A group's final result: its estimate [], its members' scores, and its name beside the axis."""

    label: str
    estimate: Estimate
    scores: Float[np.ndarray, " n"]


Mark = TypeVar("Mark", LearningCurve, Point)


@dataclass(frozen=True)
class Panel(Generic[Mark]):
    """One pair of axes. ``limits`` are the metric's own, where it has any (a win rate has); ``seeds`` says how many."""

    title: str
    metric: str
    marks: Sequence[Mark]
    limits: tuple[float, float] | None = None
    seeds: str = ""


# What is asked for


def parse_drawing(size: str | None = None, formats: str = "png", over: str = "steps") -> Drawing:
    """How figures are to be drawn, from text: ``size`` is ``column``, ``wide`` or ``WIDTHxHEIGHT`` in inches,
    ``formats`` are kinds of files with commas between them. Raises ``ConfigError``."""
    kinds = tuple(dict.fromkeys(kind.strip() for kind in formats.split(",")))
    for kind in kinds:
        if kind not in FORMATS:
            raise ConfigError(
                f"format: {quoted(kind)} is not allowed; it takes {', '.join(FORMATS)}, or several of them"
            )
    if over != "steps" and over != "seconds":
        raise ConfigError(f"over: {quoted(over)} is not allowed; it takes one of {', '.join(OVER)}")
    return Drawing(_parse_size(size), kinds, over)


def _parse_size(text: str | None) -> Size:
    if text is None:
        return Size()
    if text in WIDTHS:
        return Size(WIDTHS[text])
    sides = re.fullmatch(r"([0-9.]{1,9})x([0-9.]{1,9})", text)
    with contextlib.suppress(ValueError):  # 1.2.3
        if sides and all(LEAST <= float(side) <= MOST for side in sides.groups()):
            return Size(*map(float, sides.groups()))
    raise ConfigError(
        f"size: {quoted(text)} is not allowed; it takes one of {', '.join(WIDTHS)}, or WIDTHxHEIGHT in inches "
        f"({LEAST:g} to {MOST:g} each), as 6x4"
    )


# Figures


def draw_curves(
    panels: Sequence[Panel[LearningCurve]], path: Path, drawing: Drawing | None = None, shared_labels: bool = True
) -> None:
    """Learning curves over their shaded intervals and their members' own; the kind of file is ``path``'s ending.

    A label has the same colour in every panel, and one legend serves them all; unless labels are not shared: then each
    panel has a legend of its own, as where 64 is a replay's size in one and a width in another.
    """
    drawing = drawing or Drawing()
    shared = list(dict.fromkeys(line.label for panel in panels for line in panel.marks)) if shared_labels else []
    grid = _grid(len(panels), drawing.size, NARROWEST["curves"])
    legend = _legend(shared, grid.width)
    own = [_legend([] if shared else [line.label for line in panel.marks], grid.panel) for panel in panels]
    height = 0.62 * grid.panel + 0.3 + max(entry.height for entry in own)
    with _figure(grid, path, drawing.size, height, below=0.3 + legend.height) as (figure, axes):
        for ax, panel, entries in zip(axes, panels, own, strict=True):
            _draw_lines(ax, panel, shared or [line.label for line in panel.marks], drawing.over)
            _fit(ax, panel, grid)
            if entries.labels:
                # Below what the axis says, however high the axes are.
                down = ax.transAxes + ScaledTranslation(0, -0.42, figure.dpi_scale_trans)
                place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": down}
                ax.legend(handles=_samples(entries), ncols=entries.columns, **place, **LEGEND)
        figure.legend(handles=_samples(legend), ncols=legend.columns, title=CURVES_SHOW, **OUTSIDE, **LEGEND)


def _draw_lines(ax: Axes, panel: Panel[LearningCurve], labels: Sequence[str], over: str) -> None:
    """A panel's curves, in the colours that labels have by their place, over their intervals, over single seeds."""
    last = max((float(line.x[-1]) for line in panel.marks if len(line.x)), default=0.0)
    divisor, unit = next((divisor, unit) for least, divisor, unit in TIME_UNITS if last >= least)
    scale = divisor if over == "seconds" else 1
    members = sum(len(line.members) for line in panel.marks if line.members is not None)
    for line in panel.marks:
        style, x = _style(labels.index(line.label)), line.x / scale
        marker = "o" if len(x) == 1 else ""  # a line through one point is not seen
        ax.plot(x, line.estimate.iqm, marker=marker, zorder=3, **style)
        ax.fill_between(x, *line.estimate[1:], color=style["color"], alpha=0.18, linewidth=0, zorder=2)
        if line.members is not None and len(line.members) > 1:
            paths = [np.column_stack([x, row]) for row in line.members]
            faint = {"alpha": min(max(8 / members, 0.08), 0.4), "linewidths": 0.5, "zorder": 1.5}
            ax.add_collection(LineCollection(paths, colors=style["color"], **faint))
    ax.set_xlim(left=0)
    if over == "seconds":
        ax.set_xlabel(f"time ({unit})")
    else:
        ax.set_xlabel("environment steps")
        ax.xaxis.set_major_formatter(FuncFormatter(_spell_steps(last)))


def _spell_steps(last: float) -> Callable[[float, int], str]:
    """Ticks of an axis that ends at ``last``, all in one unit: 0, 0.5 M, 1 M."""
    divisor, unit = next(((divisor, unit) for divisor, unit in STEP_UNITS if last >= divisor), (1, ""))
    return lambda x, _: f"{x / divisor:g}{unit}" if x else "0"


def draw_points(panels: Sequence[Panel[Point]], path: Path, drawing: Drawing | None = None) -> None:
    """Final results with their intervals, a row per group, over their members' scores; the kind of file is ``path``'s
    ending."""
    drawing = drawing or Drawing()
    rows = max(len(panel.marks) for panel in panels)
    grid = _grid(len(panels), drawing.size, NARROWEST["points"])
    with _figure(grid, path, drawing.size, height=0.75 + 0.2 * rows, below=0.3) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=True):
            for row, point in enumerate(panel.marks):
                color, (iqm, low, high) = COLOURS[row % len(COLOURS)], point.estimate
                ax.plot(point.scores, [row] * len(point.scores), color=color, **SCORE)
                ax.hlines(row, low, high, color=color, linewidth=INTERVAL)
                ax.plot(iqm, row, color=color, **IQM)
            ax.set(xlabel=panel.metric, ylim=(len(panel.marks) - 0.5, -0.5))
            ax.set_yticks(range(len(panel.marks)), [_shown(point.label) for point in panel.marks])
            _fit(ax, panel, grid)
            ax.grid(axis="y", visible=False)
        handles = [
            Line2D([], [], color=NEUTRAL, label="IQM", **IQM),
            Line2D([], [], color=NEUTRAL, label=INTERVAL_NAME, linewidth=INTERVAL),
            Line2D([], [], color=NEUTRAL, label="one seed", **SCORE),
        ]
        figure.legend(handles=handles, ncols=3, **OUTSIDE, **LEGEND)


# What figures are made of


class _Legend(NamedTuple):
    """Labels as they stand in a legend, each with the place of its colour, in so many columns."""

    labels: list[str]
    columns: int
    height: float


def _legend(labels: Sequence[str], width: float) -> _Legend:
    """As many columns as fit into a width; labels that are longer than it go on in another line."""
    room = int(PER_INCH * width)
    texts = [fill(_shown(label), max(room - SAMPLE, 10)) for label in labels]
    longest = max((len(line) for text in texts for line in text.splitlines()), default=0)
    rows = math.ceil(len(texts) / max(room // (longest + SAMPLE), 1))
    columns = math.ceil(len(texts) / max(rows, 1)) or 1
    lines = sum(text.count("\n") + 1 for text in texts)
    return _Legend(texts, columns, 0.16 * math.ceil(lines / columns))


def _samples(legend: _Legend) -> list[Line2D]:
    return [Line2D([], [], label=label, **_style(i)) for i, label in enumerate(legend.labels)]


def _shown(text: str) -> str:
    """A label as it is drawn: on one line, not too long, and no formula or hidden name of Matplotlib's."""
    text = shorten(one_line(text), 120).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _style(i: int) -> dict[str, Any]:
    """Neighbours differ in both colour and dashes, so that of two curves on one another each is seen."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.5}


def _fit(ax: Axes, panel: Panel[Any], grid: "_Grid") -> None:
    """What all panels have: a title, as many numbers on the horizontal axis as have room, and the metric's limits."""
    room = max(int(PER_INCH * grid.panel) - 8, 12)
    title = fill(_shown(panel.title), room)
    if panel.seeds:
        title += (" " if len(title.splitlines()[-1] + panel.seeds) < room else "\n") + f"({panel.seeds})"
    ax.set_title(title)
    ax.xaxis.set_major_locator(MaxNLocator(min(max(int(1.8 * grid.panel), 2), 6), steps=[1, 2, 5, 10]))
    metric_axis = "x" if panel.marks and isinstance(panel.marks[0], Point) else "y"
    if metric_axis == "y":
        ax.set_ylabel(panel.metric)
    if panel.limits:
        ax.set(**{f"{metric_axis}lim": _padded(panel.limits)})


def _padded(limits: tuple[float, float]) -> tuple[float, float]:
    """A little more than the limits, so that a curve that runs along one is seen whole."""
    pad = 0.03 * (limits[1] - limits[0])
    return limits[0] - pad, limits[1] + pad


class _Grid(NamedTuple):
    """So many panels in columns and rows, the width of all and of one."""

    panels: int
    columns: int
    rows: int
    width: float
    panel: float


def _grid(panels: int, size: Size, narrowest: float) -> _Grid:
    """Up to three panels side by side, more as a square, as far as none is too narrow."""
    width = size.width or (ALONE if panels == 1 else WIDTHS["wide"])
    columns = panels if panels <= 3 else math.ceil(math.sqrt(panels))
    columns = max(min(columns, int(width / narrowest)), 1)
    return _Grid(panels, columns, math.ceil(panels / columns), width, width / columns)


@contextlib.contextmanager
def _figure(grid: _Grid, path: Path, size: Size, height: float, below: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with its axes, each of that height, and a legend's height ``below`` them; written in the end."""
    with rc_context(LOOK):
        figure = Figure(figsize=(grid.width, size.height or height * grid.rows + below), layout="constrained")
        axes = list(figure.subplots(grid.rows, grid.columns, squeeze=False).flat)
        for spare in axes[grid.panels :]:
            spare.remove()
        yield figure, axes[: grid.panels]
        with warnings.catch_warnings():  # of characters that the font lacks, or of labels that leave axes little room
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(path)
