"""Initial values have the variance their formula promises, from fans read off an einsum."""

import jax
import numpy as np
import pytest

from recipe_jax.layers import initializers

KEY = jax.random.key(3)
VARIANCES = {
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
    "lecun_uniform": lambda fan_in, fan_out: 1 / fan_in,
    "lecun_truncated_normal": lambda fan_in, fan_out: 1 / fan_in,
    "xavier_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "xavier_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "kaiming_normal": lambda fan_in, fan_out: 2 / fan_in,
    "kaiming_uniform": lambda fan_in, fan_out: 2 / fan_in,
}


@pytest.mark.parametrize(
    ("spec", "shape", "expected"),
    [
        ("e -> f", (5, 7), (5, 7)),
        ("e -> h d", (5, 2, 3), (5, 6)),
        ("h d -> e", (2, 3, 5), (6, 5)),
        ("n e -> n f", (4, 5, 7), (5, 7)),
    ],
)
def test_fans_count_summed_and_produced_axes(spec, shape, expected):
    assert initializers.fans(spec, shape) == expected


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize(
    ("spec", "shape"), [("e -> h d", (60, 10, 50)), ("h d -> e", (10, 50, 60))]
)
def test_variance_is_that_of_the_formula(name, spec, shape):
    values = np.asarray(getattr(initializers, name)(spec)(KEY, shape), np.float64)
    expected = VARIANCES[name](*initializers.fans(spec, shape))
    # 30,000 draws: a variance is known to about 0.8 %, a mean to 0.6 % of a deviation.
    assert values.var() == pytest.approx(expected, rel=0.04)
    assert abs(values.mean()) < 0.03 * expected**0.5


def test_bounds_are_those_of_the_distribution():
    uniform = np.abs(initializers.xavier_uniform("e -> f")(KEY, (100, 50)))
    limit = (6 / 150) ** 0.5
    assert 0.99 * limit < uniform.max() <= limit
    cut = np.abs(initializers.truncated_normal(0.02)(KEY, (200, 50)))
    assert cut.max() <= 2 * 0.02 / 0.8796 * 1.0001
    assert cut.std() < np.std(initializers.normal(0.02)(KEY, (200, 50)))


def test_truncation_keeps_the_deviation_asked_for():
    values = np.asarray(initializers.truncated_normal(0.5)(KEY, (100_000,)))
    assert values.std() == pytest.approx(0.5, rel=0.01)


def test_constants_ignore_the_key():
    assert (np.asarray(initializers.zeros(KEY, (2, 3))) == 0).all()
    assert (np.asarray(initializers.ones(KEY, (2, 3))) == 1).all()


def test_specs_that_fit_no_weight_are_refused():
    with pytest.raises(ValueError, match='must have the form "e -> h d"'):
        initializers.fans("e h d", (1, 2, 3))
    with pytest.raises(ValueError, match=r"spec='e -> f' names 2 axes"):
        initializers.fans("e -> f", (1, 2, 3))
