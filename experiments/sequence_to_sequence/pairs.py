"""Raw ingredient lines and the foods that `prepare` found for them, as a table of pairs.

python -m experiments.sequence_to_sequence pairs --data DIR --recipes RECIPES --out lines.tsv

The target is what a parser and a table of names made of the line: a model of these pairs learns to
do as they do, their mistakes included.
"""

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from experiments.sequence_to_sequence.text_pairs import MAX_BYTES, Pair, write_pairs
from recipe_jax.data.files import DataError
from recipe_jax.data.raw_recipes import read_raw_recipes

COLUMNS = ("recipe_id", "line", "food")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to read and where to write.

    Attributes:
        data: a prepared folder.
        recipes: the raw recipes it was prepared from: .jsonl, .jsonl.gz or .jsonl.zst.
        out: the table to write: UTF-8, source and target separated by a tab.
    """

    data: Path
    recipes: Path
    out: Path


def run(flags: Flags) -> dict[str, Any]:
    """Write the table; returns how many lines it holds and why others are left out."""
    foods = read_foods_of_lines(flags.data / "ingredients.parquet")
    found, left_out = line_pairs(flags.recipes, foods)
    write_pairs(flags.out, found)
    print(f"pairs: {flags.out} holds {len(found)} distinct lines", file=sys.stderr)
    return {
        "n": len(found),
        "num_targets": len({pair.target for pair in found}),
        "left_out": left_out,
    }


def read_foods_of_lines(path: Path) -> dict[str, dict[int, set[str | None]]]:
    """Recipe -> line -> the foods that it names; None stands for one that is not known.

    Raises:
        DataError: a missing file or column.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `python -m experiments.recipes prepare` first")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a parquet table ({str(error).splitlines()[0]})") from error
    for column in COLUMNS:
        if column not in table.columns:
            raise DataError(f"{path}: column {column!r} is missing; it has {table.columns}")
    foods: dict[str, dict[int, set[str | None]]] = {}
    for recipe_id, line, food in table.select(COLUMNS).iter_rows():
        foods.setdefault(recipe_id, {}).setdefault(line, set()).add(food)
    return foods


def line_pairs(
    path: Path, foods: dict[str, dict[int, set[str | None]]]
) -> tuple[list[Pair], dict[str, int]]:
    """Distinct lines that name one food, sorted; and how many distinct lines are left out, by why.

    White space within a line counts as one space.

    Raises:
        DataError: recipes that cannot be read, or of which none was prepared.
    """
    found: dict[str, set[str | None]] = {}
    num_prepared = 0
    for recipe in read_raw_recipes(path):
        of_line = foods.get(recipe.recipe_id)
        if of_line is None:
            continue
        num_prepared += 1
        if max(of_line) >= len(recipe.lines):
            raise DataError(
                f"{path}: row {recipe.row}, column ingredients: recipe {recipe.recipe_id} has "
                f"{len(recipe.lines)} lines, the prepared folder knows of line {max(of_line)}: it "
                "was prepared from other recipes"
            )
        for place, line in enumerate(recipe.lines):
            found.setdefault(" ".join(line.split()), set()).update(of_line.get(place, {None}))
    if not num_prepared:
        raise DataError(f"{path}: holds no recipe of the prepared folder")
    kept, left_out = [], Counter[str]()
    for source, names in sorted(found.items()):
        food = next(iter(names))
        if len(names) > 1:
            left_out["several answers"] += 1
        elif food is None:
            left_out["no food"] += 1
        elif len(source.encode()) > MAX_BYTES:
            left_out["too long"] += 1
        else:
            kept.append(Pair(source, food))
    return kept, dict(left_out)
