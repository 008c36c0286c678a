"""The packaged names and household measures come from their sources and nowhere else."""

import gzip
import os
from pathlib import Path

import polars as pl
import pytest

from recipe_jax.data.files import DataError
from recipe_jax.data.foods import read_foods
from recipe_jax.data.name_assets import ASSETS, household_weights, main, written_names

WEIGHTS = "food,amount,measure,grams\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of source data with one food and three names."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "usda_sr26").mkdir()
    names = "nn,n,canon,ndb,how\nbutter,9,butter,1001,exact\ngoo,2,,,\nwrong,2,salt,2047,sub\n"
    sr26 = "food_id,seq,amount,desc,weight\n1001,1,1.0,pat,5.0\n1001,2,1.0,cup,226.0\n"
    sr28 = "ndb,seq,amount,desc,grams\n1001,1,1.0,cup,227.0\n9,1,1.0,cup,1.0\n"
    for name, text in (
        ("recipes/name_map.csv.gz", names),
        ("usda_sr26/weight_sr26.csv.gz", sr26),
        ("usda_sr26/weight_sr28.csv.gz", sr28),
    ):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_added_names_win_over_the_map(data: Path):
    added = pl.DataFrame({"name": ["wrong", "new"], "food": ["sugar", None]})
    table = written_names(data, added)
    assert dict(table.rows()) == {"butter": "butter", "goo": "", "wrong": "sugar", "new": ""}


def test_added_weights_come_first_then_the_newer_release(data: Path):
    added = pl.DataFrame(
        {"food": ["butter", "*"], "amount": [1.0, 1.0], "measure": ["stick", "can"]}
        | {"grams": [113.0, 425.0]}
    )
    rows = household_weights(data, read_foods(), added).rows()
    assert rows == [
        ("butter", 1.0, "stick", 113.0, "own"),
        ("butter", 1.0, "cup", 227.0, "sr28"),
        ("butter", 1.0, "pat", 5.0, "sr26"),
        ("*", 1.0, "can", 425.0, "own"),
    ]


def test_an_added_weight_of_an_unknown_food_is_refused(data: Path):
    added = pl.DataFrame(
        {"food": ["ambrosia"], "amount": [1.0], "measure": ["cup"], "grams": [9.0]}
    )
    with pytest.raises(DataError, match="'ambrosia' is not in the vocabulary"):
        household_weights(data, read_foods(), added)


def test_a_missing_source_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--data", str(tmp_path)]) == 2
    assert "name_map.csv.gz: no such file" in capsys.readouterr().err


def test_hand_written_tables_are_sorted_and_without_repetition():
    for file, key in (("names_added.csv", ["name"]), ("weights_added.csv", ["food", "measure"])):
        table = pl.read_csv(ASSETS / file).select(key).rows()
        assert table == sorted(set(table))


@pytest.mark.real_data
def test_packaged_tables_are_those_of_the_sources():
    data = Path(os.environ["RECIPE_JAX_DATA"])
    names = written_names(data, pl.read_csv(ASSETS / "names_added.csv"))
    weights = household_weights(data, read_foods(), pl.read_csv(ASSETS / "weights_added.csv"))
    for file, table in (("names.csv.gz", names), ("weights.csv.gz", weights)):
        assert gzip.decompress((ASSETS / file).read_bytes()) == table.write_csv().encode()
