"""Tiled attention against the reference formula: values, gradients, and what it may not read."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_kernels import attention, attention_and_log_sum_exp
from recipe_kernels.attention import tiled
from recipe_kernels.attention.dropout import kept
from recipe_kernels.attention.problem import make_problem
from tolerances import assert_close

from recipe_jax.layers.attention import dot_product_attention
from recipe_jax.layers.masks import Mask

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever tests ran before."""
    monkeypatch.setattr(sys.modules[__name__], "RNG", np.random.default_rng(0))


def draw(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), dtype)


def arrays(b=2, t=200, s=None, h=4, k=2, d=16, dtype=jnp.float32):
    s = t if s is None else s
    return draw(b, t, h, d, dtype=dtype), *(draw(b, s, k, d, dtype=dtype) for _ in range(2))


def segments(b: int, tokens: int, number: int = 4) -> jax.Array:
    return jnp.asarray(np.sort(RNG.integers(0, number, (b, tokens)), 1), jnp.int32)


def lengths(*found: int) -> jax.Array:
    return jnp.array(found, jnp.int32)


def values_and_gradients(attend, query, key, value, grad, **options):
    out, pull = jax.vjp(lambda *heads: attend(*heads, **options), query, key, value)
    return out, *pull(grad)


SLOPES = jnp.array([0.5, 0.25, 0.1, 0.05])
CASES = {
    "one tile": ({"t": 7, "s": 9}, Mask(), {}),
    "several": ({}, Mask(), {}),
    "causal": ({}, Mask(causal=True), {}),
    "causal, no multiple of a tile": ({"t": 257}, Mask(causal=True), {}),
    "fewer queries than keys": ({"t": 60, "s": 300}, Mask(causal=True), {}),
    "more queries than keys": ({"t": 300, "s": 60}, Mask(causal=True), {}),
    "heads of their own": ({"h": 3, "k": 3}, Mask(causal=True), {}),
    "one key head": ({"h": 4, "k": 1}, Mask(causal=True), {}),
    "window": ({"t": 300}, Mask(window=20), {}),
    "window, causal": ({"t": 300}, Mask(window=150, causal=True), {}),
    "queries that no window reaches": ({"t": 400, "s": 130}, Mask(window=20), {}),
    "prefix": ({"t": 300}, Mask(causal=True, prefix_lengths=lengths(200, 0)), {}),
    "lengths": (
        {"b": 3, "t": 300},
        Mask(query_lengths=lengths(300, 5, 20), key_lengths=lengths(10, 300, 0)),
        {},
    ),
    "segments": (
        {"t": 300},
        Mask(causal=True, query_segments=(found := segments(2, 300)), key_segments=found),
        {},
    ),
    "segments of another": (
        {"t": 40, "s": 300},
        Mask(query_segments=segments(2, 40), key_segments=segments(2, 300, 6)),
        {},
    ),
    "alibi": ({}, Mask(causal=True), {"alibi_slopes": SLOPES}),
    "alibi, both ways": ({}, Mask(), {"alibi_slopes": SLOPES}),
    "cap and scale": ({}, Mask(causal=True), {"softcap": 2.0, "scale": 0.7}),
    "all": (
        {"t": 300},
        Mask(
            causal=True,
            window=170,
            key_lengths=lengths(290, 100),
            query_segments=found,
            key_segments=found,
        ),
        {"alibi_slopes": SLOPES, "softcap": 3.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_reference(case):
    shape, mask, options = CASES[case]
    heads = arrays(**shape)
    grad = draw(*heads[0].shape)
    ours, reference = (
        jax.jit(lambda *given, attend=attend: values_and_gradients(attend, *given, **options))
        for attend in (
            lambda *x, **kw: attention(*x, mask=mask, implementation="tiled", **kw),
            lambda *x, **kw: dot_product_attention(*x, mask=mask, **kw),
        )
    )
    for found, expected in zip(ours(*heads, grad), reference(*heads, grad), strict=True):
        assert_close(found, expected)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape_and_mask(data):
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    b, t, s, k, group = number(1, 3), number(1, 40), number(1, 40), number(1, 2), number(1, 3)
    maybe = lambda value: value if data.draw(st.booleans()) else None  # noqa: E731
    several = lambda low, high: jnp.asarray(  # noqa: E731
        data.draw(st.lists(st.integers(low, high), min_size=b, max_size=b)), jnp.int32
    )
    causal = data.draw(st.booleans())
    mask = Mask(
        causal=causal,
        window=maybe(number(1, 40)),
        prefix_lengths=several(0, s) if causal and data.draw(st.booleans()) else None,
        query_lengths=maybe(several(0, t)),
        key_lengths=maybe(several(0, s)),
    )
    heads = arrays(b, t, s, k * group, k, 8)
    grad = draw(*heads[0].shape)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiled, "TILE_TOKENS", number(8, 24))
        found = values_and_gradients(attention, *heads, grad, mask=mask)
    expected = values_and_gradients(dot_product_attention, *heads, grad, mask=mask)
    for ours, reference in zip(found, expected, strict=True):
        assert_close(ours, reference)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_errs_at_most_twice_as_much_as_the_reference(dtype):
    heads = arrays(dtype=dtype)
    grad = draw(*heads[0].shape, dtype=dtype)
    wide = [x.astype(jnp.float32) for x in (*heads, grad)]
    options = {"mask": Mask(causal=True)}
    exact = values_and_gradients(dot_product_attention, *wide, **options)
    naive = values_and_gradients(dot_product_attention, *heads, grad, **options)
    ours = values_and_gradients(attention, *heads, grad, **options)
    for truth, plain, found in zip(exact, naive, ours, strict=True):
        assert found.dtype == dtype
        # Root mean squares: the largest of many roundings differs by chance.
        errors = [((x.astype(jnp.float32) - truth) ** 2).mean() ** 0.5 for x in (found, plain)]
        assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_padding_may_hold_anything(wrong):
    query, key, value = arrays(t=150)
    real = lengths(130, 20)
    inside = (jnp.arange(150)[None] < real[:, None])[..., None, None]
    grad = jnp.where(inside, draw(*query.shape), 0.0)
    mask = Mask(causal=True, query_lengths=real, key_lengths=real)
    clean = values_and_gradients(attention, query, key, value, grad, mask=mask)
    spoiled = [jnp.where(inside, x, wrong) for x in (query, key, value, grad)]
    for found, expected in zip(
        values_and_gradients(attention, *spoiled, mask=mask), clean, strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "mask",
    [Mask(causal=True), Mask(window=5), Mask(causal=True, window=5)],
    ids=["causal", "window", "both"],
)
def test_what_no_pair_uses_may_be_nan(mask):
    for t, s in ((150, 200), (200, 150)):
        query, key, value = arrays(t=t, s=s)
        grad = draw(*query.shape)
        allowed = mask.to_dense(t, s)[0, 0]
        asks, is_read = allowed.any(1)[None, :, None, None], allowed.any(0)[None, :, None, None]
        clean = values_and_gradients(attention, query, key, value, grad, mask=mask)
        spoiled = [
            jnp.where(used, x, jnp.nan)
            for used, x in ((asks, query), (is_read, key), (is_read, value), (asks, grad))
        ]
        found = values_and_gradients(attention, *spoiled, mask=mask)
        for ours, expected in zip(found, clean, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_a_query_of_a_segment_that_no_key_has_may_be_nan():
    query, key, value = arrays(t=20)
    of_query, of_key = jnp.full((2, 20), 7).at[:, :9].set(0), jnp.zeros((2, 20), jnp.int32)
    mask = Mask(query_segments=of_query, key_segments=of_key)
    grad = draw(*query.shape)
    spoiled = [x.at[:, 9:].set(jnp.nan) for x in (query, grad)]
    found = values_and_gradients(attention, spoiled[0], key, value, spoiled[1], mask=mask)
    expected = values_and_gradients(attention, query, key, value, grad, mask=mask)
    for ours, clean in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, clean)


def test_a_key_of_a_segment_that_no_query_has_is_never_read():
    query, key, value = arrays(t=20)
    of_query, of_key = jnp.zeros((2, 20), jnp.int32), jnp.full((2, 20), 7).at[:, :9].set(0)
    spoiled = [x.at[:, 9:].set(jnp.nan) for x in (key, value)]
    mask = Mask(query_segments=of_query, key_segments=of_key)
    grad = draw(*query.shape)
    found = values_and_gradients(attention, query, *spoiled, grad, mask=mask)
    expected = values_and_gradients(attention, query, key, value, grad, mask=mask)
    for ours, clean in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, clean)


def test_a_query_that_reads_nothing_gives_zeros_and_no_gradient():
    heads = arrays(b=2, t=150)
    mask = Mask(causal=True, key_lengths=lengths(150, 0))
    (out, lse), pull = jax.vjp(lambda *x: attention_and_log_sum_exp(*x, mask=mask), *heads)
    assert not out[1].any() and jnp.isneginf(lse[1]).all() and jnp.isfinite(lse[0]).all()
    for grad in pull((jnp.ones_like(out), jnp.ones_like(lse))):
        assert jnp.isfinite(grad).all() and not grad[1].any() and grad[0].any()


def test_the_log_sum_exp_and_its_gradient():
    query, key, value = arrays()
    mask = Mask(causal=True, key_lengths=lengths(200, 77))

    def by_hand(query, key):
        logits = jnp.einsum("btkgd,bskd->bkgts", query.reshape(2, 200, 2, 2, 16), key) / 4.0
        allowed = mask.to_dense(200, 200)[:, :, None]
        logits = jnp.where(allowed, logits, -jnp.inf).reshape(2, 4, 200, 200)
        return jax.nn.logsumexp(logits, axis=-1)

    def ours(query, key):
        return attention_and_log_sum_exp(query, key, value, mask=mask)[1]

    weights = draw(2, 4, 200)
    for found, expected in zip(
        *((f(query, key), *jax.vjp(f, query, key)[1](weights)) for f in (ours, by_hand)),
        strict=True,
    ):
        assert_close(found, expected)


def test_what_is_dropped_forwards_is_dropped_backwards():
    query, key, value = arrays(t=140)
    grad, secret = draw(*query.shape), jax.random.key(5)
    options = {"mask": Mask(causal=True), "dropout_rate": 0.3, "dropout_key": secret}
    seeds = jax.random.bits(secret, (2, 4), jnp.uint32)
    keep = kept(seeds, jnp.arange(140), jnp.arange(140), 0.3)
    share = keep[:, :, jnp.tril_indices(140)[0], jnp.tril_indices(140)[1]].mean()
    assert abs(float(share) - 0.7) < 0.01

    def by_hand(query, key, value):
        logits = jnp.einsum("bthd,bshd->bhts", query, jnp.repeat(key, 2, 2)) / 4.0
        weights = jax.nn.softmax(jnp.where(jnp.tri(140, dtype=bool)[None, None], logits, -jnp.inf))
        weights = jnp.where(keep, weights / 0.7, 0.0)
        return jnp.einsum("bhts,bshd->bthd", weights, jnp.repeat(value, 2, 2))

    ours = values_and_gradients(attention, query, key, value, grad, **options)
    for found, expected in zip(
        ours, values_and_gradients(by_hand, query, key, value, grad), strict=True
    ):
        assert_close(found, expected)
    undropped = attention(query, key, value, mask=Mask(causal=True), dropout_rate=0.3)
    np.testing.assert_array_equal(undropped, attention(query, key, value, mask=Mask(causal=True)))


def test_hashes_of_neighbours_are_independent():
    keep = kept(jnp.arange(64, dtype=jnp.uint32), jnp.arange(64), jnp.arange(64), 0.5)
    for axis in range(3):
        both = (keep & jnp.roll(keep, 1, axis)).mean()
        assert abs(float(both) - 0.25) < 0.01


def test_tiles_that_a_mask_empties_are_not_computed():
    query, key, value = arrays(t=1024)

    def tiles(mask: Mask) -> int:
        problem, operands = make_problem(
            query,
            key,
            value,
            mask=mask,
            alibi_slopes=None,
            scale=None,
            softcap=None,
            dropout_rate=0.0,
            dropout_key=None,
        )
        return len(tiled._Plan.of(problem.operands(operands), problem).tiles)

    assert tiles(Mask()) == 64 and tiles(Mask(causal=True)) == 36
    assert tiles(Mask(window=128)) == 22 and tiles(Mask(window=1, causal=True)) == 8


def test_memory_grows_with_the_tokens_and_not_with_their_square():
    def temporary(attend, tokens: int) -> int:
        heads = [jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)] * 4
        pull = jax.jit(lambda *x: values_and_gradients(attend, *x, mask=Mask(causal=True)))
        return pull.lower(*heads).compile().memory_analysis().temp_size_in_bytes

    assert temporary(attention, 2048) < temporary(dot_product_attention, 2048) / 8
    assert temporary(attention, 4096) < 2.5 * temporary(attention, 2048)


