"""Batches of histories: every next item once an epoch, the latest items where a user is asked."""

import itertools

import numpy as np
import pytest

from recipe_jax.data.history_batches import next_item_batches, padded_histories
from recipe_jax.data.interactions import Histories, histories_of


def drawn(*, ordered: bool = True) -> Histories:
    rng = np.random.default_rng(0)
    # No item is shared, so that a pair of items names its user and place.
    ends = np.cumsum(rng.integers(1, 30, size=60))
    rows = [list(range(a, b)) for a, b in zip([0, *ends], ends, strict=False)]
    return histories_of([f"user {i}" for i in range(60)], rows, ordered=ordered)


def test_every_item_but_the_first_is_a_target_once_an_epoch():
    histories = drawn()
    batches = iter(next_item_batches(histories, max_items=12, batch_size=1, seed=0))
    num_rows = -(-int((histories.lengths - 1).sum()) // 12)
    seen: list[int] = []
    for batch in itertools.islice(batches, num_rows):
        real = batch.segments > 0
        np.testing.assert_array_equal(batch.targets[real], batch.items[real] + 1)
        starts = batch.positions[real] == 0
        changes = np.diff(batch.segments[real], prepend=0) > 0
        np.testing.assert_array_equal(starts, changes)
        seen += batch.targets[real].tolist()
    firsts = set(histories.items[histories.offsets[:-1]].tolist())
    assert len(seen) == len(set(seen)) and not set(seen) & firsts
    assert len(seen) > 0.9 * (len(histories.items) - len(firsts))  # the last row may be left over


def test_a_batch_is_a_function_of_seed_and_number():
    make = iter(next_item_batches(drawn(), max_items=12, batch_size=4, seed=3))
    first = [next(make) for _ in range(3)]
    position = make.get_state()
    later = [next(make) for _ in range(20)]
    resumed = iter(next_item_batches(drawn(), max_items=12, batch_size=4, seed=3))
    resumed.set_state(position)
    for one, other in zip(later, resumed, strict=False):
        for array, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, same)
    another = next(iter(next_item_batches(drawn(), max_items=12, batch_size=4, seed=4)))
    assert another.items.tolist() != first[0].items.tolist()


def test_the_latest_items_of_every_user_are_padded():
    histories = drawn()
    seen: list[int] = []
    for users, items, lengths in padded_histories(histories, max_items=20, batch_size=16):
        assert items.shape[0] == len(lengths) == 16 and items.shape[1] in (8, 16, 20)
        for user, row, length in zip(users, items, lengths, strict=False):
            assert row[:length].tolist() == histories.items_of(user)[-20:].tolist()
            assert not row[length:].any()
        seen += users.tolist()
    assert sorted(seen) == list(range(60))


def test_sets_are_learned_in_another_order_each_epoch():
    sets = drawn(ordered=False)
    owner = np.repeat(np.arange(60), sets.lengths)
    make = iter(next_item_batches(sets, max_items=12, batch_size=1, seed=0))
    per_epoch = -(-int((sets.lengths - 1).sum()) // 12)
    epochs = [[next(make) for _ in range(per_epoch)] for _ in range(3)]
    pairs = []
    for epoch in epochs:
        real = [batch.segments > 0 for batch in epoch]
        items, targets = (
            np.concatenate([batch[field][own] for batch, own in zip(epoch, real, strict=True)])
            for field in (0, 1)
        )
        np.testing.assert_array_equal(owner[items], owner[targets])
        assert len(set(targets.tolist())) == len(targets)  # each asked for once
        pairs.append(set(zip(items.tolist(), targets.tolist(), strict=True)))
    assert all(len(a & b) < 0.5 * len(a) for a, b in itertools.pairwise(pairs))
    # Any batch of a later epoch without those before it.
    resumed = iter(next_item_batches(sets, max_items=12, batch_size=1, seed=0))
    resumed.set_state({**make.get_state(), "next_index": 2 * per_epoch})
    for array, same in zip(next(resumed), epochs[2][0], strict=True):
        np.testing.assert_array_equal(array, same)


def test_of_a_long_set_random_items_are_read_whoever_else_is_asked_about():
    sets = drawn(ordered=False)
    seen = {}
    for users, items, lengths in padded_histories(sets, max_items=8, batch_size=16):
        for user, row, length in zip(users, items, lengths, strict=False):
            own = sets.items_of(user).tolist()
            assert length == min(len(own), 8) and len(set(row[:length])) == length
            assert set(row[:length]) <= set(own)
            seen[user] = row[:length].tolist()
    longest = int(sets.lengths.argmax())
    assert seen[longest] != sets.items_of(longest)[-8:].tolist()
    alone = next(padded_histories(sets.rows(longest, longest + 1), max_items=8, batch_size=2))
    assert alone.items[0].tolist() == seen[longest]


def test_a_user_without_items_is_refused():
    empty = histories_of(["a", "b"], [[1], []], ordered=True)
    with pytest.raises(ValueError, match="user 'b' has no items"):
        next(padded_histories(empty, max_items=4, batch_size=2))
