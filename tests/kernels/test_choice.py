"""One function for every platform: which kernel it becomes, what it is told, what it says."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import DisabledSafetyCheck, deserialize, export
from recipe_kernels import attention, op
from recipe_kernels.attention import fused
from tolerances import assert_close

from recipe_jax.layers.attention import dot_product_attention
from recipe_jax.layers.masks import Mask

RNG = np.random.default_rng(0)
DEVICE = jax.sharding.AbstractDevice(platform="tpu", device_kind="TPU v5 lite", num_cores=1)
TPU = jax.sharding.AbstractMesh((1,), ("_",), abstract_device=DEVICE)


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_one_artefact_runs_here_and_calls_the_kernels_of_each_platform():
    pytest.importorskip("triton")
    query = draw(2, 130, 4, 32)
    gradient = jax.jit(jax.grad(lambda x: attention(x, x, x, mask=Mask(causal=True)).sum()))
    known = [DisabledSafetyCheck.custom_call("triton_kernel_call")]
    with jax.sharding.use_abstract_mesh(TPU):
        made = export(gradient, platforms=("cpu", "cuda", "tpu"), disabled_checks=known)(query)
    text = made.mlir_module()
    assert text.count("@triton_kernel_call") == 4 and text.count("@tpu_custom_call") == 3
    read = deserialize(made.serialize())
    np.testing.assert_array_equal(read.call(query), gradient(query))


def test_every_argument_is_what_it_is_for_the_reference():
    query, key, value = draw(2, 30, 4, 16), draw(2, 40, 2, 16), draw(2, 40, 2, 16)
    segments = jnp.asarray(np.sort(RNG.integers(0, 3, (2, 40)), 1), jnp.int32)
    mask = Mask(
        causal=True,
        window=25,
        prefix_lengths=jnp.array([5, 20]),
        query_lengths=jnp.array([30, 11]),
        key_lengths=jnp.array([33, 40]),
        query_segments=segments[:, :30],
        key_segments=segments,
    )
    options = {"alibi_slopes": jnp.array([0.5, 0.25, 0.1, 0.0]), "scale": 0.4, "softcap": 3.0}
    for given in ({}, options):
        ours, reference = (
            jax.vjp(functools.partial(attend, mask=mask, **given), query, key, value)
            for attend in (attention, dot_product_attention)
        )
        assert_close(ours[0], reference[0])
        assert_close(ours[1](query), reference[1](query), "gradient")


def test_a_bias_and_a_dense_mask_are_left_to_the_reference_and_the_log_says_so(caplog):
    query, bias = draw(1, 20, 2, 8), draw(1, 1, 20, 20)
    fused._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        found = attention(query, query, query, bias=bias)
        attention(query, query, query, bias=bias)
    assert_close(found, dot_product_attention(query, query, query, bias=bias))
    assert caplog.text.count("attention with bias: reference") == 1
    with pytest.raises(NotImplementedError, match="bias is a matrix of queries by keys"):
        attention(query, query, query, bias=bias, implementation="tiled")


def test_the_log_says_once_what_was_chosen(caplog):
    op._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "recipe_kernels"):
        for tokens in (9, 10):
            attention(*[draw(1, tokens, 2, 8)] * 3)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["attention_forward on cpu: tiled"]


def test_double_precision_elsewhere_does_not_disturb():
    query = draw(1, 150, 2, 8)
    expected = jax.grad(lambda x: attention(x, x, x).sum())(query)
    with jax.enable_x64(True):
        found = jax.grad(lambda x: attention(x, x, x).sum())(query)
    assert found.dtype == jnp.float32
    assert_close(found, expected, "gradient")
