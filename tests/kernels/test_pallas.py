"""What the TPU kernels lower to, which tiles they walk over, what they refuse."""

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
from recipe_kernels.attention import cases, pallas_tpu
from recipe_kernels.attention.cases import LONG
from recipe_kernels.attention.fused import attend
from recipe_kernels.attention.live_tiles import Reach, ranges
from recipe_kernels.attention.pallas_plan import make_plan
from recipe_kernels.attention.problem import make_problem
from recipe_kernels.op import _say_once

from recipe_jax.layers.masks import Mask

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


def lengths(*found: int) -> jax.Array:
    return jnp.array(found, jnp.int32)


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


@pytest.mark.parametrize(
    "case", [case for case in LONG if case.dtype == "float32"], ids=lambda case: case.name
)
def test_every_feature_lowers_for_tpu(case):
    drawn = cases.draw(case._replace(dtype="bfloat16"))

    def both(arrays, out_grad, log_sum_grad):
        results, transpose = jax.vjp(functools.partial(attend, drawn.problem, "pallas"), arrays)
        return results, transpose((out_grad, log_sum_grad))

    given = (tuple(map(jnp.asarray, drawn.arrays)), drawn.out_grad, drawn.log_sum_grad)
    with jax.sharding.use_abstract_mesh(TPU):
        assert calls(jax.jit(both).trace(*given).lower(lowering_platforms=("tpu",))) == 3


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
    with pytest.raises(NotImplementedError, match=rf"attention\(pallas\): .*{limit}"):
        jax.eval_shape(functools.partial(gradients, implementation="pallas"), *given)
    unnamed = jax.jit(gradients).trace(*given)
    _say_once.cache_clear()
    with jax.sharding.use_abstract_mesh(TPU), caplog.at_level(logging.INFO):
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
