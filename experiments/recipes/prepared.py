"""The data of a command: a prepared folder, or the sample inside the package."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from recipe_jax.batches import Molecules
from recipe_jax.data.composition import FoodFeatures, read_food_features
from recipe_jax.data.foods import read_foods
from recipe_jax.data.recipes import RecipeSets, read_recipe_sets
from recipe_jax.data.sample import read_sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Recipes and what is known of their foods.

    Attributes:
        source: what the recipes are, for people.
        sets: every recipe, all splits.
        foods: the vocabulary.
        features: the foods' composition and flavour, with names.
    """

    source: str
    sets: RecipeSets
    foods: tuple[str, ...]
    features: FoodFeatures

    @property
    def molecules(self) -> Molecules:
        """The features as a model's input."""
        return molecules_of(self.features)


def read_prepared(folder: Path | None) -> Prepared:
    """Read a prepared folder; None is the sample inside the package, and says so on stderr.

    Raises:
        DataError: a missing file, or a file that breaks a rule.
    """
    if folder is None:
        foods = tuple(read_foods().names)
        print("data: no --data given; the sample inside the package is used", file=sys.stderr)
        return Prepared(
            source="the sample inside the package",
            sets=read_sample(),
            foods=foods,
            features=read_food_features(foods=foods),
        )
    foods = tuple(read_foods(folder / "foods.parquet").names)
    return Prepared(
        source=str(folder),
        sets=read_recipe_sets(folder, foods),
        foods=foods,
        features=read_food_features(folder / "composition.npz", foods=foods),
    )


def molecules_of(features: FoodFeatures) -> Molecules:
    """Named features as the arrays that a model reads."""
    return Molecules(
        composition=features.components.astype(np.float32),
        observed=features.observed.astype(np.float32),
        flavour=features.flavour.astype(np.float32),
        has_flavour=features.has_flavour.astype(np.float32),
    )
