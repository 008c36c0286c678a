"""Set blocks commute with permutation, pooling ignores it, padding is unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_modules import drawn
from flax import nnx
from tolerances import assert_close

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


def built(make, cfg: SetConfig = CONFIG):
    fn, params = drawn(lambda: make(cfg, rngs=nnx.Rngs(0)))
    return fn.bind(params)


@pytest.mark.parametrize("make", [SetAttentionBlock, induced])
def test_blocks_commute_with_permutation(make):
    module = built(make)
    run = jax.jit(lambda x: module(x))
    y = run(X)
    assert_close(run(X[:, ORDER]), y[:, ORDER])
    assert np.abs(y - y[:, ORDER]).max() > 0.1


def test_pooling_ignores_order_and_asks_different_questions():
    module = built(pooling)
    run = jax.jit(lambda x: module(x))
    y = run(X)
    assert y.shape == (B, 2, E)
    assert_close(run(X[:, ORDER]), y)
    assert np.abs(y[:, 0] - y[:, 1]).max() > 0.1


@pytest.mark.parametrize("make", [SetAttentionBlock, induced, pooling])
def test_padding_never_reaches_members_or_pools(make):
    module = built(make)
    run = jax.jit(lambda junk: module(X.at[0, 3:].set(junk), lengths=LENGTHS))
    real = slice(None) if make is pooling else slice(3)
    clean = run(0.0)
    for junk in (1e6, jnp.inf, jnp.nan):
        broken = run(junk)
        assert (clean[0, real] == broken[0, real]).all()
        assert (clean[1] == broken[1]).all()
    # As if padding were not there at all.
    assert_close(clean[:1, real], jax.jit(lambda x: module(x))(X[:1, :3]))


def test_multihead_attention_block_is_the_formula():
    block = built(MultiheadAttentionBlock)

    @jax.jit
    def formula(x, y):
        hidden = block.attention_norm(x + block.attention(x, y))
        return block.feed_forward_norm(hidden + block.feed_forward(hidden))

    assert_close(jax.jit(lambda x, y: block(x, y))(X[:, :2], X), formula(X[:, :2], X))


def test_composite_blocks_are_their_equations():
    isab, pma = built(induced), built(pooling)
    points, seeds = (jnp.repeat(x[...][None], B, axis=0) for x in (isab.points, pma.seeds))

    @jax.jit
    def formulas(x):
        return isab.spread(x, isab.gather(points, x)), pma.block(seeds, pma.feed_forward(x))

    assert_close(jax.jit(lambda x: (isab(x), pma(x)))(X), formulas(X))


@pytest.mark.parametrize("make", [SetAttentionBlock, induced, pooling])
def test_dropout_acts_with_a_key_only(make):
    dropping = built(make, SetConfig(embed_dim=E, num_heads=4, dropout_rate=0.5))
    module = built(make)
    plain = jax.jit(lambda x: module(x))(X)
    run = jax.jit(lambda key: dropping(X, key=key))
    assert_close(run(None), plain)
    assert np.abs(run(jax.random.key(0)) - plain).max() > 0.1


def test_learned_points_are_parameters_with_axes():
    fn, params = drawn(lambda: induced(CONFIG, rngs=nnx.Rngs(0)))
    assert params["points"].shape == (3, E)
    assert fn.axes["points"] == (None, "embed")
    fn, params = drawn(lambda: pooling(CONFIG, rngs=nnx.Rngs(0)))
    gradients = jax.jit(jax.grad(lambda p: (fn.bind(p)(X) ** 3).sum()))(params)
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
