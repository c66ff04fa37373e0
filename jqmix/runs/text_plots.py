"""Plots made of letters: a sparkline, a bar and a curve. ``ascii_only``: of letters that every stream has."""

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]  # steps, value

# From nothing to a full cell, in eighths.
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " _.-=+*%#"


def sparkline(values: Sequence[float], low: float, high: float, ascii_only: bool = False) -> str:
    """A letter for each value, the higher the larger it is between ``low`` and ``high``."""
    return "".join(_levels(ascii_only)[1 + round(7 * _share(value, low, high))] for value in values)


def text_bar(share: float, width: int, ascii_only: bool = False) -> tuple[str, str]:
    """What is done of a bar, and what is left of it; ``width`` letters together."""
    done = round(width * min(max(share, 0.0), 1.0))
    return ("#" if ascii_only else "━") * done, ("-" if ascii_only else "━") * (width - done)


def text_curve(
    points: Sequence[Point], limits: tuple[float, float], width: int, height: int, ascii_only: bool = False
) -> list[str]:
    """The area under a curve over steps, with its values on the left and the ends of the steps below.

    Steps rise. ``limits`` are the values at the foot and at the top; ``width`` and ``height`` count letters.
    """
    x, y = zip(*points, strict=True)
    low, high = limits
    marks = {0: high, height // 2: high - (high - low) * (height // 2) / height, height: low}
    margin = max(len(short_number(value)) for value in marks.values())
    columns = np.interp(np.linspace(x[0], x[-1], width - margin - 2), x, y)
    heights = [max(1, round(8 * height * _share(value, low, high))) for value in columns]
    cross, edge = ("+", "|") if ascii_only else ("┤", "│")
    lines = []
    for row in range(height):
        below = 8 * (height - 1 - row)
        cells = (_levels(ascii_only)[min(max(h - below, 0), 8)] for h in heights)
        label = short_number(marks[row]) if row in marks else ""
        lines.append(f"{label:>{margin}} {cross if row in marks else edge}{''.join(cells)}".rstrip())
    foot = ("+" + "-" * len(heights)) if ascii_only else ("┼" + "─" * len(heights))
    first, last = f"{x[0]:,.0f}", f"{x[-1]:,.0f} environment steps"
    gap = max(1, len(heights) - len(first) - len(last))
    return [*lines, f"{short_number(low):>{margin}} {foot}", f"{'':>{margin}}  {first}{'':{gap}}{last}"]


def short_number(value: float) -> str:
    """In about five letters."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.3g}"


def _levels(ascii_only: bool) -> str:
    return ASCII if ascii_only else BLOCKS


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5
