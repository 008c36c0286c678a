"""Regenerate the packaged tables `names.csv.gz` and `weights.csv.gz` from the source data.

    python -m recipe_jax.data.name_assets --data "$RECIPE_JAX_DATA"

`names.csv.gz` is the map of written names beside the recipes, corrected and completed by the
hand-written `names_added.csv`.  `weights.csv.gz` holds USDA's household measures (SR28, and those
of SR26 that SR28 no longer lists) for the foods in use, completed by the hand-written
`weights_added.csv`.  The same input gives the same bytes.
"""

import argparse
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.foods import FoodTable, read_foods
from recipe_jax.data.grams import ANY_FOOD

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def written_names(data: Path, added: pl.DataFrame) -> pl.DataFrame:
    """Written names and their foods (`name, food`), sorted; "" where a name is known to be none.

    Args:
        data: the folder of source data; reads `recipes/name_map.csv.gz` (`nn, canon`).
        added: hand-written rows (`name, food`), which win over the map.
    """
    table = _read(data / "recipes/name_map.csv.gz")
    known = table.select(name="nn", food=pl.col("canon").fill_null(""))
    added = added.select("name", pl.col("food").fill_null(""))
    return (
        pl.concat([added, known])
        .drop_nulls("name")
        .unique("name", keep="first", maintain_order=True)
        .sort("name")
    )


def household_weights(data: Path, foods: FoodTable, added: pl.DataFrame) -> pl.DataFrame:
    """Household measures (`food, amount, measure, grams, source`) in the order of the vocabulary.

    Args:
        data: the folder of source data; reads `usda_sr26/weight_sr26` and `weight_sr28`.
        foods: the foods in use.
        added: hand-written rows (`food, amount, measure, grams`), which come first; the food
            `ANY_FOOD` stands for any that has no measure of its own.

    Raises:
        DataError: an added row names a food outside `foods`.
    """
    # ANY_FOOD has no record at USDA: number 0 joins with none.
    order = pl.DataFrame(
        {"food": [*foods.names, ANY_FOOD], "ndb": [*foods.ndb.tolist(), 0]}
    ).with_row_index("place")
    unknown = added.join(order, on="food", how="anti")
    if len(unknown):
        raise DataError(f"weights_added.csv: food={unknown['food'][0]!r} is not in the vocabulary")
    sr28 = _read(data / "usda_sr26/weight_sr28.csv.gz").select(
        "ndb", "amount", "seq", measure="desc", grams="grams", source=pl.lit("sr28"), rank=1
    )
    sr26 = _read(data / "usda_sr26/weight_sr26.csv.gz").select(
        "amount",
        "seq",
        ndb="food_id",
        measure="desc",
        grams="weight",
        source=pl.lit("sr26"),
        rank=2,
    )
    usda = pl.concat([sr28, sr26.select(sr28.columns)]).unique(
        ["ndb", "measure"], keep="first", maintain_order=True
    )
    rows = [
        added.join(order, on="food").with_columns(source=pl.lit("own"), seq=0, rank=0),
        order.join(usda, on="ndb"),
    ]
    columns = ("place", "rank", "seq", "food", "amount", "measure", "grams", "source")
    return (
        pl.concat([part.select(columns) for part in rows], how="vertical_relaxed")
        .sort("place", "rank", "seq", "measure")
        .drop("place", "rank", "seq")
    )


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file; --data must name the folder of source data")
    return pl.read_csv(path)


def _write(path: Path, table: pl.DataFrame) -> None:
    replace_file(path, gzip.compress(table.write_csv().encode(), mtime=0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of source data")
    data = parser.parse_args(arguments).data
    try:
        names = written_names(data, pl.read_csv(ASSETS / "names_added.csv"))
        weights = household_weights(
            data, read_foods(), pl.read_csv(ASSETS / "weights_added.csv", comment_prefix="#")
        )
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    _write(ASSETS / "names.csv.gz", names)
    _write(ASSETS / "weights.csv.gz", weights)
    print(f"{len(names)} names, {len(weights)} household measures", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
