"""Raw recipes to a prepared folder: parse every distinct line once, map it to food and grams."""

import dataclasses
import importlib.metadata
import importlib.resources
import io
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from recipe_jax.data.files import DataError
from recipe_jax.data.food_names import read_food_names
from recipe_jax.data.foods import FoodTable, read_foods, write_foods
from recipe_jax.data.grams import read_household_weights
from recipe_jax.data.ingredient_lines import IngredientLine, parse_lines, require_tagger
from recipe_jax.data.line_mapping import MappedFood, map_line
from recipe_jax.data.raw_recipes import RawRecipe, read_raw_recipes
from recipe_jax.data.recipes import split_of

PACKAGES = ("ingredient-parser-nlp", "polars", "rapidfuzz")
RECIPE_SCHEMA = {
    "recipe_id": pl.String(),
    "title": pl.String(),
    "source": pl.String(),
    "split": pl.String(),
    "num_lines": pl.Int32(),
}
LINE_SCHEMA = {
    "recipe_id": pl.String(),
    "line": pl.Int32(),
    "name": pl.String(),
    "food": pl.String(),
    "ndb": pl.Int32(),
    "grams": pl.Float32(),
    "method": pl.String(),
}
# Sources lose the ingredients of a recipe now and then; a file that lost more of them is broken.
MAX_EMPTY_SHARE = 0.01
# A recipe counts as read where this share of its lines carries a food and grams.
READ_SHARE = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What `prepare` did.

    Attributes:
        num_recipes: recipes read.
        num_empty: recipes left out because they have no ingredient line.
        num_lines: their ingredient lines (no headings, equipment or notes).
        num_distinct: distinct raw lines, each parsed once.
        lines_with_food: share of the ingredient lines that name a known food.
        lines_with_grams: share that are weighed too.
        recipes_read: share of recipes with food and grams on at least `READ_SHARE` of their lines.
        kinds: raw lines by kind.
        methods: foods by the way they were weighed.
        failures: foods without grams, or lines without food, by reason.
        wall_seconds: of the whole run.
        cpu_seconds: of this process and its workers: what the run costs whatever else runs.
        peak_bytes: most memory of this process and of its largest worker.
    """

    num_recipes: int
    num_empty: int
    num_lines: int
    num_distinct: int
    lines_with_food: float
    lines_with_grams: float
    recipes_read: float
    kinds: Mapping[str, int]
    methods: Mapping[str, int]
    failures: Mapping[str, int]
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def prepare(
    recipes: Path, out: Path, *, limit: int | None = None, processes: int | None = None
) -> PrepareReport:
    """Write the prepared folder of `recipes`.

    The folder holds `recipes.parquet`, `ingredients.parquet`, `foods.parquet`, `composition.npz`
    and `prepare.json`.  Files appear under their names only once all of them are written.

    Args:
        recipes: raw recipes, as `read_raw_recipes` takes them.
        out: the folder to write; made where it is missing.
        limit: read at most that many recipes.
        processes: of the parser; by default one for each core.

    Raises:
        DataError: bad input, a missing tagger, a folder that cannot be written, a full disk.
    """
    start, cpu_start = time.perf_counter(), sum(os.times()[:4])
    require_tagger()
    with _new_files(out) as folder:
        everything = list(read_raw_recipes(recipes, limit=limit))
        raw = _with_lines(everything, recipes)
        foods = read_foods()
        parsed = parse_lines([line for recipe in raw for line in recipe.lines], processes=processes)
        mapped = _map_lines(parsed, foods)
        recipe_table, line_table = _tables(raw, mapped, foods)
        report = _report(raw, parsed, recipe_table, line_table)
        report = dataclasses.replace(
            report,
            num_empty=len(everything) - len(raw),
            wall_seconds=time.perf_counter() - start,
            cpu_seconds=sum(os.times()[:4]) - cpu_start,
            peak_bytes=_peak_bytes(),
        )
        _write_parquet(recipe_table, folder / "recipes.parquet")
        _write_parquet(line_table, folder / "ingredients.parquet")
        write_foods(foods, folder / "foods.parquet")
        composition = importlib.resources.files("recipe_jax") / "assets/composition.npz"
        (folder / "composition.npz").write_bytes(composition.read_bytes())
        record = {
            "config": {"recipes": str(recipes), "limit": limit, "processes": processes},
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            **dataclasses.asdict(report),
        }
        (folder / "prepare.json").write_text(json.dumps(record, indent=2) + "\n")
    print_report(report)
    return report


@contextmanager
def _new_files(out: Path) -> Iterator[Path]:
    """A folder to write into; on success its files move to `out`, else nothing is left."""
    folder = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".prepare.", dir=out))
        yield folder
        for file in sorted(folder.iterdir()):
            file.replace(out / file.name)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _write_parquet(table: pl.DataFrame, path: Path) -> None:
    """By way of memory: where a disk is full Polars raises an error of its own, no OSError."""
    data = io.BytesIO()
    table.write_parquet(data)
    path.write_bytes(data.getbuffer())


def _with_lines(raw: Sequence[RawRecipe], path: Path) -> list[RawRecipe]:
    """The recipes that have ingredient lines; a few may be empty."""
    empty = [recipe for recipe in raw if not recipe.lines]
    if not raw:
        raise DataError(f"{path}: holds no recipe")
    if len(empty) > MAX_EMPTY_SHARE * len(raw):
        raise DataError(
            f"{path}: row {empty[0].row}: ingredients=[]: {len(empty)} of {len(raw)} recipes are "
            f"empty, and at most {MAX_EMPTY_SHARE:.0%} of them may be"
        )
    return [recipe for recipe in raw if recipe.lines]


def _map_lines(
    parsed: Mapping[str, IngredientLine], foods: FoodTable
) -> dict[str, tuple[MappedFood, ...]]:
    names, weights = read_food_names(foods.names), read_household_weights(foods)
    return {line: map_line(read, names, weights) for line, read in parsed.items()}


def _tables(
    raw: Sequence[RawRecipe], mapped: Mapping[str, tuple[MappedFood, ...]], foods: FoodTable
) -> tuple[pl.DataFrame, pl.DataFrame]:
    ndb = dict(zip(foods.names, foods.ndb.tolist(), strict=True))
    recipes, lines = [], []
    for recipe in raw:
        key = recipe.recipe_id
        rows = [
            (key, place, one.name, one.food, ndb.get(one.food or ""), one.grams, one.method)
            for place, line in enumerate(recipe.lines)
            for one in mapped[line]
        ]
        num_lines = len({row[1] for row in rows})
        recipes.append((key, recipe.title, recipe.source, split_of(key), num_lines))
        lines += rows
    return (
        pl.DataFrame(recipes, RECIPE_SCHEMA, orient="row"),
        pl.DataFrame(lines, LINE_SCHEMA, orient="row"),
    )


def _report(
    raw: Sequence[RawRecipe],
    parsed: Mapping[str, IngredientLine],
    recipes: pl.DataFrame,
    lines: pl.DataFrame,
) -> PrepareReport:
    has_food, has_grams = pl.col("food").is_not_null(), pl.col("grams").is_not_null()
    per_line = lines.group_by("recipe_id", "line").agg(
        food=has_food.any(), grams=has_grams.any(), both=(has_food & has_grams).any()
    )
    shares = per_line.group_by("recipe_id").agg(pl.col("both").mean())["both"].to_numpy()
    reasons = lines["method"].str.split(":").list.first()
    is_failure = lines["grams"].is_null()
    return PrepareReport(
        num_recipes=len(raw),
        num_empty=0,
        num_lines=int(recipes["num_lines"].sum()),
        num_distinct=len(parsed),
        lines_with_food=float(np.mean(per_line["food"].to_numpy())),
        lines_with_grams=float(np.mean(per_line["grams"].to_numpy())),
        recipes_read=float(np.sum(shares >= READ_SHARE - 1e-9) / len(raw)),
        kinds=dict(Counter(parsed[line].kind for recipe in raw for line in recipe.lines)),
        methods=dict(Counter(reasons.filter(~is_failure)).most_common()),
        failures=dict(Counter(reasons.filter(is_failure)).most_common()),
        wall_seconds=0.0,
        cpu_seconds=0.0,
        peak_bytes=0,
    )


def _peak_bytes() -> int:
    """Most memory of this process and of its largest finished child."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * sum(resource.getrusage(each).ru_maxrss for each in who)


def print_report(report: PrepareReport) -> None:
    """Print the yield and the failures by reason to stderr."""
    table = Table(title="prepared recipes", title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    table.add_row("recipes", f"{report.num_recipes:,}", "")
    table.add_row("  food and grams on 80 % of lines", "", f"{report.recipes_read:.1%}")
    table.add_row("ingredient lines", f"{report.num_lines:,}", "")
    table.add_row("  with a food", "", f"{report.lines_with_food:.1%}")
    table.add_row("  with grams", "", f"{report.lines_with_grams:.1%}")
    for kind, number in sorted(report.kinds.items()):
        if kind != "ingredient":
            table.add_row(f"other lines: {kind}", f"{number:,}", "")
    num_foods = sum(report.methods.values()) + sum(report.failures.values())
    for title, counts in (("weighed by", report.methods), ("not weighed:", report.failures)):
        for reason, number in counts.items():
            label = f"{title} {reason}".replace("_", " ")
            table.add_row(label, f"{number:,}", f"{number / num_foods:.2%}")
    Console(stderr=True).print(table)
