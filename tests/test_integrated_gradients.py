import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from recipe_jax.integrated_gradients import (
    ERROR_FLOOR,
    completeness_error,
    integrated_gradients,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_linear_function_gives_weights_times_inputs_over_a_tree(rng):
    weights, inputs, baseline = (
        {"a": rng.normal(size=3).astype(np.float32), "b": rng.normal(size=(2, 2)).astype("f")}
        for _ in range(3)
    )

    def linear(tree):
        return sum(jnp.vdot(weights[name], tree[name]) for name in weights)

    found = integrated_gradients(linear, inputs, baseline)
    expected = {name: weights[name] * (inputs[name] - baseline[name]) for name in weights}
    assert_close(found.values, expected)
    assert_close(found.gradients, weights)
    assert found.num_steps == 16
    assert_close(found.value - found.baseline_value, sum(leaf.sum() for leaf in expected.values()))


def test_a_quadratic_is_exact(rng):
    matrix = rng.normal(size=(4, 4)).astype(np.float32)
    matrix = (matrix + matrix.T) / 2
    inputs, baseline = rng.normal(size=(2, 4)).astype(np.float32)
    found = integrated_gradients(lambda x: x @ matrix @ x / 2, inputs, baseline)
    # The gradient is linear along the path: its mean is the one half way.
    assert_close(found.values, (inputs - baseline) * (matrix @ (inputs + baseline)) / 2)
    assert found.error < 1e-5


def test_inputs_that_a_function_cannot_tell_apart_get_the_same():
    found = integrated_gradients(
        lambda x: jnp.tanh(x[0] * x[1]) + x[2] ** 3, jnp.array([0.7, 0.7, 0.2]), jnp.zeros(3)
    )
    assert_close(found.values[0], found.values[1])
    assert found.values[0] != found.values[2]


def steep(x):
    return jnp.tanh(60.0 * (x.sum() - 0.37))


def test_steps_double_until_the_error_is_within_tolerance():
    x, start = jnp.array([0.4, 0.6]), jnp.zeros(2)
    rough = integrated_gradients(steep, x, start, max_steps=16)
    fine = jax.jit(lambda x, start: integrated_gradients(steep, x, start, tolerance=1e-3))(x, start)
    assert rough.num_steps == 16
    assert rough.error > 0.01
    assert 16 < fine.num_steps < 512
    assert fine.error <= 1e-3
    assert_close(fine.values.sum(), fine.value - fine.baseline_value, "gradient")


def test_error_is_relative_to_the_change_but_not_to_a_tiny_one():
    values = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(0.3)}
    assert_close(completeness_error(values, jnp.array(5.0), jnp.array(2.0)), 0.1)
    tiny = completeness_error(jnp.array([0.002]), jnp.array(0.001), jnp.array(0.0))
    assert_close(tiny, 0.001 / ERROR_FLOOR)
    still = integrated_gradients(lambda x: x.sum(), jnp.ones(2), jnp.ones(2))
    assert still.error == 0


def test_a_function_that_is_not_finite_shows_in_the_error():
    found = integrated_gradients(lambda x: jnp.log(x).sum(), jnp.ones(1), jnp.zeros(1))
    assert not found.error <= 1.0


@pytest.mark.parametrize(
    ("baseline", "max_steps", "message"),
    [
        (np.zeros(3, np.float32), 16, r"baseline has shape \(3,\) where inputs have \(2,\)"),
        ({"a": np.zeros(2, np.float32)}, 16, "trees of the same structure"),
        (np.zeros(2, np.float32), 24, "max_steps=24 must be 16 times a power of two"),
        (np.zeros(2, np.float32), 48, "max_steps=48 must be 16 times a power of two"),
        (np.zeros(2, np.float32), 0, "max_steps=0 must be 16 times a power of two"),
    ],
)
def test_refuses_what_is_no_path(baseline, max_steps, message):
    with pytest.raises(ValueError, match=message):
        integrated_gradients(
            lambda x: x.sum(), np.ones(2, np.float32), baseline, max_steps=max_steps
        )
