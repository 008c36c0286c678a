"""The food table: the closed vocabulary of canonical foods, in vocabulary order.

The packaged table `assets/foods.csv` holds 507 foods over 495 USDA records (SR26): twelve pairs of
names share one record.  A prepared folder carries the same table as `foods.parquet`.
"""

import dataclasses
import difflib
import importlib.resources
import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int32

from recipe_jax.data.files import DataError, replace_file

COLUMNS: Mapping[str, pl.DataType] = {
    "food": pl.String(),
    "ndb": pl.Int32(),
    "description": pl.String(),
    "group": pl.String(),
    "ahn_id": pl.Int32(),
    "median_grams": pl.Float32(),
    "num_recipes": pl.Int32(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoodTable:
    """The canonical foods; a food's index is its place in `names`.

    Attributes:
        names: canonical names, distinct, most frequent first.
        ndb: number of the food's USDA record.
        descriptions: what USDA calls that record.
        groups: USDA food group.
        ahn_ids: ingredient of the flavour network (Ahn et al. 2011); -1 where it has none.
        median_grams: median weight of one ingredient line that names the food.
        num_recipes: recipes of the reference corpus that contain the food.
    """

    names: tuple[str, ...]
    ndb: Int32[np.ndarray, "v"]
    descriptions: tuple[str, ...]
    groups: tuple[str, ...]
    ahn_ids: Int32[np.ndarray, "v"]
    median_grams: Float32[np.ndarray, "v"]
    num_recipes: Int32[np.ndarray, "v"]

    def __len__(self) -> int:
        """How many foods there are."""
        return len(self.names)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def index_of(self, name: str) -> int:
        """The food's index in the vocabulary.

        Raises:
            ValueError: an unknown name; the message suggests the nearest names.
        """
        if name not in self._index:
            near = difflib.get_close_matches(name.lower(), self.names, n=3, cutoff=0.5)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise ValueError(f"food {name!r} is not among the {len(self)} known foods{hint}")
        return self._index[name]


def read_foods(path: Path | None = None) -> FoodTable:
    """Read a food table.

    Args:
        path: a `.csv` or `.parquet` file with `COLUMNS`; None reads the table in the package.

    Raises:
        DataError: a missing file or column, an empty or repeated name, a value of another type.
    """
    source = importlib.resources.files("recipe_jax") / "assets/foods.csv" if path is None else path
    if not source.is_file():
        raise DataError(f"{source}: no such file; `write_foods` makes it")
    try:
        data = io.BytesIO(source.read_bytes())
        read = pl.read_csv if source.name.endswith(".csv") else pl.read_parquet
        table = read(data)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{source}: not a food table ({str(error).splitlines()[0]})") from error
    return food_table(table, name=str(source))


def food_table(table: pl.DataFrame, *, name: str) -> FoodTable:
    """The food table in `table`, which has `COLUMNS`; errors call it `name`."""
    for column, dtype in COLUMNS.items():
        if column not in table.columns:
            raise DataError(f"{name}: column {column!r} is missing; it has {table.columns}")
        try:
            table = table.with_columns(pl.col(column).cast(dtype))
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{name}: column {column!r} must be {dtype}") from error
        if column != "ahn_id" and table[column].null_count():
            row = int(np.flatnonzero(table[column].is_null().to_numpy())[0])
            raise DataError(f"{name}: row {row}: {column} must not be empty")
    for row, food in enumerate(table["food"].is_duplicated()):
        if food:
            raise DataError(f"{name}: row {row}: food={table['food'][row]!r} occurs twice")
    weightless = np.flatnonzero(~(table["median_grams"].to_numpy() > 0))
    if len(weightless):
        row = int(weightless[0])
        grams = table["median_grams"][row]
        raise DataError(f"{name}: row {row}: median_grams={grams} must be a positive number")
    return FoodTable(
        names=tuple(table["food"]),
        ndb=table["ndb"].to_numpy(),
        descriptions=tuple(table["description"]),
        groups=tuple(table["group"]),
        ahn_ids=table["ahn_id"].fill_null(-1).to_numpy(),
        median_grams=table["median_grams"].to_numpy(),
        num_recipes=table["num_recipes"].to_numpy(),
    )


def write_foods(table: FoodTable, path: Path) -> None:
    """Write `table` to `path` (`.csv` or `.parquet`), whole or not at all."""
    frame = pl.DataFrame(
        {
            "food": table.names,
            "ndb": table.ndb,
            "description": table.descriptions,
            "group": table.groups,
            "ahn_id": [None if ahn_id < 0 else ahn_id for ahn_id in table.ahn_ids.tolist()],
            "median_grams": table.median_grams,
            "num_recipes": table.num_recipes,
        },
        schema=dict(COLUMNS),
    )
    data = io.BytesIO()
    if path.suffix == ".csv":
        frame.write_csv(data)
    else:
        frame.write_parquet(data)
    replace_file(path, data.getvalue())
