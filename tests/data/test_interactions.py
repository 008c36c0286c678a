"""Interactions: read by line, split without leaks, and indices that tell nothing."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recipe_jax.data.files import DataError
from recipe_jax.data.interactions import (
    Histories,
    distinct_items,
    histories_of,
    in_random_order,
    leave_last_out,
    mealrec_recipes,
    random_leave_one_out,
    read_histories,
    read_mealrec,
    shuffled_ids,
    without_items,
)

IDS = ("a", "b", "c", "d", "e")


def drawn(seed: int, *, ordered: bool, users: int = 30, items: int = 40) -> Histories:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(items)[: rng.integers(1, 12)] for _ in range(users)]
    return histories_of([f"user {i}" for i in range(users)], rows, ordered=ordered)


def rows_of(histories: Histories) -> dict[str, list[int]]:
    return {u: histories.items_of(i).tolist() for i, u in enumerate(histories.users)}


def test_a_file_is_read_in_order(tmp_path: Path):
    text = "u1 c a b\nu2 e d\n"
    (tmp_path / "plain.txt").write_text(text)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text.encode()))
    for path in tmp_path.iterdir():
        histories = read_histories(path, IDS)
        assert rows_of(histories) == {"u1": [2, 0, 1], "u2": [4, 3]} and histories.ordered
        assert distinct_items(path) == ("c", "a", "b", "e", "d")
        assert rows_of(histories.latest(2)) == {"u1": [0, 1], "u2": [4, 3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"u1 a b\nu2 a z\n", "line 2: item 'z' is not among the catalogue's 5"),
        (b"u1 a b\n\nu2 a\n", "line 2: is empty, must be a user and their items"),
        (b"u1 a\nu2\n", "line 2: user 'u2' has no item, must have at least one"),
        (b"u1 a b a\n", "line 1: item 'a' is repeated"),
        (b"u1 a\nu2 b\nu1 c\n", "line 3: user 'u1' is that of line 1; join the lines"),
        (b"u1 a\nu2 \xff\n", "line 2: byte 3 is no UTF-8"),
        (b"", "holds no user"),
    ],
)
def test_a_bad_line_is_named(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "users.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_histories(path, IDS)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing\.txt: no such file"):
        read_histories(tmp_path / "nothing.txt", IDS)
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(gzip.compress(b"u1 a b c\n" * 1000)[:-20])
    with pytest.raises(DataError, match=r"cut\.txt\.gz: cannot be read"):
        read_histories(cut, IDS)
    cut.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"cut\.txt\.gz: cannot be read"):
        read_histories(cut, IDS)
    with pytest.raises(ValueError, match="item_ids must be distinct: 1 are repeated"):
        read_histories(cut, ("a", "a"))


def mealrec(path: Path, rows: list[tuple[int | None, str, bool]]) -> Path:
    schema = {"user_id": pl.Int64, "recipe_id": pl.String, "has_content": pl.Boolean}
    pl.DataFrame(rows, schema, orient="row").write_parquet(path)
    return path


def test_of_recipes_those_of_the_catalogue_with_content_are_read(tmp_path: Path):
    rows = [(7, "b", True), (3, "a", True), (7, "c", False), (7, "d", True), (9, "z", True)]
    histories = read_mealrec(mealrec(tmp_path / "t.parquet", rows), IDS)
    assert rows_of(histories) == {"7": [1, 3], "3": [0]} and not histories.ordered
    assert mealrec_recipes(tmp_path / "t.parquet") == ("a", "b", "d", "z")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(7, "b", True), (None, "a", True)], "row 2, column user_id: must not be missing"),
        (
            [(7, "b", True), (8, "b", True), (7, "b", True)],
            "row 3: recipe 'b' stands in an earlier row",
        ),
        ([(7, "z", True)], "holds no recipe of the catalogue's 5"),
    ],
)
def test_a_bad_row_of_recipes_is_named(rows: list, message: str, tmp_path: Path):
    path = mealrec(tmp_path / "t.parquet", rows)
    with pytest.raises(DataError) as refused:
        read_mealrec(path, IDS)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_table_of_another_kind_is_named(tmp_path: Path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="no such file"):
        read_mealrec(path, IDS)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match="not a parquet table"):
        read_mealrec(path, IDS)
    pl.DataFrame({"user_id": [1]}).write_parquet(path)
    with pytest.raises(DataError, match="column 'recipe_id' is missing"):
        read_mealrec(path, IDS)


def test_the_last_item_is_for_the_test_and_the_one_before_it_for_validation():
    histories = drawn(0, ordered=True)
    split, whole = leave_last_out(histories), rows_of(histories)
    long = [user for user, items in whole.items() if len(items) >= 3]
    assert 0 < len(long) < len(whole) and split.num_too_short == len(whole) - len(long)
    for queries, last in ((split.test, 1), (split.validation, 2)):
        known = rows_of(queries.histories)
        assert list(known) == long
        for user, target in zip(long, queries.targets.tolist(), strict=True):
            assert target == whole[user][-last] and known[user] == whole[user][:-last]
    cut = {user: 2 if user in long else 0 for user in whole}
    assert rows_of(split.train) == {u: i[: len(i) - cut[u]] for u, i in whole.items()}
    assert rows_of(split.before_test) == {u: i[: len(i) - cut[u] // 2] for u, i in whole.items()}


@pytest.mark.parametrize("ordered", [True, False])
def test_nothing_that_is_asked_is_learned(ordered: bool):
    histories = drawn(1, ordered=ordered)
    split = leave_last_out(histories) if ordered else random_leave_one_out(histories, seed=3)

    def pairs(found: Histories) -> set[tuple[str, int]]:
        return {(user, item) for user, items in rows_of(found).items() for item in items}

    asked = {
        name: set(zip(queries.histories.users, queries.targets.tolist(), strict=True))
        for name, queries in (("validation", split.validation), ("test", split.test))
    }
    assert not pairs(split.train) & (asked["validation"] | asked["test"])
    assert not pairs(split.before_test) & asked["test"]
    assert not pairs(split.test.histories) & asked["test"]
    assert not pairs(split.validation.histories) & (asked["validation"] | asked["test"])
    # And nothing is lost.
    assert pairs(split.train) | asked["validation"] == pairs(split.before_test)
    assert pairs(split.before_test) | asked["test"] == pairs(histories)


def test_what_is_left_out_of_a_set_depends_on_seed_and_user_alone():
    histories = drawn(2, ordered=False)
    split = random_leave_one_out(histories, seed=0)
    turned = histories.select(np.arange(len(histories.users))[::-2].copy())
    again = random_leave_one_out(turned, seed=0)
    asked = dict(zip(split.test.histories.users, split.test.targets.tolist(), strict=True))
    for user, target in zip(again.test.histories.users, again.test.targets.tolist(), strict=True):
        assert asked[user] == target
    other = random_leave_one_out(histories, seed=1)
    assert other.test.targets.tolist() != split.test.targets.tolist()
    places = [rows_of(histories)[user].index(target) for user, target in asked.items()]
    assert len(set(places)) > 3  # not always the first or the last


def test_a_set_in_random_order_depends_on_seed_draw_and_user_alone():
    sets = drawn(3, ordered=False)
    first = in_random_order(sets, seed=0)
    assert first.ordered
    assert {u: sorted(items) for u, items in rows_of(first).items()} == {
        u: sorted(items) for u, items in rows_of(sets).items()
    }
    few = in_random_order(sets.select(np.array([5, 2])), seed=0)
    assert rows_of(few).items() <= rows_of(first).items()
    for other in (in_random_order(sets, seed=1), in_random_order(sets, seed=0, draw=1)):
        assert rows_of(other) != rows_of(first)
    with pytest.raises(ValueError, match="would lose the order"):
        in_random_order(first, seed=0)


def test_order_decides_what_may_be_left_out():
    with pytest.raises(ValueError, match="take random_leave_one_out"):
        leave_last_out(drawn(0, ordered=False))
    with pytest.raises(ValueError, match="take leave_last_out"):
        random_leave_one_out(drawn(0, ordered=True), seed=0)
    with pytest.raises(ValueError, match="without an order have no latest items"):
        drawn(0, ordered=False).latest(3)
    with pytest.raises(DataError, match="none of 2 users has 3 items"):
        leave_last_out(histories_of(["a", "b"], [[0, 1], [2]], ordered=True))


def test_what_is_left_out_is_in_no_history_and_all_else_is_in_its_place():
    histories = drawn(4, ordered=True)
    left_out = np.arange(40) % 3 != 0
    kept = without_items(histories, left_out)
    expected = {u: [i for i in items if i % 3 == 0] for u, items in rows_of(histories).items()}
    assert rows_of(kept) == {user: items for user, items in expected.items() if items}
    assert len(kept.users) < len(histories.users) and kept.ordered
    nothing = without_items(histories, np.zeros(40, bool))
    assert rows_of(nothing) == rows_of(histories)
    assert len(without_items(histories, np.ones(40, bool)).users) == 0


def test_shuffled_ids_are_the_same_ids():
    ids = tuple(map(str, range(100)))
    assert sorted(shuffled_ids(ids, seed=0)) == sorted(ids)
    assert shuffled_ids(ids, seed=0) == shuffled_ids(ids, seed=0) != shuffled_ids(ids, seed=1)
    assert shuffled_ids(ids, seed=0) != ids
