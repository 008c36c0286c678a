"""Tiled attention against the reference formula: values, gradients, and what it may not read."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


def lengths(*found: int) -> jax.Array:
    return jnp.array(found, jnp.int32)


def values_and_gradients(attend, query, key, value, grad, **options):
    out, pull = jax.vjp(lambda *heads: attend(*heads, **options), query, key, value)
    return out, *pull(grad)


SLOPES = jnp.array([0.5, 0.25, 0.1, 0.05])


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
    "softcap=inf must be positive and finite": ((Q, K, V), {"softcap": float("inf")}),
    "scale=nan must be finite": ((Q, K, V), {"scale": float("nan")}),
    "query has dtype int32, must be floating": ((Q.astype(int), K, V), {}),
    "bias has shape (1, 3, 6, 9), must have (2 or 1, 4 or 1, 6, 9)": (
        (Q, K, V),
        {"bias": jnp.zeros((1, 3, 6, 9))},
    ),
    "bias has shape (6, 9), must have": ((Q, K, V), {"bias": jnp.zeros((6, 9))}),
    "mask.dense has shape (1, 1, 6, 8), must have": (
        (Q, K, V),
        {"mask": Mask(dense=jnp.ones((1, 1, 6, 8), bool))},
    ),
    "implementation='fast' must be one of": ((Q, K, V), {"implementation": "fast"}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_by_name(message, untyped):
    heads, options = BAD[message]
    # The same whichever computes: a bias leaves it to the reference.
    for more in ({}, {"implementation": "reference"}, {"bias": jnp.zeros((1, 1, 6, 9))}):
        with pytest.raises(ValueError, match=re.escape(message)):
            attention(*heads, **more | options)


@pytest.mark.parametrize("window", [100, 2**31 - 1, 2**31, 2**40, np.int64(2**40)])
def test_a_window_of_any_size_is_no_window(window, untyped):
    given = Mask(window=window, key_lengths=lengths(9, 7))
    plain = attention(Q, K, V, mask=Mask(key_lengths=lengths(9, 7)))
    np.testing.assert_array_equal(attention(Q, K, V, mask=given), plain)


def test_a_real_nan_reaches_every_gradient_that_it_is_part_of():
    query = Q.at[1, 2, 3, 5].set(jnp.nan)
    grad = jnp.ones_like(Q)
    found, expected = (
        values_and_gradients(attend, query, K, V, grad)
        for attend in (attention, dot_product_attention)
    )
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(jnp.isnan(ours), jnp.isnan(theirs))


def test_calls_outside_jit_compile_once_and_work_without_jit():
    heads = arrays(b=1, t=7, h=3, k=1, d=8)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event)
    )
    first = attention(*heads)
    assert any("backend_compile" in event for event in compiled)
    compiled.clear()
    np.testing.assert_array_equal(attention(*heads), first)
    assert not any("backend_compile" in event for event in compiled)
    with jax.disable_jit():
        np.testing.assert_array_equal(attention(*heads), first)


def test_lengths_are_whole_numbers_and_so_is_a_window(untyped):
    with pytest.raises(ValueError, match=r"mask.key_lengths has dtype float32, must be whole"):
        attention(Q, K, V, mask=Mask(key_lengths=jnp.array([2.5, 3.0])))
    with pytest.raises(ValueError, match=r"window=2.5 must be a whole number"):
        Mask(window=2.5)


def test_nothing_to_map_over_is_refused():
    heads = [x[None][:0] for x in (Q, K, V)]
    with pytest.raises(ValueError, match="attention_forward: vmap is over an axis of size 0"):
        jax.vmap(attention)(*heads)


def test_what_a_named_kernel_cannot_do_is_refused():
    bias = jnp.zeros((1, 1, 6, 9))
    with pytest.raises(NotImplementedError, match=r"attention\(tiled\): bias is a matrix"):
        attention(Q, K, V, bias=bias, implementation="tiled")
    assert_close(attention(Q, K, V, bias=bias), dot_product_attention(Q, K, V, bias=bias))
    with pytest.raises(NotImplementedError, match=r"attention\(any\): has not a log-sum-exp under"):
        attention_and_log_sum_exp(Q, K, V, mask=Mask(dense=jnp.ones((1, 1, 6, 9), bool)))
