"""Regenerate the packaged tables `foods.csv` and `composition.npz` from the source data.

    python -m recipe_jax.data.assets --data "$RECIPE_JAX_DATA"

Reads the canonical foods, USDA SR26 and the flavour network of Ahn et al. (2011), and writes into
the package's `assets/` folder, the same bytes each time.
"""

import argparse
import html
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64

from recipe_jax.data.composition import (
    MIN_FOODS_WITH_COMPOUND,
    FoodFeatures,
    Nutrition,
    grams_per_unit,
    informative,
    standardise,
    write_composition,
)
from recipe_jax.data.files import DataError
from recipe_jax.data.foods import FoodTable, food_table, write_foods

ASSETS = Path(__file__).resolve().parents[1] / "assets"
DROPPED_COMPOUND = "farnesol"
MIN_NUTRITION_COVERAGE = 0.5


def canonical_foods(data: Path) -> FoodTable:
    """The food table in `data/recipes`, in its order."""
    foods = _read(data / "recipes/canonical_ingredients.csv")
    ahn = _read(data / "recipes/canonical_to_ahn.csv").select("canon", "ahn_id")
    table = foods.join(ahn, on="canon", how="left", maintain_order="left").rename(
        {
            "canon": "food",
            "usda_description": "description",
            "median_g": "median_grams",
            "n_recipes": "num_recipes",
        }
    )
    return food_table(table, name=str(data / "recipes/canonical_ingredients.csv"))


def usda_figures(data: Path, foods: FoodTable) -> tuple[pl.DataFrame, Float32[np.ndarray, "v n"]]:
    """USDA's definitions (`nutr, unit, is_aggregate`, in USDA's order) and figures per 100 g.

    A figure is NaN where USDA has none.
    """
    definitions = _read(data / "usda_sr26/nutrient_def.csv").sort("seq")
    long = _read(data / "usda_sr26/nutrient_long.parquet").select("food_id", "nutr_id", "value")
    rows = pl.DataFrame({"food_id": foods.ndb, "row": np.arange(len(foods))})
    columns = definitions.select(
        pl.col("nutr_id").cast(pl.Int16), column=pl.int_range(pl.len(), dtype=pl.Int64)
    )
    cells = rows.join(long, on="food_id").join(columns, on="nutr_id")
    figures = np.full((len(foods), len(definitions)), np.nan, np.float32)
    figures[cells["row"].to_numpy(), cells["column"].to_numpy()] = cells["value"].to_numpy()
    if np.isnan(figures).all(axis=1).any():
        row = int(np.argmax(np.isnan(figures).all(axis=1)))
        raise DataError(f"{data / 'usda_sr26'}: no figures for {foods.names[row]!r}")
    return definitions, figures


def component_grams(
    definitions: pl.DataFrame, figures: Float32[np.ndarray, "v n"]
) -> tuple[tuple[str, ...], Float64[np.ndarray, "v c"]]:
    """Names and grams per 100 g of the components that are kept; NaN where there is no figure."""
    single = ~definitions["is_aggregate"].to_numpy()
    names = np.array(readable_names(definitions["nutr"].to_list()))[single]
    units = definitions["unit"].to_numpy()[single]
    factors = [grams_per_unit(unit, name) for unit, name in zip(units, names, strict=True)]
    grams = figures[:, single].astype(np.float64) * np.array(factors)[None, :]
    kept = informative(grams)
    return tuple(names[kept].tolist()), grams[:, kept]


def nutrition_figures(
    foods: FoodTable, definitions: pl.DataFrame, figures: Float32[np.ndarray, "v n"]
) -> Nutrition:
    """The figures that at least half of the foods have; energy in kcal alone."""
    common = (~np.isnan(figures)).mean(axis=0) >= MIN_NUTRITION_COVERAGE
    kept = common & (definitions["unit"] != "kJ").to_numpy()
    return Nutrition(
        foods=foods.names,
        names=tuple(np.array(readable_names(definitions["nutr"].to_list()))[kept].tolist()),
        units=tuple(definitions["unit"].to_numpy()[kept].tolist()),
        per_100g=figures[:, kept],
    )


def flavour_bits(
    data: Path, foods: FoodTable
) -> tuple[tuple[str, ...], Bool[np.ndarray, "v f"], Bool[np.ndarray, "v"]]:
    """Compound names, which food contains which, and which foods the flavour network knows."""
    folder = data / "ahn_flavor_network"
    compounds = _read(folder / "comp_info.tsv").rename({"# id": "compound id"})
    pairs = _read(folder / "ingr_comp.tsv.gz")
    rows = pl.DataFrame({"ingredient id": foods.ahn_ids, "row": np.arange(len(foods))}).cast(
        {"ingredient id": pl.Int64}
    )
    cells = rows.join(pairs, on="ingredient id")
    bits = np.zeros((len(foods), int(compounds["compound id"].max()) + 1), bool)  # pyright: ignore[reportArgumentType]
    bits[cells["row"].to_numpy(), cells["compound id"].to_numpy()] = True
    listed = compounds.sort("compound id").filter(pl.col("Compound name") != DROPPED_COMPOUND)
    shared = bits[:, listed["compound id"].to_numpy()]
    kept = shared.sum(axis=0) >= MIN_FOODS_WITH_COMPOUND
    names = [html.unescape(name).replace("_", " ") for name in listed["Compound name"]]
    return tuple(np.array(names)[kept].tolist()), shared[:, kept], foods.ahn_ids >= 0


def build(data: Path) -> tuple[FoodTable, FoodFeatures, Nutrition]:
    """The food table, its features and its nutrition figures, from the folder of source data."""
    foods = canonical_foods(data)
    definitions, figures = usda_figures(data, foods)
    component_names, grams = component_grams(definitions, figures)
    components = standardise(grams)
    compound_names, flavour, has_flavour = flavour_bits(data, foods)
    features = FoodFeatures(
        foods=foods.names,
        component_names=component_names,
        components=components.values,
        observed=components.observed,
        scaling=components.scaling,
        compound_names=compound_names,
        flavour=flavour.astype(np.float32),
        has_flavour=has_flavour,
    )
    return foods, features, nutrition_figures(foods, definitions, figures)


def readable_names(names: Sequence[str]) -> list[str]:
    """USDA's names, with `fatty acid` before the bare numbers of carbon atoms and double bonds."""
    return [f"fatty acid {name}" if re.match(r"\d+:\d", name) else name for name in names]


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file; --data must name the folder of source data")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, separator="\t" if ".tsv" in path.name else ",")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a table ({str(error).splitlines()[0]})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the assets; 2 and one line on stderr where the data does not allow it."""
    parser = argparse.ArgumentParser(description="Regenerate foods.csv and composition.npz.")
    parser.add_argument("--data", type=Path, default=os.environ.get("RECIPE_JAX_DATA"))
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write into")
    flags = parser.parse_args(arguments)
    if flags.data is None:
        parser.error("--data is required where RECIPE_JAX_DATA is not set")
    try:
        foods, features, nutrition = build(flags.data)
        write_foods(foods, flags.out / "foods.csv")
        write_composition(flags.out / "composition.npz", features, nutrition)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    num_components, num_compounds = len(features.component_names), len(features.compound_names)
    print(f"{len(foods)} foods, {num_components} components, {num_compounds} compounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
