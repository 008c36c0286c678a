"""Stacks: scan equals loop, decoding equals the forward pass, the future and padding are unseen."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from drawn_modules import drawn
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import abstract, purify
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import Alibi, NoPositions, Rope
from recipe_jax.layers.transformer import Block, Stack, TransformerConfig

B, T, S, E = 2, 5, 4, 16
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, E)), jnp.float32)
CONTEXT = jnp.asarray(np.random.default_rng(1).normal(size=(B, S, E)), jnp.float32)
CAUSAL = Mask(causal=True)


def config(**fields) -> TransformerConfig:
    return TransformerConfig(
        **{"num_layers": 2, "embed_dim": E, "num_heads": 4, "mlp_dim": 24} | fields
    )


def pure_stack(cfg: TransformerConfig, **options):
    return drawn(lambda: Stack(cfg, rngs=nnx.Rngs(0), **options))


def pure_block(cfg: TransformerConfig, **options):
    return drawn(lambda: Block(cfg, rngs=nnx.Rngs(0), **options))


def by_loop(cfg, params, x, context=None, *, key=None, **masks):
    """One block after the other, without scan."""
    fn, _ = pure_block(cfg, cross_attention=context is not None)
    keys = [None] * cfg.num_layers if key is None else jax.random.split(key, cfg.num_layers)
    for i in range(cfg.num_layers):
        layer = jax.tree.map(lambda stacked, i=i: stacked[i], params["blocks"])
        x = fn.bind(layer)(x, context, key=keys[i], **masks)
    if cfg.norm_order == "post":
        return x
    mean_square = jnp.mean(x**2, -1, keepdims=True)
    return x / jnp.sqrt(mean_square + cfg.norm_eps) * params["final_norm"]["scale"][None, None]


@pytest.mark.parametrize(("norm_order", "cross"), [("pre", False), ("post", True)])
def test_the_scan_is_a_loop_over_its_layers(norm_order, cross):
    cfg = config(norm_order=norm_order, dropout_rate=0.3, num_kv_heads=2)
    fn, params = pure_stack(cfg, cross_attention=cross)
    context = CONTEXT if cross else None
    key = jax.random.key(9)
    masks = {"mask": CAUSAL, "context_mask": Mask(key_lengths=jnp.array([2, 4]))}

    def scanned(params):
        y = fn.bind(params)(X, context, key=key, **masks)
        return (y**2).mean(), y

    def looped(params):
        y = by_loop(cfg, params, X, context, key=key, **masks)
        return (y**2).mean(), y

    (gradients, y), (expected_gradients, expected) = (
        jax.jit(jax.grad(total, has_aux=True))(params) for total in (scanned, looped)
    )
    assert_close(y, expected)
    assert_close(gradients, expected_gradients, kind="gradient")


def test_remat_and_unroll_change_no_result():
    plain_fn, params = pure_stack(config())
    fn, _ = pure_stack(config(), remat="block", unroll=2)

    def value_and_grad(fn):
        total = jax.value_and_grad(lambda p: (fn.bind(p)(X, mask=CAUSAL) ** 2).mean())
        return jax.jit(total)(params)

    assert_close(value_and_grad(fn), value_and_grad(plain_fn), kind="gradient")


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_blocks_are_the_residual_formulas(norm_order):
    cfg = config(norm_order=norm_order, norm="layer", activation="swiglu", bias="all")
    fn, params = pure_block(cfg, cross_attention=True)

    @jax.jit
    def formula(params):
        block = fn.bind(params)
        n1, n2, n3 = block.attention_norm, block.cross_norm, block.feed_forward_norm
        if norm_order == "pre":
            x = X + block.attention(n1(X))
            x = x + block.cross_attention(n2(x), CONTEXT)
            return x + block.feed_forward(n3(x))
        x = n1(X + block.attention(X))
        x = n2(x + block.cross_attention(x, CONTEXT))
        return n3(x + block.feed_forward(x))

    assert_close(jax.jit(lambda p: fn.bind(p)(X, CONTEXT))(params), formula(params))


@pytest.mark.parametrize("positions", [NoPositions(), Rope(), Alibi()])
def test_a_causal_stack_ignores_the_future_bit_for_bit(positions):
    fn, params = pure_stack(config(), positions=positions)
    forward = jax.jit(lambda x: fn.bind(params)(x, mask=CAUSAL))
    before = forward(X)
    for i in range(T - 1):
        after = forward(X.at[:, i + 1 :].set(100.0 + i))
        assert (after[:, : i + 1] == before[:, : i + 1]).all()
        assert (after[:, i + 1 :] != before[:, i + 1 :]).any()


@pytest.mark.parametrize("cross", [False, True])
def test_padding_never_reaches_real_tokens(cross):
    fn, params = pure_stack(config(), cross_attention=cross)
    lengths, context_lengths = jnp.array([2, 5]), jnp.array([3, 1])
    masks = {
        "mask": Mask(query_lengths=lengths, key_lengths=lengths),
        "context_mask": Mask(key_lengths=context_lengths),
    }

    @jax.jit
    def run(junk):
        x = X.at[0, 2:].set(junk)
        context = CONTEXT.at[0, 3:].set(junk).at[1, 1:].set(junk) if cross else None
        y = fn.bind(params)(x, context, **masks)
        return [y[0, :2], y[1]]

    for junk in (1e6, jnp.inf, jnp.nan):
        for got, expected in zip(run(junk), run(0.0), strict=True):
            assert (got == expected).all()


def test_without_positions_an_encoder_commutes_with_permutation():
    order = np.array([3, 0, 4, 1, 2])

    def permuted_before_and_after(positions):
        fn, params = pure_stack(config(), positions=positions)
        run = jax.jit(lambda x: fn.bind(params)(x))
        return run(X[:, order]), run(X)[:, order]

    assert_close(*permuted_before_and_after(NoPositions()))
    before, after = permuted_before_and_after(Rope())
    assert np.abs(before - after).max() > 1e-2


@pytest.mark.parametrize("positions", [NoPositions(), Rope(), Alibi()])
@pytest.mark.parametrize("cross", [False, True])
def test_cached_decoding_is_the_full_forward(positions, cross):
    fn, params = pure_stack(config(num_kv_heads=2), positions=positions, cross_attention=cross)
    module = fn.bind(params)
    context = CONTEXT if cross else None
    context_mask = Mask(key_lengths=jnp.array([2, 4]))
    expected = jax.jit(lambda x: module(x, context, mask=CAUSAL, context_mask=context_mask))(X)

    @jax.jit
    def decode(x):
        cache = module.empty_cache(B, T + 3, context)
        prompt, cache = module.decode(x[:, :2], cache, context_mask=context_mask)

        def step(cache, token):
            y, cache = module.decode(token[:, None], cache, context_mask=context_mask)
            return cache, y[:, 0]

        cache, rest = jax.lax.scan(step, cache, x[:, 2:].swapaxes(0, 1))
        return jnp.concatenate([prompt, rest.swapaxes(0, 1)], axis=1), cache

    got, cache = decode(X)
    assert_close(got, expected)
    assert cache.tokens.lengths.tolist() == [[T, T]] * 2


def test_weights_are_those_of_the_forward_pass():
    cfg = config(norm_order="post")
    fn, params = pure_stack(cfg, positions=Rope())
    weights = jax.jit(lambda p: fn.bind(p).weights(X, mask=CAUSAL))(params)
    assert weights.shape == (2, B, 4, T, T)
    assert_close(weights.sum(-1), np.ones((2, B, 4, T)))
    block_fn, _ = pure_block(cfg, positions=Rope())

    @jax.jit
    def first_two(params):
        first, second = (
            block_fn.bind(jax.tree.map(lambda stacked, i=i: stacked[i], params["blocks"]))
            for i in range(2)
        )
        y = first(X, mask=CAUSAL)
        return first.attention.weights(X, mask=CAUSAL), second.attention.weights(y, mask=CAUSAL)

    assert_close((weights[0], weights[1]), first_two(params))


def test_dropout_needs_a_key():
    fn, params = pure_stack(config(dropout_rate=0.5))
    plain_fn, _ = pure_stack(config())
    run = jax.jit(lambda key: fn.bind(params)(X, key=key))
    assert_close(run(None), jax.jit(lambda p: plain_fn.bind(p)(X))(params))
    key = jax.random.key(3)
    assert (run(key) == run(key)).all()
    assert np.abs(run(key) - run(jax.random.key(4))).max() > 0.1


def test_every_sublayer_of_every_layer_drops_by_a_key_of_its_own():
    # All sublayers give ones, so what a layer adds to zeros counts the features that were kept.
    cfg = config(num_layers=2, dropout_rate=0.5, norm_order="pre", bias="all")
    fn, params = pure_block(cfg)
    params = jax.tree.map(jnp.zeros_like, params)
    ones = jnp.ones(E)
    params["attention"]["output_bias"] = ones
    params["feed_forward"]["down"]["bias"] = ones
    zeros = jnp.zeros((1, 64, E))
    both = jax.jit(lambda key: fn.bind(params)(zeros, key=key))(jax.random.key(0))
    # Kept by both with probability 1/4, were the keys the same with probability 1/2.
    assert np.mean(both == 4.0) == pytest.approx(0.25, abs=0.06)
    stack_fn, stacked = pure_stack(cfg)
    stacked = jax.tree.map(jnp.zeros_like, stacked)
    stacked["blocks"]["attention"]["output_bias"] = jnp.stack([ones, ones])
    stacked["final_norm"]["scale"] = ones
    states = jax.jit(lambda key: stack_fn.bind(stacked)(zeros, key=key))(jax.random.key(0))
    assert np.mean(states == 0.0) == pytest.approx(0.25, abs=0.06)


def test_every_parameter_is_used():
    fn, params = pure_stack(config(bias="all", qk_norm=True, norm="layer"), cross_attention=True)
    gradients = jax.jit(jax.grad(lambda p: (fn.bind(p)(X, CONTEXT) ** 3).sum()))(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_parameters_are_stacked_and_say_so():
    def make():
        return Stack(config(), rngs=nnx.Rngs(0))

    fn, _ = abstract(make)
    params = jax.jit(lambda: purify(make())[1])()
    kernels = np.asarray(params["blocks"]["attention"]["query"])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    for path, axes in jax.tree_util.tree_leaves_with_path(
        fn.axes, is_leaf=lambda node: isinstance(node, tuple)
    ):
        stacked = "blocks" in jax.tree_util.keystr(path)
        assert (axes[0] == "layers") == stacked
    for leaf in jax.tree.leaves(params["blocks"]):
        assert leaf.shape[0] == 2


def test_the_program_does_not_grow_with_depth():
    def size(num_layers):
        fn, params = pure_stack(config(num_layers=num_layers))
        return len(str(jax.make_jaxpr(lambda p: fn.bind(p)(X, mask=CAUSAL))(params)).splitlines())

    assert size(12) == size(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        (
            {"num_heads": 6, "num_kv_heads": 4, "head_dim": 2},
            "num_heads=6 must be a multiple of num_kv_heads=4",
        ),
        ({"num_heads": 5}, "embed_dim=16 must be a multiple of num_heads=5"),
        ({"norm": "batch"}, "norm='batch' must be"),
        ({"norm_order": "middle"}, "norm_order='middle' must be"),
        ({"activation": "step"}, "activation='step' must be one of"),
        ({"dropout_rate": -1.0}, r"dropout_rate=-1\.0 must be at least 0"),
    ],
)
def test_wrong_configurations_are_refused(fields, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which knows the literals
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_a_context_must_meet_a_stack_that_reads_one():
    fn, params = pure_stack(config())
    with pytest.raises(ValueError, match="built with cross_attention=False"):
        fn.bind(params)(X, CONTEXT)
    fn, params = pure_stack(config(), cross_attention=True)
    with pytest.raises(ValueError, match="context is missing"):
        fn.bind(params)(X)
    with pytest.raises(ValueError, match="context is missing"):
        fn.bind(params).empty_cache(B, T)
    with pytest.raises(ValueError, match="unroll=3 must be from 1 to num_layers=2"):
        pure_stack(config(), unroll=3)
