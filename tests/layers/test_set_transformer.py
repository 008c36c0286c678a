"""Set blocks commute with permutation, pooling ignores it, padding is unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.layers.set_transformer import (
    AttentionPooling,
    InducedSetAttentionBlock,
    MultiheadAttentionBlock,
    SetAttentionBlock,
    SetConfig,
)

B, M, E = 2, 6, 16
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, M, E)), jnp.float32)
LENGTHS = jnp.array([3, 6])
ORDER = jnp.array([2, 0, 1, 5, 3, 4])
CONFIG = SetConfig(embed_dim=E, num_heads=4)


def induced(cfg: SetConfig, **options) -> InducedSetAttentionBlock:
    return InducedSetAttentionBlock(cfg, 3, **options)


def pooling(cfg: SetConfig, **options) -> AttentionPooling:
    return AttentionPooling(cfg, 2, **options)


@pytest.mark.parametrize("make", [SetAttentionBlock, induced])
def test_blocks_commute_with_permutation(make):
    module = make(CONFIG, rngs=nnx.Rngs(0))
    y = module(X)
    assert_close(module(X[:, ORDER]), y[:, ORDER])
    assert np.abs(y - y[:, ORDER]).max() > 0.1


def test_pooling_ignores_order_and_asks_different_questions():
    module = pooling(CONFIG, rngs=nnx.Rngs(0))
    y = module(X)
    assert y.shape == (B, 2, E)
    assert_close(module(X[:, ORDER]), y)
    assert np.abs(y[:, 0] - y[:, 1]).max() > 0.1


@pytest.mark.parametrize("make", [SetAttentionBlock, induced, pooling])
@pytest.mark.parametrize("junk", [1e6, jnp.inf, jnp.nan])
def test_padding_never_reaches_members_or_pools(make, junk):
    module = make(CONFIG, rngs=nnx.Rngs(0))
    clean, broken = (module(X.at[0, 3:].set(j), lengths=LENGTHS) for j in (0.0, junk))
    real = slice(None) if make is pooling else slice(3)
    assert (clean[0, real] == broken[0, real]).all()
    assert (clean[1] == broken[1]).all()
    # Padded as if it were not there at all.
    alone = module(X[:1, :3])
    assert_close(clean[:1, real], alone)


def test_multihead_attention_block_is_the_formula():
    block = MultiheadAttentionBlock(CONFIG, rngs=nnx.Rngs(0))
    hidden = block.attention_norm(X[:, :2] + block.attention(X[:, :2], X))
    expected = block.feed_forward_norm(hidden + block.feed_forward(hidden))
    assert_close(block(X[:, :2], X), expected)


def test_composite_blocks_are_their_equations():
    module = induced(CONFIG, rngs=nnx.Rngs(0))
    points = jnp.repeat(module.points[...][None], B, axis=0)
    assert_close(module(X), module.spread(X, module.gather(points, X)))
    module = pooling(CONFIG, rngs=nnx.Rngs(0))
    seeds = jnp.repeat(module.seeds[...][None], B, axis=0)
    assert_close(module(X), module.block(seeds, module.feed_forward(X)))


@pytest.mark.parametrize("make", [SetAttentionBlock, induced, pooling])
def test_dropout_acts_with_a_key_only(make):
    dropping = make(SetConfig(embed_dim=E, num_heads=4, dropout_rate=0.5), rngs=nnx.Rngs(0))
    plain = make(CONFIG, rngs=nnx.Rngs(0))(X)
    assert_close(dropping(X), plain)
    assert np.abs(dropping(X, key=jax.random.key(0)) - plain).max() > 0.1


def test_learned_points_are_parameters_with_axes():
    fn, params = purify(induced(CONFIG, rngs=nnx.Rngs(0)))
    assert params["points"].shape == (3, E)
    assert fn.axes["points"] == (None, "embed")
    fn, params = purify(pooling(CONFIG, rngs=nnx.Rngs(0)))
    gradients = jax.grad(lambda p: (fn.bind(p)(X) ** 3).sum())(params)
    assert np.abs(gradients["seeds"]).max() > 0


def test_wrong_configurations_are_refused():
    with pytest.raises(ValueError, match="num_inducing=0 must be at least 1"):
        InducedSetAttentionBlock(CONFIG, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_seeds=0 must be at least 1"):
        AttentionPooling(CONFIG, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="embed_dim=16 must be a multiple of num_heads=3"):
        SetConfig(embed_dim=E, num_heads=3)
    with pytest.raises(ValueError, match=r"dropout_rate=1\.5 must be at least 0"):
        SetConfig(embed_dim=E, num_heads=4, dropout_rate=1.5)
