"""The average of the parameters follows its formula and changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recipe_jax.training.averaging import averaged_params, track_average


def test_average_follows_its_formula():
    optimizer = optax.chain(optax.sgd(1.0), track_average(0.5))
    params = {"w": jnp.float32([1.0, 2.0])}
    state, expected = optimizer.init(params), np.array([1.0, 2.0])
    for n in range(12):
        grads = {"w": jnp.full(2, n + 1.0)}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * np.asarray(params["w"])
    np.testing.assert_allclose(averaged_params(state)["w"], expected, rtol=1e-6)


def test_updates_pass_unchanged_and_a_step_may_donate():
    plain, tracked = optax.adam(0.1), optax.chain(optax.adam(0.1), track_average(0.99))
    params = {"w": jnp.float32([3.0])}

    def step(optimizer, params, state):
        updates, state = optimizer.update({"w": 2 * params["w"]}, state, params)
        return optax.apply_updates(params, updates), state

    alone, _ = step(plain, params, plain.init(params))
    compiled = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))
    both, _ = compiled(tracked, params, tracked.init(params))
    np.testing.assert_allclose(both["w"], alone["w"], rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), optax.chain(track_average(0.9), track_average(0.99))]
)
def test_there_must_be_exactly_one_average(optimizer):
    with pytest.raises(ValueError, match="averages, expected 1"):
        averaged_params(optimizer.init({"w": jnp.zeros(1)}))


def test_decay_is_checked():
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        track_average(1.0)


def test_parameters_are_needed():
    average = track_average(0.9)
    with pytest.raises(ValueError, match="needs the parameters"):
        average.update({"w": jnp.zeros(1)}, average.init({"w": jnp.zeros(1)}))
