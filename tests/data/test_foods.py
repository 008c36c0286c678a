"""The food table: the packaged one, round trips, and files that break a rule."""

import errno
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.foods import read_foods, write_foods


def test_packaged_table_is_the_closed_vocabulary():
    foods = read_foods()
    assert len(foods) == 507
    assert len(set(foods.ndb.tolist())) == 495
    assert foods.names[:3] == ("salt", "sugar", "black pepper")
    butter = foods.index_of("butter")
    assert (foods.ndb[butter], foods.descriptions[butter]) == (1001, "Butter, salted")
    assert foods.groups[butter] == "Dairy and Egg Products"


def test_index_of_inverts_names():
    foods = read_foods()
    assert [foods.index_of(name) for name in foods.names] == list(range(len(foods)))


@pytest.mark.parametrize(
    ("name", "near"), [("tomatos", "tomato"), ("Buter", "butter"), ("bell pepper", "bell pepper")]
)
def test_unknown_food_suggests_the_nearest(name: str, near: str):
    with pytest.raises(ValueError, match=f"{name!r} is not among the 507.*nearest: .*{near}"):
        read_foods().index_of(name)


def test_unknown_food_far_from_all_suggests_nothing():
    with pytest.raises(ValueError, match=r"'zzzz' is not among the 507 known foods$"):
        read_foods().index_of("zzzz")


@pytest.mark.parametrize("name", ["foods.parquet", "foods.csv"])
def test_round_trip(tmp_path: Path, name: str):
    foods = read_foods()
    write_foods(foods, tmp_path / name)
    again = read_foods(tmp_path / name)
    assert (again.names, again.descriptions, again.groups) == (
        foods.names,
        foods.descriptions,
        foods.groups,
    )
    np.testing.assert_array_equal(again.ndb, foods.ndb)
    np.testing.assert_array_equal(again.ahn_ids, foods.ahn_ids)
    np.testing.assert_array_equal(again.median_grams, foods.median_grams)
    np.testing.assert_array_equal(again.num_recipes, foods.num_recipes)
    assert [part.name for part in tmp_path.iterdir()] == [name]


def test_parquet_has_the_columns_of_a_prepared_folder(tmp_path: Path):
    write_foods(read_foods(), tmp_path / "foods.parquet")
    schema = pl.read_parquet(tmp_path / "foods.parquet").schema
    expected = {"food": pl.String, "ndb": pl.Int32, "description": pl.String, "group": pl.String}
    assert {column: schema[column] for column in expected} == expected


BROKEN = {
    "column 'ndb' is missing": pl.all().exclude("ndb"),
    "row 0: food='salt' occurs twice": pl.when(pl.col("food") == "black pepper")
    .then(pl.lit("salt"))
    .otherwise("food")
    .alias("food"),
    "row 1: group must not be empty": pl.when(pl.col("food") != "sugar")
    .then("group")
    .alias("group"),
    "column 'ndb' must be Int32": pl.lit("many").alias("ndb"),
    "row 0: median_grams=-3.0 must be a positive number": pl.col("median_grams") * -1,
    "row 0: median_grams=nan must be a positive number": pl.col("median_grams") * float("nan"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_table_is_one_clear_line(tmp_path: Path, message: str):
    path = tmp_path / "foods.parquet"
    write_foods(read_foods(), path)
    table = pl.read_parquet(path)
    change = BROKEN[message]
    drops = message.endswith("missing")
    (table.select(change) if drops else table.with_columns(change)).write_parquet(path)
    with pytest.raises(DataError) as error:
        read_foods(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_missing_and_foreign_files_are_one_clear_line(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        read_foods(tmp_path / "foods.parquet")
    (tmp_path / "foods.parquet").write_bytes(b"not a table")
    with pytest.raises(DataError, match=r"foods\.parquet: not a food table"):
        read_foods(tmp_path / "foods.parquet")


def test_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "foods.csv"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as part:
            part.write(data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new data")
    assert path.read_bytes() == b"old"
    assert [part.name for part in tmp_path.iterdir()] == ["foods.csv"]
