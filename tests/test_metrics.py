import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_jax import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tied_ranking(rng, n=40, v=30):
    scores = rng.integers(0, 6, (n, v)).astype(np.float64)
    targets = rng.integers(0, v, n)
    excluded = rng.random((n, v)) < 0.3
    excluded[np.arange(n), targets] = False
    return scores, targets, excluded


# Ranks


def test_ranks_are_scipys_average_ranks_among_the_candidates(rng):
    scores, targets, excluded = tied_ranking(rng)
    ranks = metrics.ranks_of_targets(scores, targets, excluded)
    for row, target in enumerate(targets):
        candidates = np.flatnonzero(~excluded[row])
        average = scipy.stats.rankdata(-scores[row, candidates], method="average")
        assert ranks[row] == average[np.searchsorted(candidates, target)]


def test_ranks_do_not_change_under_monotone_transforms_or_renumbered_items(rng):
    scores, targets, excluded = tied_ranking(rng)
    ranks = metrics.ranks_of_targets(scores, targets, excluded)
    np.testing.assert_array_equal(
        ranks, metrics.ranks_of_targets(np.exp(scores), targets, excluded)
    )
    order = rng.permutation(scores.shape[1])
    moved = np.argsort(order)[targets]
    np.testing.assert_array_equal(
        ranks, metrics.ranks_of_targets(scores[:, order], moved, excluded[:, order])
    )


def test_a_constant_scorer_ranks_everything_in_the_middle_whatever_the_item():
    targets = np.arange(7)
    ranks = metrics.ranks_of_targets(np.zeros((7, 7)), targets, np.zeros((7, 7), bool))
    np.testing.assert_array_equal(ranks, np.full(7, 4.0))


def test_excluded_items_do_not_compete():
    scores = np.array([[9.0, 8.0, 1.0, 0.0]])
    excluded = np.array([[True, True, False, False]])
    assert metrics.ranks_of_targets(scores, np.array([2]), excluded) == [1.0]


def test_infinite_scores_have_ranks():
    scores = np.array([[-np.inf, 0.0, np.inf, -np.inf]])
    assert metrics.ranks_of_targets(scores, np.array([0]), np.zeros((1, 4), bool)) == [3.5]


@pytest.mark.parametrize(
    ("score", "target", "message"),
    [
        (math.nan, 1, r"scores\[0\] contains NaN"),
        (0.0, 3, r"targets must lie in \[0, 3\), got 3 to 3"),
        (0.0, -1, r"targets must lie in \[0, 3\), got -1 to -1"),
        (0.0, 0, r"targets\[0\]=0 is excluded from its own ranking"),
    ],
)
def test_ranks_refuse_what_cannot_be_ranked(score, target, message):
    scores = np.array([[0.0, 1.0, score]])
    excluded = np.array([[True, False, False]])
    with pytest.raises(ValueError, match=message):
        metrics.ranks_of_targets(scores, np.array([target]), excluded)


def test_ranking_metrics_agree_with_scikit_learn(rng):
    scores = rng.standard_normal((50, 20))
    targets = rng.integers(0, 20, 50)
    ranks = metrics.ranks_of_targets(scores, targets, np.zeros((50, 20), bool))
    relevant = np.eye(20)[targets]
    assert metrics.recall_at_k(ranks, 5).mean() == pytest.approx(
        sklearn.metrics.top_k_accuracy_score(targets, scores, k=5, labels=np.arange(20))
    )
    assert metrics.reciprocal_rank(ranks).mean() == pytest.approx(
        sklearn.metrics.label_ranking_average_precision_score(relevant, scores)
    )
    assert metrics.ndcg_at_k(ranks, 5).mean() == pytest.approx(
        sklearn.metrics.ndcg_score(relevant, scores, k=5)
    )


# Intervals


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 29, 100, 6803])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.999])
def test_t_quantiles_are_scipys(degrees, level):
    expected = scipy.stats.t.ppf((1 + level) / 2, degrees)
    assert metrics.student_t_quantile(degrees, level=level) == pytest.approx(expected, rel=1e-9)


def test_t_interval_is_scipys(rng):
    values = rng.standard_normal(7)
    found = metrics.student_t_interval(values)
    low, high = scipy.stats.t.interval(0.95, 6, values.mean(), scipy.stats.sem(values))
    assert found == pytest.approx((values.mean(), low, high))


def test_bootstrap_of_many_values_is_close_to_the_t_interval(rng):
    values = rng.exponential(size=2000)
    found = metrics.bootstrap_interval(values, rng=rng, resamples=4000)
    expected = metrics.student_t_interval(values)
    width = expected.high - expected.low
    np.testing.assert_allclose(found, expected, atol=0.05 * width)


def test_bootstrap_of_equal_values_has_no_width(rng):
    assert metrics.bootstrap_interval(np.full(9, 3.0), rng=rng) == (3.0, 3.0, 3.0)


def test_intervals_refuse_too_few_values(rng):
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        metrics.student_t_interval(np.ones(1))
    with pytest.raises(ValueError, match="at least 1 value, got 0"):
        metrics.bootstrap_interval(np.ones(0), rng=rng)
    with pytest.raises(ValueError, match="degrees=0"):
        metrics.student_t_quantile(0)


# Proportions


