"""Dense layers and feed-forward blocks against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_modules import drawn
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.layers.dense import Dense, DenseConfig
from recipe_jax.layers.feed_forward import FeedForwardBlock, FeedForwardConfig
from recipe_jax.layers.initializers import kaiming_uniform
from recipe_jax.layers.norms import layer_norm, rms_norm

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)


def test_order_is_map_norm_activation_residual():
    cfg = DenseConfig(in_dim=8, out_dim=8, activation="tanh", norm="layer", residual=True)
    fn, params = drawn(lambda: Dense(cfg, rngs=nnx.Rngs(0)))
    mapped = X @ params["linear"]["kernel"] + params["linear"]["bias"][None, None]
    normed = layer_norm(mapped, params["norm"]["scale"], params["norm"]["bias"])
    assert_close(fn.bind(params)(X), X + jnp.tanh(normed))


def test_the_initializer_and_the_axes_are_values():
    cfg = DenseConfig(in_dim=8, out_dim=64, use_bias=False)
    layer = Dense(cfg, axes=("mlp", "vocab"), initializer=kaiming_uniform, rngs=nnx.Rngs(0))
    fn, params = purify(layer)
    assert fn.axes == {"linear": {"kernel": ("mlp", "vocab")}}
    kernel = np.asarray(params["linear"]["kernel"])
    assert np.abs(kernel).max() <= (6 / 8) ** 0.5 < 1.1 * np.abs(kernel).max()


def test_dropout_acts_with_a_key_only():
    cfg = DenseConfig(in_dim=8, out_dim=200, dropout_rate=0.5)
    fn, params = drawn(lambda: Dense(cfg, rngs=nnx.Rngs(0)))
    plain, dropped = fn.bind(params)(X), fn.bind(params)(X, key=jax.random.key(0))
    kept = dropped != 0
    assert 0.4 < kept.mean() < 0.6
    assert_close(jnp.where(kept, dropped, 0), jnp.where(kept, 2 * plain, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_dim": 0}, "out_dim=0 must be at least 1"),
        ({"activation": "swiglu"}, "gated unit: use FeedForward"),
        ({"residual": True, "out_dim": 4}, "residual=True needs in_dim=8 equal to out_dim=4"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DenseConfig(**{"in_dim": 8, "out_dim": 8} | changes)


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_a_feed_forward_block_is_its_formula(norm_order):
    cfg = FeedForwardConfig(embed_dim=8, mlp_dim=20, activation="swiglu", dropout_rate=0.3)
    fn, params = drawn(lambda: FeedForwardBlock(cfg, norm_order=norm_order, rngs=nnx.Rngs(0)))
    block = fn.bind(params)

    def norm(x):
        return rms_norm(x, params["norm"]["scale"])

    if norm_order == "pre":
        expected = X + block.feed_forward(norm(X))
    else:
        expected = norm(X + block.feed_forward(X))
    assert_close(block(X), expected)
    assert np.abs(block(X, key=jax.random.key(0)) - expected).max() > 1e-2
