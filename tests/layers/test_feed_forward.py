"""Feed-forward layers against numpy and scipy's formulas."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from drawn_modules import drawn
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.layers.feed_forward import (
    FeedForward,
    FeedForwardConfig,
    Linear,
    activate,
    is_gated,
)
from recipe_jax.layers.initializers import kaiming_uniform

X = 2 * jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def exact_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


POINTWISE = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": exact_gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
}
GATED = {
    "glu": sigmoid,
    "reglu": POINTWISE["relu"],
    "geglu": exact_gelu,
    "geglu_tanh": POINTWISE["gelu_tanh"],
    "swiglu": POINTWISE["silu"],
}


@pytest.mark.parametrize("name", POINTWISE | GATED)
def test_activations_are_their_formulas(name):
    x = np.linspace(-6, 6, 101)
    expected = (POINTWISE | GATED)[name](x)
    assert_close(activate(name, jnp.asarray(x, jnp.float32)), expected, "elementwise")
    assert is_gated(name) == (name in GATED)


def test_gelu_has_finite_gradients_far_out():
    x = jnp.array([-1e4, -10.0, 0.0, 10.0, 1e4])
    assert_close(jax.vmap(jax.grad(lambda x: activate("gelu", x)))(x), np.array([0, 0, 0.5, 1, 1]))


@pytest.mark.parametrize("name", ["gelu", "swiglu", "reglu"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_feed_forward_is_the_formula(name, use_bias):
    cfg = FeedForwardConfig(embed_dim=8, mlp_dim=12, activation=name, use_bias=use_bias)
    fn, params = drawn(lambda: FeedForward(cfg, rngs=nnx.Rngs(0)))
    x = np.asarray(X, np.float64)

    def linear(part, y):
        y = y @ np.asarray(params[part]["kernel"], np.float64)
        return y + np.asarray(params[part]["bias"]) if use_bias else y

    if name in GATED:
        hidden = GATED[name](linear("gate", x)) * linear("up", x)
    else:
        hidden = POINTWISE[name](linear("up", x))
    assert_close(jax.jit(lambda x: fn.bind(params)(x))(X), linear("down", hidden))
    assert ("gate" in params) == (name in GATED)


def test_dropout_acts_on_hidden_units_with_a_key_only():
    cfg = FeedForwardConfig(embed_dim=8, mlp_dim=12, dropout_rate=0.5)
    fn, params = drawn(lambda: FeedForward(cfg, rngs=nnx.Rngs(0)))
    plain_cfg = FeedForwardConfig(embed_dim=8, mlp_dim=12)
    plain_fn, _ = drawn(lambda: FeedForward(plain_cfg, rngs=nnx.Rngs(0)))
    plain = jax.jit(lambda x: plain_fn.bind(params)(x))(X)
    run = jax.jit(lambda key: fn.bind(params)(X, key=key))
    assert_close(run(None), plain)
    assert np.abs(run(jax.random.key(0)) - plain).max() > 0.1


def test_linear_maps_the_last_axis_and_names_its_axes():
    fn, params = purify(
        Linear(8, 5, axes=("embed", None), initializer=kaiming_uniform, rngs=nnx.Rngs(0))
    )
    assert fn.axes == {"kernel": ("embed", None), "bias": (None,)}
    assert np.abs(params["kernel"]).max() <= (6 / 8) ** 0.5
    params = jax.tree.map(lambda x: x + 0.5, params)
    expected = np.asarray(X) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    assert_close(fn.bind(params)(X), expected)
    low = fn.bind(params)(X.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


def test_wrong_configurations_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="activation='softplus' must be one of identity, relu"):
        FeedForwardConfig(embed_dim=8, mlp_dim=8, activation="softplus")
    with pytest.raises(ValueError, match=r"dropout_rate=2\.0 must be at least 0"):
        FeedForwardConfig(embed_dim=8, mlp_dim=8, dropout_rate=2.0)