def test_it_goes_through_vmap_scan_remat_and_export():
    heads = [x[None] + jnp.zeros((3, 1, 1, 1, 1)) for x in arrays(t=20)]

    def total(query, key, value):
        return attention(query, key, value, mask=Mask(causal=True)).sum()

    one_by_one = jnp.stack([jax.grad(total)(*(x[i] for x in heads)) for i in range(3)])
    assert_close(jax.vmap(jax.grad(total))(*heads), one_by_one)
    assert_close(jax.lax.map(lambda x: jax.grad(jax.checkpoint(total))(*x), heads), one_by_one)
    exported = jax.export.export(jax.jit(jax.grad(total)), platforms=["cpu"])(
        *(x[0] for x in heads)
    )
    assert_close(exported.call(*(x[0] for x in heads)), one_by_one[0])


Q, K, V = arrays(b=2, t=6, s=9)
BAD = {
    "query has shape (6, 4, 16), must have 4 axes": ((Q[0], K, V), {}),
    "key has shape (2, 0, 2, 16), must not be empty": ((Q, K[:, :0], V), {}),
    "query has shape (0, 6, 4, 16), must not be empty": ((Q[:0], K, V), {}),
    "key has shape (2, 9, 2, 16), must be that of value, (2, 8, 2, 16)": ((Q, K, V[:, :8]), {}),
    "query has batch 1, must be that of key, 2": ((Q[:1], K, V), {}),
    "query has head width 8, must be that of key, 16": ((Q[..., :8], K, V), {}),
    "num_heads=3 must be a multiple of num_kv_heads=2": ((Q[:, :, :3], K, V), {}),
    "query, key and value have dtypes bfloat16, float32, float32": (
        (Q.astype(jnp.bfloat16), K, V),
        {},
    ),
    "mask.key_lengths has shape (3,), must have (2,)": (
        (Q, K, V),
        {"mask": Mask(key_lengths=lengths(1, 2, 3))},
    ),
    "mask.key_lengths holds 10, must be at most 9": (
        (Q, K, V),
        {"mask": Mask(key_lengths=lengths(1, 10))},
    ),
    "mask.query_lengths holds 7, must be at most 6": (
        (Q, K, V),
        {"mask": Mask(query_lengths=lengths(7, 1))},
    ),
    "mask.query_segments holds -1, must be at least 0": (
        (Q, K, V),
        {"mask": Mask(query_segments=jnp.full((2, 6), -1), key_segments=jnp.zeros((2, 9), int))},
    ),
    "alibi_slopes has shape (2,), must be (4,)": ((Q, K, V), {"alibi_slopes": SLOPES[:2]}),
    "dropout_rate=1.0 must be at least 0 and below 1": ((Q, K, V), {"dropout_rate": 1.0}),
    "softcap=0.0 must be positive": ((Q, K, V), {"softcap": 0.0}),
    "implementation='fast' must be one of": ((Q, K, V), {"implementation": "fast"}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_name(message, untyped):
    heads, options = BAD[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(*heads, **options)


def test_what_a_named_kernel_cannot_do_is_refused():
    bias = jnp.zeros((1, 1, 6, 9))
    with pytest.raises(NotImplementedError, match=r"attention\(tiled\): bias is a matrix"):
        attention(Q, K, V, bias=bias, implementation="tiled")
    assert_close(attention(Q, K, V, bias=bias), dot_product_attention(Q, K, V, bias=bias))
    with pytest.raises(NotImplementedError, match=r"attention\(any\): has not a log-sum-exp under"):
        attention_and_log_sum_exp(Q, K, V, mask=Mask(dense=jnp.ones((1, 1, 6, 9), bool)))
