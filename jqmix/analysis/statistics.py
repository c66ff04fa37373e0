"""Aggregates over seeds: the interquartile mean, its stratified bootstrap, curves on a common grid. Imports no JAX.

Definitions are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv 2108.13264), and of their library, rliable.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import trim_mean

RESAMPLES = 10_000
LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


class Estimate(NamedTuple):
    """An interquartile mean and the ends of its confidence interval, which are NaN where there is none."""

    iqm: Float[np.ndarray, "*K"]
    low: Float[np.ndarray, "*K"]
    high: Float[np.ndarray, "*K"]


class Probability(NamedTuple):
    """A probability and the ends of its confidence interval, which are NaN where there is none."""

    probability: float
    low: float
    high: float


class Crossings(NamedTuple):
    """At which of a curve's points it first is at each of L levels, with the ends of a confidence interval; the number
    of points where it never is. Without an interval, its ends are None."""

    at: Int[np.ndarray, " L"]
    low: Int[np.ndarray, " L"] | None
    high: Int[np.ndarray, " L"] | None


class Curve(NamedTuple):
    """One member's evaluations: its environment steps, strictly increasing, and the metric at each."""

    steps: Int[np.ndarray, " K"]
    values: Float[np.ndarray, " K"]


def interquartile_mean(scores: Float[np.ndarray, "n *K"]) -> Float[np.ndarray, "*K"]:
    """The mean over the first axis of what is left when ⌊n / 4⌋ scores are cut from either end.

    Raises ``ValueError`` for no scores and for scores that are not finite: a run that diverged has no place in order.
    """
    if len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError("the interquartile mean takes one or more finite scores")
    return np.asarray(trim_mean(scores, proportiontocut=0.25, axis=0))


def resample(sizes: Sequence[int], resamples: int, rng: np.random.Generator) -> Int[np.ndarray, "R n"]:
    """Bootstrap resamples of strata that stand one after another, as indices.

    The places of a stratum are filled with its own members, drawn with replacement.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    drawn = [start + rng.integers(size, size=(resamples, size)) for start, size in zip(starts, sizes, strict=True)]
    return np.concatenate(drawn, axis=1)


def resampled_iqms(
    strata: Sequence[Float[np.ndarray, "_ *K"]], resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[Float[np.ndarray, " R"]]:
    """The interquartile means of all resamples, point after point: all points at once would take gigabytes.

    Whole seeds are drawn, each within its stratum; the points share their resamples.
    """
    scores = np.concatenate(strata)
    index = resample([len(s) for s in strata], resamples, np.random.default_rng(seed))
    for point in scores.reshape(len(scores), -1).T:
        yield trim_mean(point[index], 0.25, axis=1)


def stratified_bootstrap(
    strata: Sequence[Float[np.ndarray, "_ *K"]], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """The interquartile mean of all scores and its percentile bootstrap interval, at every point on its own.

    ``strata`` holds one array per environment, scores of its seeds along the first axis. Whole seeds are drawn, each
    within its environment, so a curve's points share their resamples. Where an environment has one seed only,
    nothing is known of how seeds differ and there is no interval. Intervals of few seeds are too narrow: with Gaussian
    scores, a nominal 95 % covers 50 % for 2 seeds, 75 % for 3, 90 % for 5 and 94 % for 10 (4000 repetitions). Raises
    ``ValueError`` as :func:`interquartile_mean` does.
    """
    scores = np.concatenate(strata)
    iqm = interquartile_mean(scores)
    if min(map(len, strata)) < 2:
        return Estimate(iqm, np.full_like(iqm, np.nan), np.full_like(iqm, np.nan))
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = np.stack([np.quantile(iqms, tails) for iqms in resampled_iqms(strata, resamples, seed)], axis=1)
    low, high = ends.reshape(2, *iqm.shape)
    return Estimate(iqm, low, high)


def align(curves: Sequence[Curve]) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, "n K"]]:
    """Curves on a common grid of environment steps, by linear interpolation.

    Members log at slightly different steps. The grid is the steps of the curve that has the most of them, cut to the
    range that all curves cover, so nothing is extrapolated. Raises ``ValueError`` where they have no range in common.
    """
    first, last = max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves)
    if first > last:
        raise ValueError(f"one curve begins at {first:,} environment steps, after another ended at {last:,}")
    densest = max(curves, key=lambda c: len(c.steps))
    grid = np.unique(np.clip(densest.steps, first, last))
    return grid, np.stack([np.interp(grid, c.steps, c.values) for c in curves])


def first_reach(steps: Int[np.ndarray, " K"], values: Float[np.ndarray, " K"], threshold: float) -> int | None:
    """The first of ``steps`` at which a curve is at ``threshold`` or above; None if it never is."""
    reached = np.flatnonzero(values >= threshold)
    return int(steps[reached[0]]) if len(reached) else None


def crossings(
    strata: Sequence[Float[np.ndarray, "_ K"]],
    levels: Float[np.ndarray, " L"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Crossings:
    """At which point the interquartile mean of curves on a common grid first is at or above each level.

    The interval is that of the crossings of bootstrap resamples, whose curves are made of whole seeds; the levels are
    held. Its ends are points of the grid, rounded outwards. There is none where a stratum has one seed only.
    """
    curve = interquartile_mean(np.concatenate(strata))
    at = _first_points([np.array([iqm]) for iqm in curve], levels)[0]
    if min(map(len, strata)) < 2:
        return Crossings(at, None, None)
    drawn = _first_points(resampled_iqms(strata, resamples, seed), levels)
    low = np.quantile(drawn, TAILS[0], axis=0, method="lower")
    high = np.quantile(drawn, TAILS[1], axis=0, method="higher")
    return Crossings(at, low, high)


def _first_points(points: Iterable[Float[np.ndarray, " R"]], levels: Float[np.ndarray, " L"]) -> Int[np.ndarray, "R L"]:
    """For R curves, given point after point, the first point at each level; their number where there is none."""
    crossed = [iqms[:, None] >= levels for iqms in points]
    reached = np.stack([*crossed, np.ones_like(crossed[0])])
    return reached.argmax(axis=0)


def probability_of_improvement(
    x: Sequence[Float[np.ndarray, " _"]],
    y: Sequence[Float[np.ndarray, " _"]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Probability:
    """How likely a score of ``x`` is above a score of ``y``, and its percentile bootstrap interval.

    Both hold one array of scores per environment. Within one, it is the share of all pairs of a score of ``x`` and
    one of ``y`` in which the first is greater, with ties counted half (Mann and Whitney's U over the number of pairs);
    over several, the mean of these shares (Agarwal et al. 2021, section 4.3). Resamples draw the scores of either side
    anew within their environment. Where a side has one score only, there is no interval.
    """
    rng = np.random.default_rng(seed)
    # Signs are −1, 0 and 1: ½ + ½ sign counts a tie half.
    wins = [0.5 + 0.5 * np.sign(a[:, None] - b[None, :]) for a, b in zip(x, y, strict=True)]
    value = float(np.mean([table.mean() for table in wins]))
    if min(map(len, [*x, *y])) < 2:
        return Probability(value, np.nan, np.nan)
    drawn = np.mean([_resampled_shares(table, resamples, rng) for table in wins], axis=0)
    return Probability(value, *map(float, np.quantile(drawn, TAILS)))


def _resampled_shares(
    wins: Float[np.ndarray, "n m"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, " R"]:
    """The mean of a table's rows and columns, both drawn with replacement: each counts as often as it was drawn."""
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in wins.shape)
    return np.einsum("ri,ij,rj->r", rows, wins, columns) / wins.size
