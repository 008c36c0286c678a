"""Collapse to means is seen where it was put, and not where it was not."""

import numpy as np
import pytest

from experiments.recipes.amounts_protocol import AmountQueries
from experiments.recipes.collapse import main, measure, pit_deviation

RNG = np.random.default_rng(0)
N, M, DRAWS = 2000, 3, 59


def two_kinds(count: int) -> np.ndarray:
    """Recipes of three foods that come in two kinds, four times apart in the first food."""
    logs = 0.1 * RNG.normal(size=(count, M))
    logs[:, 0] += np.where(RNG.random(count) < 0.5, -0.7, 0.7)
    shares = np.exp(logs)
    return shares / shares.sum(axis=1, keepdims=True)


def queries() -> AmountQueries:
    foods = np.broadcast_to(np.arange(M, dtype=np.int32), (N, M)).copy()
    return AmountQueries(foods, np.full(N, M, np.int32), two_kinds(N))


def test_means_vary_too_little_and_fair_samples_do_not():
    asked = queries()
    mean = np.broadcast_to(np.full(M, 1 / M), (N, M))
    fair = np.stack([two_kinds(N) for _ in range(DRAWS)])
    found = measure(asked, mean, fair, min_recipes=10)
    assert found["point_spread"] < 0.01 and 0.9 < found["sample_spread"] < 1.1
    assert found["sample_distance"] < 0.3 * found["point_distance"]
    assert found["pit_deviation"] < 0.1 and (found["num_foods"], found["n"]) == (M, N)


def test_one_bell_around_the_mean_has_the_spread_but_not_the_shape():
    asked = queries()
    logs = np.log(asked.proportions)
    bells = np.exp(logs.mean(axis=0) + logs.std(axis=0) * RNG.normal(size=(DRAWS, N, M)))
    bells /= bells.sum(axis=-1, keepdims=True)
    fair = np.stack([two_kinds(N) for _ in range(DRAWS)])
    one, two = (measure(asked, asked.proportions, s, min_recipes=10) for s in (bells, fair))
    assert one["point_spread"] == pytest.approx(1)
    assert one["pit_deviation"] > 3 * two["pit_deviation"]
    assert one["sample_distance"] > 2 * two["sample_distance"]


def test_calibrated_ranks_are_uniform_and_others_are_not():
    samples = RNG.normal(size=(99, 5000))
    assert pit_deviation(samples, RNG.normal(size=5000)) < 0.05
    assert pit_deviation(samples, np.full(5000, 9.0)) == pytest.approx(0.95)
    assert pit_deviation(samples, 3 * RNG.normal(size=5000)) > 0.3


def test_foods_in_too_few_recipes_are_refused(capsys):
    with pytest.raises(ValueError, match="no food is in min_recipes=5000 recipes"):
        mean = np.broadcast_to(np.full(M, 1 / M), (N, M))
        measure(queries(), mean, np.stack([mean]), min_recipes=5000)
    assert main(["--checkpoint", "nowhere"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("collapse: ")
