"""Packed batches: every token in its place, nothing twice, the same batch for the same number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_jax.data.packing import (
    PackingPlan,
    TokenSequences,
    all_batches,
    make_batch,
    pack_rows,
    split_long,
    token_batches,
)

SEQUENCES = TokenSequences.of(
    [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10]],
    [[1, 1, 0], [1, 1], [0, 1, 1, 1], [1]],
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10), max_size=40), st.randoms(use_true_random=False))
def test_every_sequence_lies_in_one_row_that_has_room(lengths, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    lengths = np.array(lengths, np.int64)
    rows = pack_rows(lengths, np.array(order, np.int64), 10)
    assert sorted(number for row in rows for number in row) == sorted(order)
    assert all(lengths[row].sum() <= 10 for row in rows)
    # Best fit: no two rows could have been one, but for the order of arrival.
    assert len(rows) <= 2 * -(-lengths.sum() // 10) + 1


def test_a_batch_is_its_sequences_side_by_side():
    batch = make_batch(SEQUENCES, [[2, 1], [0]], 7)
    assert batch.tokens.tolist() == [[6, 7, 8, 9, 4, 5, 0], [1, 2, 3, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0]]
    # A first token is never predicted, and neither is what has no weight.
    assert batch.weights.tolist() == [[0, 1, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("size", [2, 3, 4, 20])
def test_long_sequences_are_cut_so_that_every_token_is_predicted_once(size):
    pieces = split_long(SEQUENCES, size)
    predicted = []
    for start, stop in zip(pieces.offsets, pieces.offsets[1:], strict=False):
        assert stop - start <= size
        predicted += pieces.tokens[start + 1 : stop].tolist()
    assert predicted == [2, 3, 5, 7, 8, 9]
    assert pieces.tokens[pieces.offsets[-2] :].tolist() == [10]


def test_batches_follow_from_their_number_and_hold_an_epoch():
    rng = np.random.default_rng(0)
    sequences = TokenSequences.of([list(range(n)) for n in rng.integers(2, 9, 60)])
    plan = PackingPlan(sequences, num_tokens=8, batch_size=3, seed=5)
    again = PackingPlan(sequences, num_tokens=8, batch_size=3, seed=5)
    seen = [
        number for i in range(plan.batches_per_epoch) for row in plan.batch(i) for number in row
    ]
    assert len(seen) == len(set(seen)) >= 0.7 * len(sequences)
    later = 2 * plan.batches_per_epoch + 1
    assert plan.batch(later) == again.batch(later) != plan.batch(1)


def test_the_stream_resumes_where_it_was():
    def stream():
        return iter(token_batches(SEQUENCES, num_tokens=5, batch_size=1, seed=0))

    first = stream()
    batches = [next(first) for _ in range(4)]
    second = stream()
    next(second)
    state = second.get_state()
    third = stream()
    third.set_state(state)
    for expected in batches[1:]:
        np.testing.assert_array_equal(next(third).tokens, expected.tokens)


def test_evaluation_reads_everything_once():
    found = np.zeros(11)
    for batch in all_batches(SEQUENCES, num_tokens=4, batch_size=2):
        assert batch.tokens.shape == (2, 4)
        np.add.at(found, batch.tokens[batch.segments > 0], 1)
    assert found[1:].tolist() == [1] * 10


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="sequence 2 has 4 tokens, must be at most num_tokens=3"):
        pack_rows(SEQUENCES.lengths, np.arange(4), 3)
    with pytest.raises(ValueError, match="batch_size=9 rows"):
        PackingPlan(SEQUENCES, num_tokens=5, batch_size=9, seed=0)
    with pytest.raises(ValueError, match="num_tokens=1 must be at least 2"):
        split_long(SEQUENCES, 1)
