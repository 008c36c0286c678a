"""Llama, Qwen2 and Qwen3 of the transformers library: logits, greedy texts, and back again."""

import pytest

from benchmarks.parity import (
    CASES,
    Twins,
    export_difference,
    gradient_differences,
    greedy_texts,
    logit_difference,
    make_twins,
)

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=CASES)
def twins(request, tmp_path_factory) -> Twins:
    pytest.importorskip("torch")
    return make_twins(request.param, tmp_path_factory.mktemp("checkpoint"))


def test_logits_agree(twins):
    assert logit_difference(twins) < 1e-5


def test_gradients_agree(twins):
    for name, difference in gradient_differences(twins):
        assert difference < 2e-5, name


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_texts_of_ragged_prompts_are_identical(twins, penalty):
    for found, expected in greedy_texts(twins, penalty):
        assert len(found) == 128 and found == expected


def test_what_we_write_transformers_loads_with_the_same_logits(twins, tmp_path):
    assert export_difference(twins, tmp_path) == 0.0
