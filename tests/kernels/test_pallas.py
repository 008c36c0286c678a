"""The TPU kernels, interpreted on the CPU, against the reference formula; what they lower to."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_kernels import attention
from recipe_kernels.attention import pallas_plan, pallas_tpu
from recipe_kernels.attention.dropout import kept
from recipe_kernels.attention.live_tiles import Reach, ranges
from recipe_kernels.attention.pallas_plan import make_plan
from recipe_kernels.attention.problem import make_problem
from recipe_kernels.op import _say_once
from tolerances import assert_close

from recipe_jax.layers.attention import attention_weights, dot_product_attention
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import alibi_bias

RNG = np.random.default_rng(0)
NO_OPTIONS = dict.fromkeys(("alibi_slopes", "scale", "softcap", "dropout_key"))
DEVICE = jax.sharding.AbstractDevice(platform="tpu", device_kind="TPU v5 lite", num_cores=1)
TPU = jax.sharding.AbstractMesh((1,), ("_",), abstract_device=DEVICE)
SLOPES = jnp.array([0.5, 0.25, 0.1, 0.05])


def draw(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), dtype)


def arrays(b=2, t=200, s=None, h=4, k=2, d=16, dtype=jnp.float32):
    s = t if s is None else s
    return draw(b, t, h, d, dtype=dtype), *(draw(b, s, k, d, dtype=dtype) for _ in range(2))


def segments(b: int, tokens: int, number: int = 4) -> jax.Array:
    return jnp.asarray(np.sort(RNG.integers(0, number, (b, tokens)), 1), jnp.int32)


def lengths(*found: int) -> jax.Array:
    return jnp.array(found, jnp.int32)


def packed(t: int, s: int | None = None, **rest) -> Mask:
    found = segments(2, t)
    other = found if s is None else segments(2, s, 6)
    return Mask(query_segments=found, key_segments=other, **rest)


def kernels(*heads, out_grad, lse_grad, mask, **options):
    """Output, log-sum-exp and the three gradients, by tiles of 128."""
    problem, given = make_problem(
        *heads, mask=mask, **(NO_OPTIONS | {"dropout_rate": 0.0} | options)
    )
    interpreted = {"problem": problem, "interpret": True}
    out, lse = pallas_tpu.forward(*given, **interpreted)
    found = pallas_tpu.backward(*given, out, lse, out_grad, lse_grad, **interpreted)
    return out, lse, *found


def log_sum_exp(query, key, *, mask, alibi_slopes=None, scale=None, softcap=None):
    (t, h, d), (s, k) = query.shape[1:], key.shape[1:3]
    key = jnp.repeat(key, h // k, axis=2)
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    logits *= d**-0.5 if scale is None else scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if alibi_slopes is not None:
        logits += alibi_bias(alibi_slopes, jnp.arange(t)[None], jnp.arange(s)[None])
    allowed = jnp.broadcast_to(mask.to_dense(t, s), logits.shape)
    found = jax.nn.logsumexp(jnp.where(allowed, logits, -1e30), axis=-1)
    return jnp.where(allowed.any(-1), found, -jnp.inf)


def dropped_attention(query, key, value, *, dropout_rate, dropout_key, **options):
    """The reference formula with the weights dropped that kernels drop."""
    (b, t, h, _), (s, k) = query.shape, key.shape[1:3]
    seeds = jax.random.bits(dropout_key, (b, h), jnp.uint32)
    keep = kept(seeds, jnp.arange(t), jnp.arange(s), dropout_rate)
    weights = attention_weights(query, key, **options) * keep / (1.0 - dropout_rate)
    return jnp.einsum("bhts,bshd->bthd", weights, jnp.repeat(value, h // k, axis=2))


def reference(*heads, out_grad, lse_grad, mask, dropout_rate=0.0, dropout_key=None, **options):
    def both(query, key, value):
        attend = dot_product_attention
        if dropout_key is not None:
            drops = {"dropout_rate": dropout_rate, "dropout_key": dropout_key}
            attend = functools.partial(dropped_attention, **drops)
        out = attend(query, key, value, mask=mask, **options)
        return out, log_sum_exp(query, key, mask=mask, **options)

    found, pull = jax.vjp(both, *heads)
    return *found, *pull((out_grad, lse_grad))


CASES = {
    "one tile, few tokens": ({"t": 7, "s": 9}, Mask(), {}),
    "several tiles, one key head": ({"t": 300, "s": 130, "k": 1}, Mask(), {"scale": 0.7}),
    "causal": ({"t": 300}, Mask(causal=True), {}),
    "causal, fewer queries than keys": ({"t": 60, "s": 300, "k": 4}, Mask(causal=True), {}),
    "causal, more queries than keys": ({"t": 300, "s": 60}, Mask(causal=True), {}),
    "window": ({"t": 520, "h": 2, "k": 1}, Mask(window=20), {}),
    "window, causal": ({"t": 300}, Mask(window=150, causal=True), {}),
    "queries that no window reaches": ({"t": 300, "s": 130}, Mask(window=20), {}),
    "prefix": ({"t": 300}, Mask(causal=True, prefix_lengths=lengths(200, 0)), {}),
    "lengths, rows with nothing": (
        {"b": 3, "t": 200, "s": 300},
        Mask(query_lengths=lengths(200, 5, 20), key_lengths=lengths(140, 300, 0)),
        {},
    ),
    "segments": ({"t": 300}, packed(300, causal=True), {}),
    "segments of another": ({"t": 40, "s": 300}, packed(40, 300), {}),
    "alibi, causal": ({}, Mask(causal=True), {"alibi_slopes": SLOPES}),
    "alibi, both ways, wide heads": ({"d": 130}, Mask(), {"alibi_slopes": SLOPES}),
    "cap": ({"d": 72}, Mask(causal=True), {"softcap": 2.0}),
    "dropout": ({"t": 140}, Mask(causal=True), {"dropout_rate": 0.3}),
    "all": (
        {"t": 300},
        packed(300, causal=True, window=170, key_lengths=lengths(290, 100)),
        {"alibi_slopes": SLOPES, "softcap": 3.0, "dropout_rate": 0.1},
    ),
}


@pytest.fixture
def small_tiles(monkeypatch):
    smallest = dict.fromkeys(pallas_plan.MOST_TILE_TOKENS, 128)
    monkeypatch.setattr(pallas_plan, "MOST_TILE_TOKENS", smallest)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_reference(case, small_tiles):
    shape, mask, options = CASES[case]
    if "dropout_rate" in options:
        options = options | {"dropout_key": jax.random.key(3)}
    heads = arrays(**shape)
    b, t, h, _ = heads[0].shape
    grads = {"out_grad": draw(*heads[0].shape), "lse_grad": draw(b, h, t)}
    found, expected = (
        jax.jit(functools.partial(compute, mask=mask, **options))(*heads, **grads)
        for compute in (kernels, reference)
    )
    np.testing.assert_array_equal(np.isneginf(found[1]), np.isneginf(expected[1]))
    (out, lse, *of_heads), (true_out, true_lse, *true_of_heads) = (
        [jnp.where(jnp.isneginf(x), 0.0, x) for x in result] for result in (found, expected)
    )
    assert_close((out, lse), (true_out, true_lse))
    assert_close(of_heads, true_of_heads, "gradient")


def test_bfloat16_errs_at_most_twice_as_much_as_the_reference_formula(small_tiles):
    heads = arrays(t=256, d=64, dtype=jnp.bfloat16)
    out_grad = draw(*heads[0].shape, dtype=jnp.bfloat16)
    lse_grad, mask = jnp.zeros((2, 4, 256)), Mask(causal=True)
    run = lambda compute, dtype: jax.jit(functools.partial(compute, mask=mask))(  # noqa: E731
        *(x.astype(dtype) for x in heads), out_grad=out_grad.astype(dtype), lse_grad=lse_grad
    )
    exact = run(reference, jnp.float32)
    ours, naive = run(kernels, jnp.bfloat16), run(reference, jnp.bfloat16)
    names = ("out", "lse", "query", "key", "value")
    for name, true, *low in zip(names, exact, ours, naive, strict=True):
        of_ours, of_naive = (float(jnp.abs(x.astype(jnp.float32) - true).max()) for x in low)
        assert of_ours <= 2 * of_naive + 1e-6, (name, of_ours, of_naive)


NAN_CASES = {
    "lengths": Mask(query_lengths=lengths(150, 20), key_lengths=lengths(200, 30)),
    "segments": Mask(
        query_segments=jnp.where(jnp.arange(200)[None] < lengths(150, 20)[:, None], 0, 1),
        key_segments=jnp.where(jnp.arange(260)[None] < lengths(200, 30)[:, None], 0, 2),
    ),
    "causal, no query reaches the key": Mask(causal=True),
    "window, no key reaches the query": Mask(window=3, key_lengths=lengths(50, 30)),
}


@pytest.mark.parametrize("case", NAN_CASES)
def test_what_no_pair_holds_may_be_nan(case, small_tiles):
    mask = NAN_CASES[case]
    query, key, value = arrays(t=200, s=260)
    grads = {"out_grad": draw(*query.shape), "lse_grad": draw(2, 4, 200)}
    allowed = mask.to_dense(200, 260)
    queries, keys = (
        jnp.broadcast_to(allowed.any(axis=axes), (2, n))[:, :, None, None]
        for axes, n in (((1, 3), 200), ((1, 2), 260))
    )
    assert not (queries.all() and keys.all())
    compute = jax.jit(functools.partial(kernels, mask=mask))
    clean = compute(query, key, value, **grads)
    grads["out_grad"] = jnp.where(queries, grads["out_grad"], jnp.nan)
    key, value = (jnp.where(keys, x, jnp.nan) for x in (key, value))
    found = compute(jnp.where(queries, query, jnp.nan), key, value, **grads)
    for dirty, expected in zip(found, clean, strict=True):
        np.testing.assert_array_equal(dirty, expected)


def test_all_bits_are_the_same_in_every_run():
    heads = arrays(t=300)
    grads = {"out_grad": draw(*heads[0].shape), "lse_grad": draw(2, 4, 300)}
    compute = jax.jit(functools.partial(kernels, mask=Mask(causal=True)))
    for one, other in zip(compute(*heads, **grads), compute(*heads, **grads), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_live_tiles_are_those_that_hold_a_pair(data):
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    maybe = lambda draw: draw() if data.draw(st.booleans()) else None  # noqa: E731
    # Few shapes: each is compiled.
    b, (t, s, x, y) = 2, data.draw(st.sampled_from([(20, 20, 5, 5), (9, 30, 4, 7), (30, 9, 7, 2)]))
    several = lambda high: lengths(*(number(0, high) for _ in range(b)))  # noqa: E731
    causal = data.draw(st.booleans())
    mask = Mask(
        causal=causal,
        window=maybe(lambda: number(1, 30)),
        prefix_lengths=several(s) if causal and data.draw(st.booleans()) else None,
        query_lengths=maybe(lambda: several(t)),
        key_lengths=maybe(lambda: several(s)),
    )
    heads = arrays(b, t, s, 1, 1, 8)
    problem, given = make_problem(*heads, mask=mask, dropout_rate=0.0, **NO_OPTIONS)
    operands = problem.operands(given)
    reach = Reach(problem, operands)
    dense = np.broadcast_to(mask.to_dense(t, s)[:, 0], (b, t, s))
    for found, axis in zip(reach.reads(), (2, 1), strict=True):
        np.testing.assert_array_equal(
            np.broadcast_to(found, (b, (t, s)[axis == 1])), dense.any(axis)
        )
    whole = np.pad(dense, ((0, 0), (0, -t % x), (0, -s % y)))
    expected = whole.reshape(b, -(-t // x), x, -(-s // y), y).any(axis=(2, 4))
    live = reach.live_tiles(x, y)
    np.testing.assert_array_equal(np.broadcast_to(live, expected.shape), expected)
    plan = dataclasses.replace(make_plan(operands, problem), x=x, y=y)
    assert live.shape[0] == (b if plan.rows_differ else 1)
    for found, steps in ((live, plan.key_steps), (live.mT, plan.query_steps)):
        assert ranges(found)[1].max() <= steps


def test_tiles_of_other_segments_are_not_walked_over():
    found = jnp.repeat(jnp.arange(4), 64)[None]
    heads = arrays(1, 256, h=1, k=1)
    mask = Mask(causal=True, query_segments=found, key_segments=found)
    problem, given = make_problem(*heads, mask=mask, dropout_rate=0.0, **NO_OPTIONS)
    live = Reach(problem, problem.operands(given)).live_tiles(32, 32)
    first, count = ranges(live)
    np.testing.assert_array_equal(first, [0, 0, 2, 2, 4, 4, 6, 6])
    np.testing.assert_array_equal(count, [1, 2] * 4)


def gradients(query, key, value, key_lengths, **options):
    def total(*heads):
        mask = Mask(causal=True, key_lengths=key_lengths)
        return attention(*heads, mask=mask, alibi_slopes=SLOPES, **options).sum()

    return jax.grad(total, (0, 1, 2))(query, key, value)


def calls(lowered) -> int:
    return lowered.as_text().count("@tpu_custom_call")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_traced_function_lowers_for_cpu_and_for_tpu(dtype):
    given = (*arrays(t=640, d=80, dtype=dtype), lengths(640, 100))
    with jax.sharding.use_abstract_mesh(TPU):
        traced = jax.jit(gradients).trace(*given)
        on = {
            p: calls(traced.lower(lowering_platforms=p))
            for p in (("cpu",), ("tpu",), ("cpu", "tpu"))
        }
    assert on == {("cpu",): 0, ("tpu",): 3, ("cpu", "tpu"): 3}


@pytest.mark.parametrize("case", CASES)
def test_every_case_lowers_for_tpu(case):
    shape, mask, options = CASES[case]
    if "dropout_rate" in options:
        options = options | {"dropout_key": jax.random.key(3)}
    heads = arrays(**shape, dtype=jnp.bfloat16)
    compute = lambda *heads: jax.vjp(  # noqa: E731
        lambda *x: attention(*x, mask=mask, implementation="pallas", **options), *heads
    )[1](heads[0])
    with jax.sharding.use_abstract_mesh(TPU):
        assert calls(jax.jit(compute).trace(*heads).lower(lowering_platforms=("tpu",))) == 3


def test_results_vary_over_the_axes_of_a_mesh():
    mesh = jax.sharding.AbstractMesh((2, 2), ("rows", "heads"), abstract_device=DEVICE)
    mask = Mask(causal=True, key_lengths=lengths(256, 3))
    heads = arrays(t=256, d=64)
    problem, given = make_problem(*heads, mask=mask, dropout_rate=0.0, **NO_OPTIONS)

    def both(*arrays):
        out, lse = pallas_tpu.forward(*arrays, problem=problem)
        return pallas_tpu.backward(*arrays, out, lse, out, lse, problem=problem)

    of_heads = jax.P("rows", None, "heads")
    specs = (of_heads,) * 3 + (jax.P("rows"),)
    split = jax.shard_map(both, mesh=mesh, in_specs=specs, out_specs=of_heads, check_vma=True)
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))
        for x, spec in zip(given, specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(split).trace(*shapes).lower(lowering_platforms=("tpu",))
    assert calls(lowered) == 3
    assert "all_gather" not in lowered.as_text()


REFUSED = {
    "float16 is neither bfloat16 nor float32": arrays(t=8, dtype=jnp.float16),
    "head width 264 is above 256": arrays(t=8, d=264),
    "bytes of lengths, slopes, seeds": tuple(
        jax.ShapeDtypeStruct((2**16, 1, heads, 8), jnp.float32) for heads in (4, 2, 2)
    ),
    "float16 is neither bfloat16 nor float32; head width 264": arrays(
        t=8, d=264, dtype=jnp.float16
    ),
}


@pytest.mark.parametrize("limit", REFUSED)
def test_what_it_cannot_do_is_refused_by_name(limit, caplog):
    heads = REFUSED[limit]
    given = (*heads, jax.ShapeDtypeStruct(heads[0].shape[:1], jnp.int32))
    named = jax.jit(functools.partial(gradients, implementation="pallas")).trace(*given)
    unnamed = jax.jit(gradients).trace(*given)
    _say_once.cache_clear()
    with jax.sharding.use_abstract_mesh(TPU), caplog.at_level(logging.INFO):
        with pytest.raises(NotImplementedError, match=rf"attention\(pallas\): .*{limit}"):
            named.lower(lowering_platforms=("tpu",))
        assert calls(unnamed.lower(lowering_platforms=("tpu",))) == 0
    assert "on tpu: tiled, not pallas: " in caplog.text
    assert limit in caplog.text


def test_called_by_itself_it_refuses_too():
    problem, given = make_problem(*arrays(t=8, d=264), mask=Mask(), dropout_rate=0.0, **NO_OPTIONS)
    with pytest.raises(NotImplementedError, match="head width 264"):
        pallas_tpu.forward(*given, problem=problem, interpret=True)


def test_another_platform_is_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"attention\(pallas\): runs on tpu, not on cpu"):
        attention(*arrays(t=8), implementation="pallas")
