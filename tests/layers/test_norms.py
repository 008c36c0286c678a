"""Norms against numpy, their invariances, and float32 inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.layers.norms import LayerNorm, RMSNorm, layer_norm, make_norm, rms_norm

X = 3.0 + 2.0 * jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 16)), jnp.float32)
SCALE = jnp.asarray(np.random.default_rng(1).normal(size=(16,)), jnp.float32)
BIAS = jnp.asarray(np.random.default_rng(2).normal(size=(16,)), jnp.float32)


def test_rms_norm_is_the_formula():
    x = np.asarray(X, np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(SCALE)
    assert_close(rms_norm(X, SCALE), expected)


def test_layer_norm_is_the_formula():
    x = np.asarray(X, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    assert_close(layer_norm(X, SCALE, BIAS), expected * np.asarray(SCALE) + np.asarray(BIAS))


def test_layer_norm_ignores_shift_and_scale_and_rms_norm_scale_only():
    assert_close(layer_norm(5 * X + 7, SCALE, BIAS), layer_norm(X, SCALE, BIAS))
    assert_close(rms_norm(5 * X, SCALE), rms_norm(X, SCALE))
    assert np.abs(rms_norm(X + 7, SCALE) - rms_norm(X, SCALE)).max() > 0.1


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_the_result_is_rounded_once_whatever_the_input(norm):
    module = norm(16, rngs=nnx.Rngs(0))
    low = X.astype(jnp.bfloat16)
    y = module(low)
    assert y.dtype == jnp.bfloat16
    assert (y == module(low.astype(jnp.float32)).astype(jnp.bfloat16)).all()


def test_eps_keeps_a_zero_row_finite():
    zeros = jnp.zeros((1, 16))
    gradient = jax.grad(lambda x: rms_norm(x, SCALE).sum())(zeros)
    assert np.isfinite(gradient).all()
    assert (layer_norm(zeros, SCALE, BIAS) == BIAS[None]).all()


def test_modules_start_as_the_plain_norm():
    assert_close(RMSNorm(16, rngs=nnx.Rngs(0))(X), rms_norm(X, jnp.ones(16)))
    made = make_norm("layer", 16, eps=0.1, rngs=nnx.Rngs(0))
    assert_close(made(X), layer_norm(X, jnp.ones(16), jnp.zeros(16), eps=0.1))
