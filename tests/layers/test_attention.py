"""The attention formula: brute force, JAX's own, and the laws that every kernel must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from recipe_jax.layers.attention import (
    attention_entropy,
    attention_weights,
    dot_product_attention,
)
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import alibi_slopes

B, T, S, H, K, D = 2, 5, 7, 6, 3, 8


def heads(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


QUERY, KEY, VALUE = heads(0, B, T, H, D), heads(1, B, S, K, D), heads(2, B, S, K, D)
BIAS = heads(3, 1, H, T, S)
DENSE = heads(4, B, H, T, S) > -0.3
SEGMENTS = {
    "query_segments": jnp.array([[0, 0, 1, 1, 2], [0, 1, 1, 1, 4]]),
    "key_segments": jnp.array([[0, 1, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 3, 3]]),
}
MASKS = {
    "none": Mask(),
    "causal": Mask(causal=True),
    "window": Mask(causal=True, window=2),
    "lengths": Mask(query_lengths=jnp.array([5, 2]), key_lengths=jnp.array([7, 3])),
    "nothing": Mask(key_lengths=jnp.array([7, 0])),
    "segments": Mask(**SEGMENTS),
    "dense": Mask(dense=DENSE, key_lengths=jnp.array([3, 7])),
}


def by_loops(query, key, value, mask, *, bias=None, slopes=None, scale=None, softcap=None):
    """Attention one query at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    (b, t, h, d), (s, k) = query.shape, key.shape[1:3]
    allowed = np.broadcast_to(mask.to_dense(t, s), (b, h, t, s))
    output = np.zeros(query.shape)
    for row, i, head in np.ndindex(b, t, h):
        seen = np.flatnonzero(allowed[row, head, i])
        if not len(seen):
            continue
        shared = head // (h // k)
        logits = key[row, seen, shared] @ query[row, i, head]
        logits = logits * (1 / np.sqrt(d) if scale is None else scale)
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        if slopes is not None:
            logits = logits - float(slopes[head]) * np.abs(i - seen)
        if bias is not None:
            logits = logits + np.asarray(bias, np.float64)[0, head, i, seen]
        weights = np.exp(logits - logits.max())
        output[row, i, head] = weights / weights.sum() @ value[row, seen, shared]
    return output


@pytest.mark.parametrize("name", MASKS)
def test_masks_against_loops(name):
    got = dot_product_attention(QUERY, KEY, VALUE, mask=MASKS[name])
    assert_close(got, by_loops(QUERY, KEY, VALUE, MASKS[name]))


@pytest.mark.parametrize(
    "options",
    [
        {"bias": BIAS},
        {"alibi_slopes": alibi_slopes(H)},
        {"scale": 0.5},
        {"softcap": 0.7},
        {"bias": BIAS, "alibi_slopes": alibi_slopes(H), "scale": 2.0, "softcap": 3.0},
    ],
)
def test_options_against_loops(options):
    got = dot_product_attention(QUERY, KEY, VALUE, mask=MASKS["window"], **options)
    renamed = {"slopes" if k == "alibi_slopes" else k: v for k, v in options.items()}
    assert_close(got, by_loops(QUERY, KEY, VALUE, MASKS["window"], **renamed))


@settings(max_examples=6, deadline=None, database=None, derandomize=True)
@given(
    b=st.integers(1, 3),
    t=st.integers(1, 6),
    s=st.integers(1, 6),
    k=st.integers(1, 3),
    group=st.integers(1, 3),
    causal=st.booleans(),
)
def test_shapes_against_loops(b, t, s, k, group, causal):
    query, key, value = heads(5, b, t, k * group, 4), heads(6, b, s, k, 4), heads(7, b, s, k, 4)
    mask = Mask(causal=causal, key_lengths=jnp.arange(b) % s + 1)
    got = jax.jit(dot_product_attention)(query, key, value, mask=mask)
    assert_close(got, by_loops(query, key, value, mask))


def test_outputs_and_gradients_against_jax():
    lengths = jnp.array([7, 3])

    def ours(*args):
        return dot_product_attention(*args, mask=Mask(causal=True, key_lengths=lengths))

    def theirs(*args):
        return jax.nn.dot_product_attention(*args, is_causal=True, key_value_seq_lengths=lengths)

    def run(attend):
        def total(*args):
            output = attend(*args)
            return (output**2).sum(), output

        gradients, output = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(QUERY, KEY, VALUE)
        return output, gradients

    assert_close(run(ours), run(theirs), "gradient")


