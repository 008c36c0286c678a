"""IDs of what `quantize` leaves behind: a function of the file alone."""

from pathlib import Path

import numpy as np
import pytest

from experiments.semantic_ids.codes_file import read_all_codes, read_codes
from recipe_jax.data.files import DataError

ITEMS = [f"i{row}" for row in range(12)]
CODES = np.array([[row % 2, row % 3 % 2] for row in range(12)], np.int32)  # several share theirs


def write(run: Path, **arrays: np.ndarray) -> Path:
    held = {"ids": np.array(ITEMS), "codes": CODES, "num_codes": np.full(2, 4)}
    run.mkdir(exist_ok=True)
    np.savez(run / "codes.npz", **(held | arrays))
    return run


def test_an_item_has_one_id_whoever_asks_and_in_whatever_order(tmp_path: Path):
    run = write(tmp_path)
    whole = read_all_codes(run)
    assert whole.items == tuple(ITEMS) and (whole.codes[:, -1] > 0).any()
    id_of = dict(zip(whole.items, whole.codes.tolist(), strict=True))
    for asked in (ITEMS[::-1], ITEMS[5:], ["i7", "i1"], []):
        found = read_codes(run, asked)
        assert found.items == tuple(asked) and found.sizes == whole.sizes
        assert found.codes.tolist() == [id_of[item] for item in asked]


def test_digits_leave_room_for_items_that_come_later(tmp_path: Path):
    most = np.unique(CODES, axis=0, return_counts=True)[1].max()
    assert read_all_codes(write(tmp_path)).sizes == (4, 4, 2 * most)
    apart = np.array([[row // 4, row % 4] for row in range(12)], np.int32)
    assert read_all_codes(write(tmp_path, codes=apart)).sizes == (4, 4, 4)


def test_items_without_codes_and_foreign_files_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="has no codes of item 'x', nor of 1 others: quantize"):
        read_codes(write(tmp_path), ["i0", "x", "y"])
    np.savez(tmp_path / "codes.npz", ids=np.array(ITEMS))
    with pytest.raises(DataError, match=r"holds \['ids'\], must be what quantize writes"):
        read_codes(tmp_path, ["i0"])
