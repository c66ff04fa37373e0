"""Aggregates over seeds: the interquartile mean, its stratified bootstrap, curves on a common grid. Imports no JAX.

Definitions are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv 2108.13264), and of their library, rliable.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import trim_mean

RESAMPLES = 10_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """An interquartile mean and the ends of its confidence interval, which are NaN where there is none."""

    iqm: Float[np.ndarray, "*K"]
    low: Float[np.ndarray, "*K"]
    high: Float[np.ndarray, "*K"]


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
    sizes = [len(s) for s in strata]
    if min(sizes) < 2:
        return Estimate(iqm, np.full_like(iqm, np.nan), np.full_like(iqm, np.nan))
    index = resample(sizes, resamples, np.random.default_rng(seed))
    tails = [(1 - level) / 2, (1 + level) / 2]
    # Point after point: all resamples of all points at once would take gigabytes.
    points = scores.reshape(len(scores), -1).T
    ends = np.stack([np.quantile(trim_mean(p[index], 0.25, axis=1), tails) for p in points], axis=1)
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