def test_grouped_heads_are_repeated_heads():
    repeated = [jnp.repeat(x, H // K, axis=2) for x in (KEY, VALUE)]
    grouped = dot_product_attention(QUERY, KEY, VALUE)
    assert_close(grouped, dot_product_attention(QUERY, *repeated))
    wrong = [jnp.tile(x, (1, 1, H // K, 1)) for x in (KEY, VALUE)]
    assert np.abs(grouped - dot_product_attention(QUERY, *wrong)).max() > 0.1


@pytest.mark.parametrize("options", [{}, {"alibi_slopes": alibi_slopes(H)}, {"softcap": 5.0}])
def test_causal_outputs_ignore_the_future_bit_for_bit(options):
    query, key, value = QUERY, KEY[:, :T], VALUE[:, :T]
    attend = jax.jit(lambda *args: dot_product_attention(*args, mask=Mask(causal=True), **options))
    before = attend(query, key, value)
    for i in range(T):
        changed = [x.at[:, i + 1 :].set(1e3 * i + 7.0) for x in (query, key, value)]
        after = attend(*changed)
        assert (after[:, : i + 1] == before[:, : i + 1]).all()


def padded(x: jax.Array, lengths: jax.Array, junk: float) -> jax.Array:
    beyond = jnp.arange(x.shape[1])[None] >= lengths[:, None]
    return jnp.where(beyond[:, :, None, None], junk, x)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_reaches_outputs_or_gradients(causal):
    query_lengths, key_lengths = jnp.array([5, 2]), jnp.array([4, 6])
    mask = Mask(causal=causal, query_lengths=query_lengths, key_lengths=key_lengths)

    @jax.jit
    def attended(junk):
        def total(query, key, value):
            # Padding inside the differentiated function: its gradient must not leak either.
            query = padded(query, query_lengths, junk)
            key, value = (padded(x, key_lengths, junk) for x in (key, value))
            output = dot_product_attention(query, key, value, mask=mask, alibi_slopes=slopes)
            return (output**2).sum(), output

        slopes = alibi_slopes(H)
        gradients, output = jax.grad(total, (0, 1, 2), has_aux=True)(QUERY, KEY, VALUE)
        return output, gradients

    expected = jax.tree.leaves(attended(0.0))
    for junk in (1e30, jnp.inf, jnp.nan):
        for got, wanted in zip(jax.tree.leaves(attended(junk)), expected, strict=True):
            assert (got == wanted).all()


def test_padding_that_a_dense_mask_hides_never_reaches_outputs():
    dense = DENSE & (jnp.arange(S) < 4)[None, None, None]
    clean = dot_product_attention(QUERY, KEY, VALUE, mask=Mask(dense=dense))
    broken = [x.at[:, 4:].set(jnp.nan) for x in (KEY, VALUE)]
    assert (dot_product_attention(QUERY, *broken, mask=Mask(dense=dense)) == clean).all()


def test_a_query_that_may_attend_to_nothing_gives_zeros_and_zero_gradients():
    mask = Mask(dense=jnp.ones((1, 1, T, S), bool).at[:, :, 2].set(False))

    def total(query, key, value):
        return (dot_product_attention(query, key, value, mask=mask)[:, 2] + 1.0).sum()

    output = dot_product_attention(QUERY, KEY, VALUE, mask=mask)
    assert (output[:, 2] == 0).all()
    assert (output[:, 1] != 0).all()
    for gradient in jax.grad(total, (0, 1, 2))(QUERY, KEY, VALUE):
        assert (gradient == 0).all()
    weights = attention_weights(QUERY, KEY, mask=mask)
    assert_close(weights.sum(-1), jnp.ones((B, H, T)).at[:, :, 2].set(0.0))


def test_packed_segments_attend_as_if_alone():
    first, second = slice(0, 2), slice(2, 5)
    segments = jnp.array([[0, 0, 1, 1, 1]] * B)
    key, value = KEY[:, :T], VALUE[:, :T]
    mask = Mask(causal=True, query_segments=segments, key_segments=segments)
    packed = dot_product_attention(QUERY, key, value, mask=mask)
    for part in (first, second):
        alone = dot_product_attention(
            QUERY[:, part], key[:, part], value[:, part], mask=Mask(causal=True)
        )
        assert_close(packed[:, part], alone)


def test_a_softcap_bounds_the_logits():
    # Two keys far apart: the capped logits differ by at most 2, hence the odds by at most e^2.
    query, key = jnp.ones((1, 1, 1, D)), jnp.stack([jnp.full((1, 1, D), x) for x in (9.0, -9.0)], 1)
    weights = attention_weights(query, key, softcap=1.0)[0, 0, 0]
    assert weights[0] / weights[1] == pytest.approx(np.e**2, rel=1e-4)


def test_logits_and_softmax_are_float32():
    low = [x.astype(jnp.bfloat16) for x in (QUERY, KEY, VALUE)]
    got = dot_product_attention(*low, mask=MASKS["causal"])
    assert got.dtype == jnp.bfloat16
    assert attention_weights(*low[:2]).dtype == jnp.float32
    exact = dot_product_attention(*(x.astype(jnp.float32) for x in low), mask=MASKS["causal"])
    assert_close(got, exact, dtype="bfloat16")


def test_logits_that_overflow_naive_exponentials_stay_finite():
    weights = attention_weights(1e3 * QUERY, 1e3 * KEY, mask=Mask(causal=True))
    assert_close(weights.sum(-1), jnp.ones((B, H, T)))


def test_entropy_is_zero_for_one_key_and_log_n_for_n_alike():
    uniform = attention_weights(jnp.zeros_like(QUERY), KEY, mask=Mask(causal=True))
    expected = jnp.broadcast_to(jnp.log(jnp.arange(1.0, T + 1)), (B, H, T))
    assert_close(attention_entropy(uniform), expected)
    assert (attention_entropy(jnp.eye(3)[None, None]) == 0).all()
    gradient = jax.grad(lambda q: attention_entropy(attention_weights(q, KEY)).sum())(QUERY)
    assert np.isfinite(gradient).all()


def test_dropout_needs_a_key_and_keeps_the_mean():
    plain = dot_product_attention(QUERY, KEY, VALUE)
    assert (dot_product_attention(QUERY, KEY, VALUE, dropout_rate=0.5) == plain).all()

    def sample(seed):
        return dot_product_attention(
            QUERY, KEY, VALUE, dropout_rate=0.5, dropout_key=jax.random.key(seed)
        )

    samples = np.asarray(jax.jit(jax.vmap(sample))(jnp.arange(1000)))
    assert np.abs(samples[0] - samples[1]).max() > 0.1
    standard_error = samples.std(axis=0) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - plain) < 6 * standard_error).all()


def test_heads_that_do_not_divide_are_refused():
    four = heads(0, B, S, 4, D)
    with pytest.raises(ValueError, match="num_heads=6 must be a multiple of num_kv_heads=4"):
        dot_product_attention(QUERY, four, four)
