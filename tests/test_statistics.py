"""Interquartile mean, stratified bootstrap and alignment, against slow oracles that share no code with them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jqmix.analysis.statistics import (
    Curve,
    align,
    crossings,
    first_reach,
    interquartile_mean,
    probability_of_improvement,
    resample,
    resampled_iqms,
    stratified_bootstrap,
)

SCORES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=25)


def iqm_by_weights(scores):
    """Sorted scores times explicit weights: nothing for a quarter, rounded down, at either end."""
    n = len(scores)
    weights = [0 if place < n // 4 or place >= n - n // 4 else 1 for place in range(n)]
    return sum(w * x for w, x in zip(weights, sorted(scores), strict=True)) / sum(weights)


def quantile_by_hand(values, q):
    """Linear interpolation between order statistics."""
    values = sorted(values)
    place = q * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def curve(steps, values):
    return Curve(np.array(steps), np.array(values, float))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([3], 3), ([1, 5], 3), ([1, 2, 9], 4), ([9, 1, 2, 4], 3), ([0, 1, 2, 3, 100], 2), ([8, 7, 6, 5, 4, 3, 2, 1], 4.5)],
)
def test_iqm_by_hand(scores, expected):
    assert interquartile_mean(np.array(scores, float)) == pytest.approx(expected)


@given(SCORES)
def test_iqm_is_what_explicit_weights_make(scores):
    assert interquartile_mean(np.array(scores)) == pytest.approx(iqm_by_weights(scores), rel=1e-9, abs=1e-9)


@given(SCORES, st.randoms(use_true_random=False), st.floats(-100, 100), st.floats(-10, 10))
def test_iqm_properties(scores, random, shift, scale):
    iqm = float(interquartile_mean(np.array(scores)))
    assert min(scores) - 1e-9 <= iqm <= max(scores) + 1e-9
    moved = interquartile_mean(scale * np.array(scores) + shift)
    assert moved == pytest.approx(scale * iqm + shift, rel=1e-9, abs=1e-6)
    random.shuffle(scores)
    assert interquartile_mean(np.array(scores)) == pytest.approx(iqm, rel=1e-12, abs=1e-12)


def test_iqm_takes_every_point_on_its_own(rng):
    scores = rng.normal(size=(9, 2, 3))
    expected = [[iqm_by_weights(scores[:, i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(interquartile_mean(scores), expected)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_scores_that_are_missing_or_not_finite_are_refused(scores):
    with pytest.raises(ValueError, match="finite"):
        interquartile_mean(np.array(scores, float))
    with pytest.raises(ValueError, match="finite"):
        stratified_bootstrap([np.array(scores, float)])


def test_resampled_members_stay_in_their_stratum(rng):
    sizes = [2, 5, 3]
    index = resample(sizes, 4000, rng)
    assert index.shape == (4000, 10)
    home = np.repeat(np.arange(3), sizes)
    assert (home[index] == home).all()
    # Uniform, with replacement: each member of a stratum of n stands n times in n places on average.
    counts = np.bincount(index.ravel(), minlength=10) / 4000
    np.testing.assert_allclose(counts, 1, atol=0.06)
    assert any(len(set(row)) < 10 for row in index)


@pytest.mark.parametrize("sizes", [[6], [4, 7]])
def test_bootstrap_is_a_plain_loop_over_resamples(rng, sizes):
    strata = [rng.normal(size=(n, 2)) for n in sizes]
    found = stratified_bootstrap(strata, resamples=200, level=0.8, seed=7)
    pooled = [list(row) for stratum in strata for row in stratum]
    index = resample(sizes, 200, np.random.default_rng(7))
    for k in range(2):
        column = [row[k] for row in pooled]
        means = [iqm_by_weights([column[i] for i in draw]) for draw in index]
        assert found.iqm[k] == pytest.approx(iqm_by_weights(column))
        assert found.low[k] == pytest.approx(quantile_by_hand(means, 0.1))
        assert found.high[k] == pytest.approx(quantile_by_hand(means, 0.9))


def test_what_differs_between_strata_only_widens_nothing():
    found = stratified_bootstrap([np.zeros(4), np.ones(4)])
    assert (found.iqm, found.low, found.high) == (0.5, 0.5, 0.5)
    mixed = stratified_bootstrap([np.array([0.0, 0, 0, 0, 1, 1, 1, 1])])
    assert mixed.low < 0.2 < 0.8 < mixed.high


def test_points_share_their_resamples_and_a_seed_repeats_them(rng):
    scores = rng.normal(size=(6, 1))
    found = stratified_bootstrap([np.hstack([scores, scores + 3])], seed=1)
    np.testing.assert_allclose(np.diff(found, axis=1), 3)
    again = stratified_bootstrap([np.hstack([scores, scores + 3])], seed=1)
    np.testing.assert_array_equal(found, again)
    assert stratified_bootstrap([scores], resamples=100, seed=2) != stratified_bootstrap(
        [scores], resamples=100, seed=3
    )


@pytest.mark.parametrize(("seeds", "covers"), [(2, 0.5), (3, 0.75), (5, 0.9), (10, 0.94)])
def test_coverage_of_gaussian_scores(rng, seeds, covers):
    """What the docstring and the report say of few seeds; every column is an experiment of its own."""
    found = stratified_bootstrap([rng.normal(size=(seeds, 1500))], resamples=500)
    assert np.mean((found.low <= 0) & (found.high >= 0)) == pytest.approx(covers, abs=0.035)


def test_a_stratum_of_one_seed_has_no_interval(rng):
    alone = stratified_bootstrap([rng.normal(size=(1, 3))])
    beside = stratified_bootstrap([rng.normal(size=(1, 3)), rng.normal(size=(8, 3))])
    for found in (alone, beside):
        assert np.isfinite(found.iqm).all()
        assert np.isnan(found.low).all()
        assert np.isnan(found.high).all()


def test_equal_grids_stay_as_they_are():
    grid, values = align([curve([10, 20, 70], [1, 2, 3]), curve([10, 20, 70], [4, 5, 6])])
    assert grid.tolist() == [10, 20, 70]
    assert values.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_alignment_by_hand():
    """The grid is that of the curve with most points, within 12 … 40, where there are both."""
    grid, values = align([curve([12, 42], [0, 30]), curve([10, 20, 30, 40], [0, 1, 0, 4])])
    assert grid.tolist() == [12, 20, 30, 40]
    np.testing.assert_allclose(values, [[0, 8, 18, 28], [0.2, 1, 0, 4]])


def test_curves_without_a_common_step_are_refused():
    with pytest.raises(ValueError, match="begins at 30 environment steps, after another ended at 20"):
        align([curve([10, 20], [0, 0]), curve([30, 40], [0, 0])])


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(100, 900), min_size=1, max_size=9), min_size=1, max_size=4),
    st.floats(-5, 5),
    st.floats(-5, 5),
)
def test_lines_stay_lines_within_the_common_range(inner, slope, offset):
    """Each curve spans 0–100 … 900–1000 with points of its own between; what is linear is interpolated exactly."""
    grids = [sorted({i, *points, 1000 - i}) for i, points in enumerate(inner)]
    curves = [curve(g, [slope * s + offset + i for s in g]) for i, g in enumerate(grids)]
    grid, values = align(curves)
    assert (grid[0], grid[-1]) == (len(inner) - 1, 1001 - len(inner))
    assert (np.diff(grid) > 0).all()
    for i, row in enumerate(values):
        np.testing.assert_allclose(row, slope * grid + offset + i, atol=1e-8)


def test_first_reach():
    steps, values = np.array([10, 20, 30, 40]), np.array([0.1, 0.5, 0.4, 0.9])
    assert first_reach(steps, values, 0.5) == 20
    assert first_reach(steps, values, 0.6) == 40
    assert first_reach(steps, values, 0.0) == 10
    assert first_reach(steps, values, 1.0) is None


# Comparisons


def first_at(curve, level):
    """By counting: at which point a curve is at a level, its length where it never is."""
    return next((k for k, value in enumerate(curve) if value >= level), len(curve))


@pytest.mark.parametrize("sizes", [[5], [3, 4]])
def test_crossings_are_a_plain_loop_over_resamples(rng, sizes):
    strata = [np.cumsum(rng.normal(0.4, 1.0, size=(n, 6)), axis=1) for n in sizes]
    levels = np.array([-9.0, *np.linspace(-1, 4, 101), 99.0])
    found = crossings(strata, levels, resamples=30, seed=3)
    pooled = [list(row) for stratum in strata for row in stratum]
    curves = [
        [iqm_by_weights([pooled[i][k] for i in draw]) for k in range(6)]
        for draw in resample(sizes, 30, np.random.default_rng(3))
    ]
    ends = set()  # those that lie between two different points somewhere, and are rounded
    iqm = [iqm_by_weights([row[k] for row in pooled]) for k in range(6)]
    for j, level in enumerate(levels):
        drawn = sorted(first_at(curve, level) for curve in curves)
        assert found.at[j] == first_at(iqm, level)
        assert found.low[j] == drawn[math.floor(0.025 * 29)]
        assert found.high[j] == drawn[math.ceil(0.975 * 29)]
        ends |= {name for name, (a, b) in (("low", drawn[:2]), ("high", drawn[-2:])) if a < b}
    assert ends == {"low", "high"}
    assert (found.at[0], found.low[0], found.high[0]) == (0, 0, 0)
    assert (found.at[-1], found.low[-1], found.high[-1]) == (6, 6, 6)
    assert (found.low < found.high).any()


def test_crossings_of_one_seed_have_no_interval():
    found = crossings([np.array([[0.0, 1.0, 2.0]])], np.array([1.0]))
    assert (found.at.tolist(), found.low, found.high) == ([1], None, None)


def test_resampled_iqms_come_point_after_point(rng):
    scores = rng.normal(size=(4, 3))
    points = list(resampled_iqms([scores], resamples=50, seed=2))
    found = stratified_bootstrap([scores], resamples=50, seed=2)
    np.testing.assert_allclose([np.quantile(point, 0.025) for point in points], found.low)


def improvement_by_pairs(x, y):
    """Agarwal et al. 2021, section 4.3, by its definition: environment by environment, pair by pair."""
    shares = []
    for a, b in zip(x, y, strict=True):
        pairs = [1.0 if i > j else 0.5 if i == j else 0.0 for i in a for j in b]
        shares.append(sum(pairs) / len(pairs))
    return sum(shares) / len(shares)


SCORES_WITH_TIES = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=8)


@given(st.lists(st.tuples(SCORES_WITH_TIES, SCORES_WITH_TIES), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_probability_of_improvement_is_what_all_pairs_make(pairs):
    x, y = ([np.array(side[k]) for side in pairs] for k in (0, 1))
    found = probability_of_improvement(x, y, resamples=20)
    assert found.probability == pytest.approx(improvement_by_pairs(x, y))
    back = probability_of_improvement(y, x, resamples=20)
    assert back.probability == pytest.approx(1 - found.probability)
    assert math.isnan(found.low) == (min(map(len, [*x, *y])) < 2)


def test_probability_of_improvement_by_hand():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0])
    assert probability_of_improvement([x], [y]).probability == pytest.approx((1 + 1 + 1 + 0 + 0.5 + 1) / 6)
    assert probability_of_improvement([y + 9], [x]) == (1, 1, 1)
    assert probability_of_improvement([x], [x])[0] == 0.5


def test_interval_of_improvement_is_that_of_scores_drawn_anew(rng):
    """The shares of resampled pairs, drawn here score by score from the seeds of either side."""
    x, y = [rng.normal(0.3, 1, 6), rng.normal(0, 1, 4)], [rng.normal(0, 1, 5), rng.normal(0.5, 1, 4)]
    drawn = [
        improvement_by_pairs([rng.choice(a, len(a)) for a in x], [rng.choice(b, len(b)) for b in y])
        for _ in range(4000)
    ]
    found = probability_of_improvement(x, y, resamples=20_000)
    assert found.low == pytest.approx(quantile_by_hand(drawn, 0.025), abs=0.02)
    assert found.high == pytest.approx(quantile_by_hand(drawn, 0.975), abs=0.02)
