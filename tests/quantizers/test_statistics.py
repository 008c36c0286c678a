"""Statistics of a catalogue's codes, by counting, and the known fault of counting a batch."""

import numpy as np
import pytest

from recipe_jax.quantizers.stability import prefix_agreement
from recipe_jax.quantizers.statistics import (
    code_counts,
    code_statistics,
    named_statistics,
    prefix_groups,
    reconstruction_error,
)

CODES = np.array([[0, 1], [0, 1], [0, 2], [3, 2]], np.int32)


def test_they_are_what_counting_by_hand_gives():
    found = code_statistics(CODES, 4)
    np.testing.assert_allclose(found.usage, [2 / 4, 2 / 4])
    first = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(found.perplexity, [np.exp(first), 2.0])
    # Given 0 the next is 1, 1 or 2; given 3 it is certain.
    second = 0.75 * -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    np.testing.assert_allclose(found.next_code_nats, [first, second])
    assert found.collision_rate == pytest.approx(1 - 3 / 4)
    assert found.largest_collision == 2
    np.testing.assert_array_equal(code_counts(CODES, 4), [[3, 0, 0, 1], [0, 2, 2, 0]])


def test_prefixes_are_told_apart_by_all_codes_up_to_a_level():
    groups = prefix_groups(np.array([[0, 1, 5], [1, 1, 5], [0, 1, 5], [0, 2, 5]]))
    np.testing.assert_array_equal(groups, [[0, 0, 0], [1, 2, 2], [0, 0, 0], [0, 1, 1]])


def test_of_codes_that_are_all_used_alike_perplexity_is_their_number():
    codes = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2)
    found = named_statistics(code_statistics(codes, 8))
    assert found["usage_0"] == found["usage_1"] == 1.0
    assert found["perplexity_1"] == pytest.approx(8.0)
    assert found["next_code_nats_1"] == pytest.approx(np.log(8))
    assert found["collision_rate"] == 0.0


def test_known_fault_usage_and_perplexity_of_a_batch_are_not_those_of_the_catalogue():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, size=(20_000, 3))
    codes[:10_000, 2] = codes[10_000:, 2]
    codes[:10_000] = codes[10_000:]  # every item has a twin
    whole = code_statistics(codes, 256)
    np.testing.assert_array_equal(whole.usage, 1.0)
    assert (whole.perplexity > 250).all()
    assert whole.collision_rate >= 0.5
    # What a mean over batches would have said.
    batches = [code_statistics(batch, 256) for batch in np.split(rng.permutation(codes), 200)]
    assert np.mean([batch.usage for batch in batches]) < 0.4
    assert np.mean([batch.perplexity for batch in batches]) < 90
    assert np.mean([batch.collision_rate for batch in batches]) < 0.01


def test_reconstruction_is_judged_beside_the_mean():
    vectors = np.random.default_rng(0).normal(size=(50, 3)) + 100
    assert reconstruction_error(vectors, vectors) == 0.0
    mean = np.tile(vectors.mean(axis=0), (50, 1))
    assert reconstruction_error(vectors, mean) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="all 3 rows are the same"):
        reconstruction_error(np.ones((3, 2)), np.ones((3, 2)))


def test_agreement_of_seeds_does_not_mind_names_and_takes_chance_off():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 8, size=(500, 2))
    renamed = np.stack([rng.permutation(8)[codes[:, 0]], rng.permutation(8)[codes[:, 1]]], axis=1)
    np.testing.assert_allclose(prefix_agreement([codes, renamed]), 1.0)
    # The second code means the same only after the same first one.
    shifted = np.stack([codes[:, 0], (codes[:, 1] + codes[:, 0]) % 8], axis=1)
    np.testing.assert_allclose(prefix_agreement([codes, shifted]), 1.0)
    other = rng.integers(0, 8, size=(500, 2))
    np.testing.assert_allclose(prefix_agreement([codes, other]), 0.0, atol=0.03)
    three = prefix_agreement([codes, renamed, other])
    assert three[0] == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: code_statistics(CODES[:0], 4), "hold no item"),
        (lambda: code_statistics(CODES, 3), "codes from 0 to 3 must be from 0 to 2"),
        (lambda: code_statistics(CODES - 1, 4), "codes from -1 to 2 must be"),
        (lambda: prefix_agreement([CODES]), "give two runs or more"),
        (lambda: prefix_agreement([CODES, CODES[:2]]), "of the same items"),
    ],
)
def test_what_cannot_be_counted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
