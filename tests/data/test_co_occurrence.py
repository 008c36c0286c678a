"""Vectors of items from histories: their inner products are the scaled counts of pairs."""

import numpy as np
import pytest

from recipe_jax.data.co_occurrence import co_occurrence_vectors
from recipe_jax.data.interactions import Histories, histories_of
from recipe_jax.data.unit_rows import unit_rows

ROWS = [[0, 1, 2], [1, 0, 3], [2, 4, 2], [5, 6], [6, 5, 6], [7]]


def make(rows: list[list[int]] = ROWS, *, ordered: bool = True) -> Histories:
    return histories_of([f"u{i}" for i in range(len(rows))], rows, ordered=ordered)


def counted(rows: list[list[int]], num_items: int, decay: float) -> np.ndarray:
    counts = np.zeros((num_items, num_items))
    for row in rows:
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                if i != j and a != b:
                    counts[a, b] += decay ** (abs(i - j) - 1)
    return counts


@pytest.mark.parametrize("ordered", [True, False])
def test_they_are_the_singular_directions_of_the_scaled_counts(ordered: bool):
    found = co_occurrence_vectors(make(ordered=ordered), num_items=9, dim=4, decay=0.5)
    counts = counted(ROWS, 9, 0.5 if ordered else 1.0)
    total = np.maximum(counts.sum(1), 1e-12)
    left, values, _ = np.linalg.svd(counts / np.sqrt(total[:, None] * total[None]))
    rows = unit_rows(left[:, :4] * np.sqrt(values[:4]))
    # Signs of singular vectors are free: only products are determined.
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, atol=1e-4)
    lengths = np.linalg.norm(found, axis=1)
    assert np.all(np.isclose(lengths, 1.0, atol=1e-5) | (lengths == 0.0))
    assert not found[[7, 8]].any()  # met nobody, and in no history


def test_what_a_user_took_together_lies_together_and_the_seed_decides():
    rng = np.random.default_rng(0)
    rows = [(10 * (u % 3) + rng.permutation(10)[:5]).tolist() for u in range(200)]
    found = co_occurrence_vectors(make(rows), num_items=30, dim=3)
    group = np.arange(30) // 10
    same = (found @ found.T)[group[:, None] == group[None]]
    other = (found @ found.T)[group[:, None] != group[None]]
    assert same.mean() > 0.8 and abs(other).mean() < 0.4
    np.testing.assert_array_equal(found, co_occurrence_vectors(make(rows), num_items=30, dim=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9}, "dim=9 must be from 1 to 8"),
        ({"dim": 0}, "dim=0 must be from 1"),
        ({"dim": 2, "decay": 0.0}, r"decay=0\.0 above 0"),
        ({"dim": 2, "decay": float("nan")}, "decay=nan above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        co_occurrence_vectors(make(), num_items=9, **options)


def test_histories_of_single_items_teach_nothing():
    with pytest.raises(ValueError, match="no two items stand in one history"):
        co_occurrence_vectors(make([[0], [1]]), num_items=3, dim=1)
