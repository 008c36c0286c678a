"""Implementations that run on a CPU, on the shared cases, against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from random_cases import cases
from recipe_kernels.attention import pallas_plan, pallas_tpu, tiled
from recipe_kernels.attention.cases import LONG, SHORT, Case, Drawn, draw, judge, naive
from recipe_kernels.attention.exact import Results, exact

CASES = {case.name: case for case in (*LONG, *SHORT)}
FEATURES = (
    "window",
    "prefix_lengths",
    "query_lengths",
    "key_lengths",
    "segments",
    "alibi",
    "softcap",
    "dropout_rate",
)


@pytest.fixture
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few tokens; and several chunks of so few rows, some with one left over."""
    monkeypatch.setattr(tiled, "TILE_TOKENS", 32)
    monkeypatch.setattr(tiled, "TILE_BYTES", 2**13)
    smallest = dict.fromkeys(pallas_plan.MOST_TILE_TOKENS, 128)
    monkeypatch.setattr(pallas_plan, "MOST_TILE_TOKENS", smallest)


def run(kernels, drawn: Drawn, **options) -> Results:
    @jax.jit
    def both(arrays, out_grad, log_sum_grad):
        out, log_sums = kernels.forward(*arrays, problem=drawn.problem, **options)
        results = (*arrays, out, log_sums, out_grad, log_sum_grad)
        return out, log_sums, *kernels.backward(*results, problem=drawn.problem, **options)

    found = both(tuple(map(jnp.asarray, drawn.arrays)), drawn.out_grad, drawn.log_sum_grad)
    return Results(*(np.asarray(x, np.float64) for x in found))


def check(drawn: Drawn, found: Results) -> None:
    for name, verdict in judge(drawn, found).items():
        assert verdict.error <= verdict.bound, name


@pytest.mark.parametrize("name", CASES)
def test_tiles(name, several_tiles):
    drawn = draw(CASES[name])
    check(drawn, run(tiled, drawn))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].dtype != "float16"])
def test_pallas(name, several_tiles):
    drawn = draw(CASES[name])
    check(drawn, run(pallas_tpu, drawn, interpret=True))


@settings(max_examples=10, deadline=None)
@given(cases())
def test_tiles_of_any_problem(case: Case):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiled, "TILE_TOKENS", 24)
        drawn = draw(case)
        check(drawn, run(tiled, drawn))


@settings(max_examples=10, deadline=None)
@given(cases(dtypes=("float32", "bfloat16")))
def test_pallas_on_any_problem(case: Case):
    drawn = draw(case)
    check(drawn, run(pallas_tpu, drawn, interpret=True))


@pytest.mark.parametrize(
    "name", ["lengths, causal, window", "prefix", "segments, window, lengths", "grouped heads",
             "alibi, causal prefix", "softcap, alibi, causal", "cross", "short prefix"],
)  # fmt: skip
def test_the_formula_is_that_of_the_reference_layer(name):
    drawn = draw(CASES[name])
    for result, found, expected in zip(
        Results._fields,
        naive(drawn),
        exact(*drawn._replace(log_sum_grad=0 * drawn.log_sum_grad)),
        strict=True,
    ):
        if result != "log_sums":
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_in_long_cases_and_in_short_ones(feature):
    for group in (LONG, SHORT):
        assert any(getattr(case, feature) for case in group)


def test_short_cases_are_short():
    assert all(max(case.t, case.s) <= 64 for case in SHORT)