def test_centred_log_ratios_sum_to_zero_and_ignore_scale_and_padding(rng):
    present = np.arange(6) < np.array([6, 4, 1])[:, None]
    grams = np.where(present, rng.exponential(size=(3, 6)), np.nan)
    ratios = metrics.centred_log_ratios(grams, present)
    np.testing.assert_allclose(ratios.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(ratios, metrics.centred_log_ratios(1000 * grams, present))
    assert (ratios[~present] == 0).all()


def test_amount_errors_of_a_recipe_worked_by_hand():
    # log(.8) and log(.2) lie log(2) either side of their mean; (.5, .5) lies on it.
    predicted = np.array([[0.5, 0.5, 7.0]])
    actual = np.array([[0.8, 0.2, 0.0]])
    present = np.array([[True, True, False]])
    assert metrics.log_ratio_error(predicted, actual, present) == pytest.approx([math.log(2)])
    assert metrics.proportion_error(predicted, actual, present) == pytest.approx([0.3])


def test_log_ratio_error_of_a_zero_or_missing_amount_is_refused():
    present = np.array([[True, True]])
    for bad in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="must be positive and finite"):
            metrics.log_ratio_error(np.array([[1.0, bad]]), np.array([[0.5, 0.5]]), present)


def test_a_row_without_members_has_no_mean():
    with pytest.raises(ValueError, match="at least one member"):
        metrics.mean_over_members(np.zeros((2, 3)), np.array([[True] * 3, [False] * 3]))


# Distributions


def test_crps_is_the_mean_over_all_pairs(rng):
    samples, observed = rng.standard_normal((7, 4)), rng.standard_normal(4)
    pairs = [np.abs(samples[i] - samples[j]) for i in range(7) for j in range(7) if i != j]
    expected = np.abs(samples - observed).mean(axis=0) - np.mean(pairs, axis=0) / 2
    np.testing.assert_allclose(metrics.crps_from_samples(samples, observed), expected)


@given(point=st.floats(-9, 9), observed=st.floats(-9, 9), count=st.integers(2, 9))
@settings(deadline=None)
def test_crps_of_a_point_mass_is_the_absolute_error(point, observed, count):
    found = metrics.crps_from_samples(np.full((count, 1), point), np.array([observed]))
    np.testing.assert_allclose(found, [abs(point - observed)], atol=1e-12)


def test_crps_of_two_samples_is_unbiased(rng):
    # Gneiting & Raftery 2007, eq. 21 worked out for the standard normal.
    y = 0.7
    normal = scipy.stats.norm
    exact = y * (2 * normal.cdf(y) - 1) + 2 * normal.pdf(y) - 1 / math.sqrt(math.pi)
    found = metrics.crps_from_samples(rng.standard_normal((2, 200_000)), np.full(200_000, y))
    assert found.mean() == pytest.approx(exact, abs=4 * found.std() / math.sqrt(len(found)))


def test_crps_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        metrics.crps_from_samples(np.zeros((1, 3)), np.zeros(3))


def test_central_intervals_of_few_samples_hold_one_more_draw_at_their_level(rng):
    draws = rng.standard_normal((20, 40_000))
    low, high = metrics.central_interval(draws[:19], 0.8)
    covered = metrics.interval_coverage(low, high, draws[19])
    assert covered.mean() == pytest.approx(0.8, abs=4 * covered.std() / math.sqrt(len(covered)))


def test_interval_coverage_counts_the_bounds():
    low, high = np.zeros(4), np.ones(4)
    observed = np.array([-0.1, 0.0, 1.0, 1.1])
    np.testing.assert_array_equal(metrics.interval_coverage(low, high, observed), [0, 1, 1, 0])


def test_pinball_loss_is_scikit_learns_and_least_at_the_quantile(rng):
    observed = rng.standard_normal(1001)
    grid = np.linspace(-2, 2, 401)
    losses = [metrics.pinball_loss(np.full(1001, x), observed, 0.2).mean() for x in grid]
    assert losses[50] == pytest.approx(
        sklearn.metrics.mean_pinball_loss(observed, np.full(1001, grid[50]), alpha=0.2)
    )
    assert grid[np.argmin(losses)] == pytest.approx(np.quantile(observed, 0.2), abs=0.02)


def test_wasserstein_distance_is_scipys(rng):
    first, second = rng.integers(3, 20, 50), rng.integers(3, 25, 31)
    expected = scipy.stats.wasserstein_distance(first, second)
    assert metrics.wasserstein_distance(first, second) == pytest.approx(expected)
    assert metrics.wasserstein_distance(first, first + 2) == pytest.approx(2.0)


def test_wasserstein_distance_needs_values():
    with pytest.raises(ValueError, match="got 3 and 0"):
        metrics.wasserstein_distance(np.arange(3), np.arange(0))


# Sets


def test_highest_jaccard_is_the_brute_force_over_chunk_borders(rng):
    sets, others = rng.random((12, 20)) < 0.3, rng.random((23, 20)) < 0.3
    expected = [max(np.sum(one & other) / np.sum(one | other) for other in others) for one in sets]
    np.testing.assert_array_equal(metrics.highest_jaccard(sets, others, chunk=5), expected)


def test_nine_shared_of_ten_is_a_jaccard_of_exactly_nine_tenths():
    ten = np.ones((1, 10), bool)
    nine = np.arange(10)[None, :] < 9
    assert metrics.highest_jaccard(nine, ten)[0] >= 0.9


def test_two_empty_sets_are_equal_and_nothing_resembles_no_set():
    empty = np.zeros((1, 4), bool)
    assert metrics.highest_jaccard(empty, empty) == [1.0]
    assert metrics.highest_jaccard(empty, np.zeros((0, 4), bool)) == [0.0]
