"""Figures of grouped runs: a grid of panels with learning curves, or with final results as points and intervals.

Drawn without pyplot: no display is needed, and figures of the caller's are left alone.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Generic, NamedTuple, TypeVar

from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy import ndarray

from jqmix.analysis.statistics import Estimate
from jqmix.inputs import one_line, shorten

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
NEUTRAL = "#555555"
SCORE: dict[str, Any] = {"linestyle": "", "marker": "|", "markersize": 9, "alpha": 0.5}
IQM: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
INTERVAL = 2.5
LEGEND: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "handlelength": 1.6, "columnspacing": 1.2}
WIDTH = 4.8  # of a panel, in inches
LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "savefig.dpi": 160,
}


class LearningCurve(NamedTuple):
    """A group's learning curve: its estimate [K] at so many environment steps, and its name in the legend."""

    label: str
    steps: Int[ndarray, " K"]
    estimate: Estimate


class Point(NamedTuple):
    """A group's final result: its estimate [], its members' scores, and its name beside the axis."""

    label: str
    estimate: Estimate
    scores: Float[ndarray, " n"]


Mark = TypeVar("Mark", LearningCurve, Point)


@dataclass(frozen=True)
class Panel(Generic[Mark]):
    """One pair of axes. ``limits`` are the metric's own, where it has any (a win rate has)."""

    title: str
    metric: str
    marks: Sequence[Mark]
    limits: tuple[float, float] | None = None


def draw_curves(panels: Sequence[Panel[LearningCurve]], path: Path, shared_labels: bool = True) -> None:
    """Learning curves with their intervals shaded, as a PNG.

    A label has the same colour in every panel, and one legend serves them all; unless labels are not shared: then each
    panel has a legend of its own, as where 64 is a replay's size in one and a width in another.
    """
    shared = list(dict.fromkeys(line.label for panel in panels for line in panel.marks)) if shared_labels else []
    # An inch holds about 13.5 characters; the sample of the line beside a label takes as much as six.
    columns = int(13.5 * WIDTH * _columns(len(panels))) // (max(map(len, shared), default=0) + 6)
    columns = min(max(columns, 1), max(len(shared), 1))
    legend_height = 0.2 + 0.2 * math.ceil(len(shared) / columns) if shared else 0.0
    with _figure(len(panels), path, height=3.3, extra=legend_height) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=True):
            labels = shared or [line.label for line in panel.marks]
            for line in panel.marks:
                style = _style(labels.index(line.label))
                marker = "o" if len(line.steps) == 1 else ""  # a line through one point is not seen
                ax.plot(line.steps, line.estimate.iqm, label=_shown(line.label), marker=marker, **style)
                ax.fill_between(line.steps, *line.estimate[1:], color=style["color"], alpha=0.18, linewidth=0)
            ax.set(title=fill(_shown(panel.title), 50), xlabel="environment steps per seed", ylabel=panel.metric)
            ax.set_xlim(left=0)
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            if panel.limits:
                ax.set_ylim(_padded(panel.limits))
            if not shared:
                ax.legend(frameon=False)
        if shared:
            handles = [Line2D([], [], label=_shown(label), **_style(i)) for i, label in enumerate(shared)]
            figure.legend(handles=handles, ncols=columns, **LEGEND)


def draw_points(panels: Sequence[Panel[Point]], path: Path) -> None:
    """Final results with their intervals, a row per group, over their members' scores, as a PNG."""
    rows = max(len(panel.marks) for panel in panels)
    with _figure(len(panels), path, height=0.9 + 0.3 * rows, extra=0.4) as (figure, axes):
        for ax, panel in zip(axes, panels, strict=True):
            for row, point in enumerate(panel.marks):
                color, (iqm, low, high) = COLOURS[row % len(COLOURS)], point.estimate
                ax.plot(point.scores, [row] * len(point.scores), color=color, **SCORE)
                ax.hlines(row, low, high, color=color, linewidth=INTERVAL)
                ax.plot(iqm, row, color=color, **IQM)
            ax.set(title=fill(_shown(panel.title), 50), xlabel=panel.metric, ylim=(len(panel.marks) - 0.5, -0.5))
            ax.set_yticks(range(len(panel.marks)), [_shown(point.label) for point in panel.marks])
            ax.grid(axis="y", visible=False)
            if panel.limits:
                ax.set_xlim(_padded(panel.limits))
        handles = [
            Line2D([], [], color=NEUTRAL, label="interquartile mean", **IQM),
            Line2D([], [], color=NEUTRAL, label="its confidence interval", linewidth=INTERVAL),
            Line2D([], [], color=NEUTRAL, label="one seed", **SCORE),
        ]
        figure.legend(handles=handles, ncols=3, **LEGEND)


def _shown(text: str) -> str:
    """A label as it is drawn: on one line, not too long, and no formula or hidden name of Matplotlib's."""
    text = shorten(one_line(text), 120).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _style(i: int) -> dict[str, Any]:
    """Colours first; once they are used up, other dashes."""
    dash = DASHES[i // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": dash, "linewidth": 1.8}


def _padded(limits: tuple[float, float]) -> tuple[float, float]:
    """A little more than the limits, so that a curve that runs along one is seen whole."""
    pad = 0.03 * (limits[1] - limits[0])
    return limits[0] - pad, limits[1] + pad


def _columns(panels: int) -> int:
    """Of the grid: up to three panels side by side, more as a square."""
    return panels if panels <= 3 else math.ceil(math.sqrt(panels))


@contextmanager
def _figure(panels: int, path: Path, height: float, extra: float = 0) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with so many axes of that height, and ``extra`` for the legend, in inches; written in the end."""
    columns = _columns(panels)
    rows = math.ceil(panels / columns)
    with rc_context(LOOK):
        figure = Figure(figsize=(WIDTH * columns, height * rows + extra), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for spare in axes[panels:]:
            spare.remove()
        yield figure, axes[:panels]
        with warnings.catch_warnings():  # of characters that the font lacks, or of labels that leave axes little room
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(path, format="png")
