"""The sample inside the package: real dishes of the world, to try everything without a download.

`assets/sample/recipes.jsonl` was written for this project from general knowledge of cooking; no
text was taken from anywhere.  One line is one dish for about four people: its id, title, tags
(cuisine, course) and the grams of each food as bought, trimmed and peeled.  Water to boil in and
most of the oil to fry in are left out: what stays in the dish counts.
"""

import dataclasses
import importlib.resources
import io
import json
import math
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recipe_jax.data.composition import read_food_features, read_nutrition, write_composition
from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.foods import FoodTable, read_foods, write_foods
from recipe_jax.data.recipes import RecipeSets, split_of

SOURCE = "sample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRecipe:
    """One dish of the sample.

    Attributes:
        recipe_id: `sample-001` and so on.
        title: what it is called.
        tags: cuisine and course.
        grams: food to grams, heaviest first.
    """

    recipe_id: str
    title: str
    tags: tuple[str, ...]
    grams: Mapping[str, float]


def read_sample_recipes(
    path: Path | None = None, *, foods: FoodTable | None = None
) -> tuple[SampleRecipe, ...]:
    """Read and check dishes.

    Args:
        path: JSON lines of `id, title, tags, ingredients`; None reads the sample in the package.
        foods: the vocabulary; None takes the one in the package.

    Raises:
        DataError: a missing file, a row that is no such object, an id or title that occurs twice,
            a food outside the vocabulary, or grams that are not a positive number.
    """
    assets: Traversable = importlib.resources.files("recipe_jax") / "assets"
    source = assets / "sample" / "recipes.jsonl" if path is None else path
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    foods = foods or read_foods()
    recipes: list[SampleRecipe] = []
    rows_of: dict[str, int] = {}
    for row, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{source}: row {row}"
        recipe = _recipe_of(where, line, foods)
        for field, value in (("id", recipe.recipe_id), ("title", recipe.title)):
            first = rows_of.setdefault(f"{field}={value!r}", row)
            if first != row:
                raise DataError(f"{where}: {field}={value!r} is already in row {first}")
        recipes.append(recipe)
    if not recipes:
        raise DataError(f"{source}: holds no recipe")
    return tuple(recipes)


def read_sample() -> RecipeSets:
    """The sample as sets of foods over the packaged vocabulary; every line is mapped and weighed.

    Raises:
        DataError: see `read_sample_recipes`.
    """
    foods = read_foods()
    recipes = read_sample_recipes(foods=foods)
    sizes = np.array([len(recipe.grams) for recipe in recipes], np.int32)
    members = [member for recipe in recipes for member in recipe.grams.items()]
    return RecipeSets(
        recipe_ids=[recipe.recipe_id for recipe in recipes],
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        foods=np.array([foods.index_of(food) for food, _ in members], np.int32),
        grams=np.array([grams for _, grams in members], np.float32),
        num_lines=sizes,
        num_mapped=sizes,
    )


def write_sample(out: Path) -> None:
    """Write the sample as a prepared folder, in place of `prepare`'s output.

    `recipes.parquet` is written last: a folder that has it is whole.

    Args:
        out: made where missing; its tables are replaced.

    Raises:
        DataError: the folder cannot be written.
    """
    foods = read_foods()
    recipes = read_sample_recipes(foods=foods)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_foods(foods, out / "foods.parquet")
        write_composition(out / "composition.npz", read_food_features(), read_nutrition())
        replace_file(out / "ingredients.parquet", _parquet(_ingredient_table(recipes, foods)))
        replace_file(out / "recipes.parquet", _parquet(_recipe_table(recipes)))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error


def _recipe_table(recipes: tuple[SampleRecipe, ...]) -> pl.DataFrame:
    ids = [recipe.recipe_id for recipe in recipes]
    return pl.DataFrame(
        {
            "recipe_id": ids,
            "title": [recipe.title for recipe in recipes],
            "source": [SOURCE] * len(recipes),
            "split": [split_of(name) for name in ids],
            "num_lines": pl.Series([len(recipe.grams) for recipe in recipes], dtype=pl.Int32),
        }
    )


def _ingredient_table(recipes: tuple[SampleRecipe, ...], foods: FoodTable) -> pl.DataFrame:
    rows = [
        (recipe.recipe_id, line, food, food, int(foods.ndb[foods.index_of(food)]), grams, SOURCE)
        for recipe in recipes
        for line, (food, grams) in enumerate(recipe.grams.items())
    ]
    schema = {
        "recipe_id": pl.String,
        "line": pl.Int32,
        "name": pl.String,
        "food": pl.String,
        "ndb": pl.Int32,
        "grams": pl.Float32,
        "method": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _parquet(table: pl.DataFrame) -> bytes:
    data = io.BytesIO()
    table.write_parquet(data)
    return data.getvalue()


def _recipe_of(where: str, line: str, foods: FoodTable) -> SampleRecipe:
    try:
        row: Any = json.loads(line, object_pairs_hook=_distinct_fields)
    except ValueError as error:
        raise DataError(f"{where}: not a JSON object with distinct fields ({error})") from error
    kinds = {"id": str, "title": str, "tags": list, "ingredients": dict}
    for field, kind in kinds.items():
        value = row.get(field) if isinstance(row, dict) else None
        if not isinstance(value, kind) or not value:
            raise DataError(f"{where}: {field}={value!r} must be a non-empty {kind.__name__}")
    for food, grams in row["ingredients"].items():
        try:
            foods.index_of(food)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        if isinstance(grams, bool) or not isinstance(grams, int | float):
            raise DataError(f"{where}: {food}: grams={grams!r} must be a number")
        if not 0 < grams < math.inf:
            raise DataError(f"{where}: {food}: grams={grams} must be positive and finite")
    return SampleRecipe(
        recipe_id=row["id"],
        title=row["title"],
        tags=tuple(str(tag) for tag in row["tags"]),
        grams={food: float(grams) for food, grams in row["ingredients"].items()},
    )


def _distinct_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that names a field twice would silently lose the first value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return fields
