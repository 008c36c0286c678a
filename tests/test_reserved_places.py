"""Places that are reserved, and what gets them."""

from fractions import Fraction

import numpy as np
import pytest

from recipe_jax.reserved_places import mix_in, reserved_places, top_items


@pytest.mark.parametrize("hundredths", [0, 3, 10, 29, 50, 57, 70, 99, 100])
def test_of_the_first_places_the_share_is_reserved_however_many_there_are(hundredths: int):
    reserved = reserved_places(100, hundredths / 100)
    for count in range(101):
        # In floating point 57 hundredths of 100 are less than 57.
        assert reserved[:count].sum() == Fraction(hundredths, 100) * count // 1
        np.testing.assert_array_equal(reserved_places(count, hundredths / 100), reserved[:count])


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_another_share_is_refused(share: float):
    with pytest.raises(ValueError, match=r"share=.* must be from 0 to 1"):
        reserved_places(10, share)


def mixed(ranked: list[int], others: list[int], share: float, num_places: int) -> list[int]:
    rows = np.array([ranked], np.int32), np.array([others], np.int64)
    return mix_in(*rows, share=share, num_places=num_places)[0].tolist()


def test_reserved_places_go_to_the_best_of_the_others():
    ranked, others = [5, 6, 7, 8, 9, 4], [1, 2, 3]
    assert mixed(ranked, others, 0.0, 5) == [5, 6, 7, 8, 9]
    assert mixed(ranked, others, 0.5, 5) == [5, 1, 6, 2, 7]
    assert mixed(ranked, others, 0.4, 5) == [5, 6, 1, 7, 2]
    assert mixed(ranked, others, 1.0, 3) == [1, 2, 3]


def test_no_item_has_two_places_and_none_is_left_empty():
    # 1 has won a place by itself: the reserved one goes to the next.
    assert mixed([1, 5, 2, 6], [1, 2, 3, 4], 0.5, 4) == [1, 2, 5, 3]
    # Either ranking fills the places where the other has no more.
    assert mixed([5, 6, 7, 8], [1, -1, -1, -1], 1.0, 4) == [1, 5, 6, 7]
    assert mixed([5, -1], [1, 2], 0.0, 4) == [5, 1, 2, -1]


def test_random_lists_keep_both_orders_and_hold_as_many_as_there_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranked, others = (rng.permutation(30)[: rng.integers(0, 12)].tolist() for _ in range(2))
        share, count = rng.random(), int(rng.integers(0, 25))
        found = mixed(ranked, others, share, count)
        placed = [item for item in found if item >= 0]
        assert len(set(placed)) == len(placed) == min(count, len({*ranked, *others}))
        assert found == placed + [-1] * (count - len(placed))
        own = [item for item in placed if item not in others]
        assert own == [item for item in ranked if item in own]
        if len(others) >= count:  # nothing but a reserved place brings them in
            reserved = np.flatnonzero(reserved_places(count, share))
            assert all(found[place] in others for place in reserved)


def test_top_items_are_those_of_a_stable_sort_among_those_that_may_win():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (20, 15)).astype(np.float32)  # with ties
    may_win = rng.random((20, 15)) < 0.4
    may_win[0] = False
    for count in (1, 4, 15, 18):
        found = top_items(scores, may_win, count)
        for row in range(20):
            items = [i for i in range(15) if may_win[row, i]]
            best = sorted(items, key=lambda i: (-scores[row, i], i))[:count]
            assert found[row].tolist() == best + [-1] * (count - len(best))
