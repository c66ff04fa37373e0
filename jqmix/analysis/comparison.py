"""Groups of one environment beside the best of them: how soon they are nearly as good, and how likely it is better.

Imports no JAX.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jqmix.analysis.results import Summary, group_by, is_rate
from jqmix.analysis.statistics import Probability, crossings, probability_of_improvement

SHARES = (0.5, 0.8, 0.95)
NEVER = float("inf")
EFFICIENCY_COLUMNS = ["group", "percent", "level"] + [
    clock + end for clock in ("env_steps", "seconds") for end in ("", "_low", "_high")
]
IMPROVEMENT_COLUMNS = ["group", "other", *Probability._fields, "seeds", "other_seeds"]


def efficiency_rows(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """For each group and share of the best final result of its environment, when the group's curve first was there.

    ``level`` is what had to be reached: that share of the greatest final IQM, or, where that is not positive, that
    share of the way to it from the lowest IQM of a first evaluation. ``env_steps`` is the first point of the group's
    IQM curve that is at or above it, with the ends of its interval, ``seconds`` the run's clock there. Infinite is
    never; None is an interval or a clock that there is not.
    """
    rows: list[dict[str, Any]] = []
    for best, shown in _by_task(summaries):
        top = float(best.final.iqm)
        floor = 0.0 if top > 0 else min(float(s.curve.iqm[0]) for s in shown)
        gain = top - floor
        if gain > 0:  # else nothing was learned that could be shared out
            rows += [row for s in shown for row in _reached(s, floor + gain * np.array(SHARES))]
    return rows


def _reached(summary: Summary, levels: Float[np.ndarray, " L"]) -> list[dict[str, Any]]:
    """A group's rows; first, low and high are points of its curve, and the one after its last is never."""
    found = crossings(summary.by_stratum(summary.values), levels)
    clocks = {"env_steps": np.append(summary.steps, NEVER), "seconds": np.append(summary.seconds, NEVER)}
    return [
        {"group": summary.group.name, "percent": round(100 * share), "level": float(level)}
        | {
            name + end: None if points is None or np.isnan(clock[points[i]]) else float(clock[points[i]])
            for name, clock in clocks.items()
            for end, points in (("", found.at), ("_low", found.low), ("_high", found.high))
        }
        for i, (share, level) in enumerate(zip(SHARES, levels, strict=True))
    ]


def improvement_rows(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The probability that the best group of an environment, by its final IQM, is better than each of the others."""
    return [
        {
            "group": best.group.name,
            "other": other.group.name,
            **{name: None if np.isnan(x) else x for name, x in _improvement(best, other)._asdict().items()},
            "seeds": len(best.scores),
            "other_seeds": len(other.scores),
        }
        for best, shown in _by_task(summaries)
        for other in shown
        if other is not best
    ]


def _by_task(summaries: Sequence[Summary]) -> list[tuple[Summary, list[Summary]]]:
    """Of every environment the best group, and all that have a result; where more is better."""
    comparable = [s for s in summaries if len(s.scores) and _is_score(s.group.metric)]
    tasks = group_by(comparable, lambda s: s.group.task).values()
    return [(max(shown, key=lambda s: float(s.final.iqm)), shown) for shown in tasks]


def _is_score(metric: str) -> bool:
    return is_rate(metric) or metric.endswith("/return_mean")


def _improvement(best: Summary, other: Summary) -> Probability:
    return probability_of_improvement(best.by_stratum(best.scores), other.by_stratum(other.scores))
