"""Prepared recipes: parquet tables in, flat arrays of foods and grams out.

A prepared folder holds `recipes.parquet` (`recipe_id, title, source, split, num_lines`) and
`ingredients.parquet` (`recipe_id, line, name, food, ndb, grams, method`).  Lines that name the same
food are one member of the recipe's set and their grams are added.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int32, Int64

from recipe_jax.data.files import DataError

SPLITS = ("train", "validation", "test")


def split_of(recipe_id: str) -> str:
    """The fixed split: `sha1(recipe_id) % 10` is 3 for test, 4 for validation, else train."""
    bucket = int(hashlib.sha1(recipe_id.encode()).hexdigest(), 16) % 10
    return {3: "test", 4: "validation"}.get(bucket, "train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeSets:
    """Recipes as sets of foods, in compressed rows: recipe `i` owns `offsets[i]:offsets[i + 1]`.

    Attributes:
        recipe_ids: one id a recipe.
        offsets: row boundaries into `foods` and `grams`.
        foods: index into the vocabulary, distinct within a recipe.
        grams: grams of that food; NaN where a line of it has no known weight.
        num_lines: ingredient lines (neither headings nor utensils).
        num_mapped: lines among them that name a food.
    """

    recipe_ids: Sequence[str]
    offsets: Int64[np.ndarray, "n_plus_one"]
    foods: Int32[np.ndarray, "members"]
    grams: Float32[np.ndarray, "members"]
    num_lines: Int32[np.ndarray, "n"]
    num_mapped: Int32[np.ndarray, "n"]

    def __len__(self) -> int:
        """How many recipes there are."""
        return len(self.recipe_ids)

    @property
    def sizes(self) -> Int64[np.ndarray, "n"]:
        """Distinct foods per recipe."""
        return np.diff(self.offsets)

    def foods_of(self, i: int) -> Int32[np.ndarray, "m"]:
        """The foods of recipe `i`."""
        return self.foods[self.offsets[i] : self.offsets[i + 1]]

    def grams_of(self, i: int) -> Float32[np.ndarray, "m"]:
        """The grams of recipe `i`, beside `foods_of(i)`."""
        return self.grams[self.offsets[i] : self.offsets[i + 1]]

    def select(self, keep: Bool[np.ndarray, "n"]) -> "RecipeSets":
        """The recipes where `keep` holds, in their old order."""
        members = np.repeat(keep, self.sizes)
        return RecipeSets(
            recipe_ids=[name for name, kept in zip(self.recipe_ids, keep, strict=True) if kept],
            offsets=np.concatenate([[0], np.cumsum(self.sizes[keep])]).astype(np.int64),
            foods=self.foods[members],
            grams=self.grams[members],
            num_lines=self.num_lines[keep],
            num_mapped=self.num_mapped[keep],
        )

    def select_split(self, split: str) -> "RecipeSets":
        """The recipes of one of `SPLITS`."""
        return self.select(np.array([split_of(name) == split for name in self.recipe_ids], bool))

    def select_completion(
        self, *, min_foods: int = 3, max_lines: int = 25, mapped: float = 0.8
    ) -> "RecipeSets":
        """Recipes fit to be generated and completed.

        Args:
            min_foods: fewest lines and fewest distinct foods.
            max_lines: most ingredient lines.
            mapped: share of the lines that must name a food.
        """
        lines = self.num_lines
        fits = (lines >= min_foods) & (lines <= max_lines) & (self.sizes >= min_foods)
        return self.select(fits & (self.num_mapped >= mapped * lines))

    def select_weighed(self, *, min_foods: int = 3) -> "RecipeSets":
        """Recipes in which every mapped line is weighed and at least `min_foods` foods remain."""
        unweighed = np.isnan(self.grams) | (self.grams <= 0)
        rows = np.repeat(np.arange(len(self)), self.sizes)
        missing = np.bincount(rows, weights=unweighed, minlength=len(self))
        return self.select((missing == 0) & (self.sizes >= min_foods))

    def without_food_sets_of(self, other: "RecipeSets") -> "RecipeSets":
        """The recipes whose set of foods is no recipe of `other`."""
        seen = {frozenset(other.foods_of(i).tolist()) for i in range(len(other))}
        new = [frozenset(self.foods_of(i).tolist()) not in seen for i in range(len(self))]
        return self.select(np.array(new, bool))

    def proportions_of(self, i: int) -> Float32[np.ndarray, "m"]:
        """Each food's share of the recipe's grams; sums to one."""
        grams = self.grams_of(i).astype(np.float64)
        return (grams / grams.sum()).astype(np.float32)


def read_recipe_sets(folder: Path, foods: Sequence[str]) -> RecipeSets:
    """Read a prepared folder.

    Args:
        folder: holds `recipes.parquet` and `ingredients.parquet`.
        foods: the vocabulary; a food's index is its place here.

    Raises:
        DataError: a missing file or column, a food outside the vocabulary, or bad grams.
    """
    recipes = _read_table(folder / "recipes.parquet", ["recipe_id", "num_lines"])
    lines = _read_table(folder / "ingredients.parquet", ["recipe_id", "line", "food", "grams"])
    _check_lines(folder / "ingredients.parquet", lines, foods)
    index = pl.DataFrame({"food": list(foods), "index": np.arange(len(foods), dtype=np.int32)})
    order = recipes.select("recipe_id", row=pl.int_range(pl.len()))
    mapped = (
        lines.filter(pl.col("food").is_not_null())
        .join(index, on="food")
        .join(order, on="recipe_id")
    )
    members = (
        mapped.group_by("row", "index")
        .agg(
            grams=pl.when(pl.col("grams").is_null().any())
            .then(math.nan)
            .otherwise(pl.col("grams").sum()),
            line=pl.col("line").min(),
        )
        .sort("row", "line", "index")
    )
    rows = members["row"].to_numpy()
    mapped_lines = mapped.select("row", "line").unique()["row"].to_numpy()
    counted = np.bincount(mapped_lines, minlength=len(recipes))
    sizes = np.bincount(rows, minlength=len(recipes))
    return RecipeSets(
        recipe_ids=recipes["recipe_id"].to_list(),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        foods=members["index"].to_numpy().astype(np.int32),
        grams=members["grams"].to_numpy().astype(np.float32),
        num_lines=recipes["num_lines"].to_numpy().astype(np.int32),
        num_mapped=counted.astype(np.int32),
    )


def _read_table(path: Path, columns: list[str]) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `python -m experiments.recipes prepare` first")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a parquet table ({str(error).splitlines()[0]})") from error
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{path}: column {column!r} is missing; it has {table.columns}")
    return table


def _check_lines(path: Path, lines: pl.DataFrame, foods: Sequence[str]) -> None:
    unknown = lines.filter(pl.col("food").is_not_null() & ~pl.col("food").is_in(list(foods)))
    if len(unknown):
        row = unknown.row(0, named=True)
        raise DataError(
            f"{path}: recipe {row['recipe_id']} line {row['line']}: food={row['food']!r} "
            f"is not among the {len(foods)} foods of the vocabulary"
        )
    wrong = lines.filter((pl.col("grams") < 0) | ~pl.col("grams").is_finite())
    if len(wrong):
        row = wrong.row(0, named=True)
        raise DataError(
            f"{path}: recipe {row['recipe_id']} line {row['line']}: grams={row['grams']} "
            "must be null or a finite number that is not negative"
        )
