"""The attention module: its projections by numpy, cached decoding, positions, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_modules import drawn
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import abstract
from recipe_jax.layers.attention import (
    Attention,
    AttentionConfig,
    attention_weights,
    dot_product_attention,
)
from recipe_jax.layers.key_value_cache import KeyValueCache
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.norms import rms_norm
from recipe_jax.layers.positions import Alibi, NoPositions, Rope

B, T, E = 2, 6, 16
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, T, E)), jnp.float32)
CONTEXT = jnp.asarray(RNG.normal(size=(B, 4, 10)), jnp.float32)
CONFIG = AttentionConfig(embed_dim=E, num_heads=4, num_kv_heads=2)
CAUSAL = Mask(causal=True)


def make(cfg: AttentionConfig = CONFIG, **options) -> Attention:
    fn, params = drawn(lambda: Attention(cfg, rngs=nnx.Rngs(0), **options))
    return fn.bind(params)


@pytest.mark.parametrize(
    "cfg",
    [
        CONFIG,
        AttentionConfig(embed_dim=E, num_heads=4, num_kv_heads=1, head_dim=6, bias="qkv"),
        AttentionConfig(embed_dim=E, num_heads=2, bias="all", qk_norm=True, softcap=2.0),
    ],
)
def test_call_is_project_attend_project(cfg):
    module = make(cfg)

    def project(name):
        weight = np.asarray(getattr(module, name)[...], np.float64)
        y = np.tensordot(np.asarray(X, np.float64), weight, 1)
        bias = getattr(module, f"{name}_bias")
        return jnp.asarray(y if bias is None else y + np.asarray(bias[...]), jnp.float32)

    query, key, value = map(project, ("query", "key", "value"))
    masked = {"mask": CAUSAL, "softcap": cfg.softcap}
    if cfg.qk_norm:
        query = rms_norm(query, module.query_norm.scale[...])
        key = rms_norm(key, module.key_norm.scale[...])
    heads = jax.jit(lambda *args: dot_product_attention(*args, **masked))(query, key, value)
    expected = np.tensordot(np.asarray(heads, np.float64), np.asarray(module.output[...]), 2)
    if cfg.bias == "all":
        expected = expected + np.asarray(module.output_bias[...])
    got, weights = jax.jit(lambda x: (module(x, mask=CAUSAL), module.weights(x, mask=CAUSAL)))(X)
    assert_close(got, expected)
    assert_close(weights, jax.jit(lambda *args: attention_weights(*args, **masked))(query, key))


@pytest.mark.parametrize("positions", [NoPositions(), Rope(), Rope(interleaved=True), Alibi()])
@pytest.mark.parametrize("window", [None, 3])
def test_cached_decoding_is_the_full_forward(positions, window):
    module = make(AttentionConfig(embed_dim=E, num_heads=4, num_kv_heads=2), positions=positions)
    mask = Mask(causal=True, window=window)

    @jax.jit
    def decode(x):
        prompt, cache = module.decode(x[:, :3], module.empty_cache(B, T + 2), mask=mask)

        def step(cache, token):
            y, cache = module.decode(token[:, None], cache, mask=mask)
            return cache, y[:, 0]

        cache, rest = jax.lax.scan(step, cache, x[:, 3:].swapaxes(0, 1))
        return jnp.concatenate([prompt, rest.swapaxes(0, 1)], axis=1), cache.lengths

    decoded, filled = decode(X)
    assert_close(decoded, jax.jit(lambda x: module(x, mask=mask))(X))
    assert filled.tolist() == [T, T]


@pytest.mark.parametrize("positions", [NoPositions(), Rope(), Alibi()])
def test_ragged_prompts_decode_as_if_each_row_were_alone(positions):
    module = make(positions=positions)
    lengths = jnp.array([2, 4])
    prompts = X[:, :4].at[0, 2:].set(99.0)
    mask = Mask(causal=True, query_lengths=lengths)

    @jax.jit
    def decode(prompts, tokens):
        read, cache = module.decode(prompts, module.empty_cache(B, T), mask=mask)
        return read, cache.lengths, module.decode(tokens, cache)[0]

    read, filled, y = decode(prompts, jnp.stack([X[0, 2], X[1, 4]])[:, None])
    assert filled.tolist() == [2, 4]
    for row, length in enumerate([2, 4]):
        alone = jax.jit(lambda x: module(x, mask=CAUSAL))(X[row : row + 1, : length + 1])
        assert_close(read[row, :length], alone[0, :length])
        assert_close(y[row, 0], alone[0, length])


def test_the_cache_keeps_its_shape_and_dtype():
    module = make()
    cache = module.empty_cache(B, 9, jnp.dtype(jnp.bfloat16))
    assert cache.keys.shape == (B, 2, 4, 9)
    _, after = jax.jit(lambda x, cache: module.decode(x, cache))(X, cache)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), cache
    )


def test_cross_attention_reads_the_context_whether_projected_or_not():
    module = make(AttentionConfig(embed_dim=E, num_heads=4, context_dim=10), positions=Rope())
    mask = Mask(key_lengths=jnp.array([2, 4]))
    direct = module(X, CONTEXT, mask=mask)
    memory = module.read(CONTEXT)
    assert isinstance(memory, KeyValueCache)
    assert_close(module(X, memory, mask=mask), direct)
    changed = CONTEXT.at[0, 2:].set(jnp.nan)
    assert (module(X, changed, mask=mask) == direct).all()
    # A context has no positions: neither its order nor that of the tokens that ask matters.
    assert_close(module(X[:, ::-1], CONTEXT[:, ::-1]), module(X, CONTEXT)[:, ::-1])


@pytest.mark.parametrize("positions", [Rope(), Alibi()])
def test_only_differences_of_indices_matter(positions):
    module = make(positions=positions)
    plain = module(X, mask=CAUSAL)
    shifted = module(X, mask=CAUSAL, indices=jnp.arange(T)[None] + 5)
    assert_close(shifted, plain)
    spread = module(X, mask=CAUSAL, indices=3 * jnp.arange(T)[None])
    assert np.abs(spread - plain).max() > 1e-2


@pytest.mark.parametrize("positions", [Rope(), Alibi()])
def test_order_matters_with_positions_only(positions):
    backwards = make()(X[:, ::-1])[:, ::-1]
    assert_close(backwards, make()(X))
    # Last token, reading the others in another order: only positions tell.
    swapped = X[:, jnp.array([2, 0, 1, 4, 3, 5])]
    module = make(positions=positions)
    assert np.abs(module(swapped) - module(X))[:, 5].max() > 1e-3


def test_attend_is_called_in_place_of_the_reference():
    def doubled(query, key, value, **options):
        return 2 * dot_product_attention(query, key, value, **options)

    assert_close(make(attend=doubled)(X, mask=CAUSAL), 2 * make()(X, mask=CAUSAL))


def test_dropout_acts_with_a_key_only():
    module = make(AttentionConfig(embed_dim=E, num_heads=4, dropout_rate=0.5))
    without = make(AttentionConfig(embed_dim=E, num_heads=4))
    plain = jax.jit(lambda x: without(x))(X)
    run = jax.jit(lambda key: module(X, key=key))
    assert_close(run(None), plain)
    assert np.abs(run(jax.random.key(0)) - plain).max() > 0.1


def test_the_dtype_is_that_of_the_input():
    module = make(AttentionConfig(embed_dim=E, num_heads=4, bias="all", qk_norm=True))
    low = module(X.astype(jnp.bfloat16), mask=CAUSAL)
    assert low.dtype == jnp.bfloat16
    exact = module(X.astype(jnp.bfloat16).astype(jnp.float32), mask=CAUSAL)
    assert_close(low, exact, dtype="bfloat16", kind="gradient")


def test_parameters_name_their_axes():
    fn, params = abstract(lambda: Attention(CONFIG, rngs=nnx.Rngs(0)))
    assert fn.axes == {
        "query": ("embed", "heads", "head_dim"),
        "key": ("embed", "kv_heads", "head_dim"),
        "value": ("embed", "kv_heads", "head_dim"),
        "output": ("heads", "head_dim", "embed"),
    }
    assert params["key"].shape == (E, 2, 4)
    assert hash(fn) == hash(abstract(lambda: Attention(CONFIG, rngs=nnx.Rngs(1)))[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 4}, "num_heads=6 must be a multiple of num_kv_heads=4"),
        ({"num_heads": 4, "num_kv_heads": 0}, "num_heads=4 must be a multiple of num_kv_heads=0"),
        ({"num_heads": 3}, "embed_dim=16 must be a multiple of num_heads=3"),
        ({"num_heads": 4, "softcap": 0.0}, r"softcap=0\.0 must be positive"),
        ({"num_heads": 4, "dropout_rate": 1.0}, r"dropout_rate=1\.0 must be at least 0"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(embed_dim=E, **fields)
