"""The interactions of a command: by name, from `$RECIPE_JAX_DATA`, or a file of histories."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from experiments.record import place_of
from recipe_jax.data.files import DataError
from recipe_jax.data.interactions import (
    Split,
    distinct_items,
    leave_last_out,
    mealrec_recipes,
    random_leave_one_out,
    read_histories,
    read_mealrec,
    shuffled_ids,
)
from recipe_jax.data.recipes import split_of

NAMES = ("beauty", "mealrec")
"""Data that `$RECIPE_JAX_DATA` holds."""


class Dataset(NamedTuple):
    """Interactions, split.

    Attributes:
        name: what they are, for people.
        item_ids: an item's index is its place here, which is random.
        split: what to learn from and what to ask.
    """

    name: str
    item_ids: tuple[str, ...]
    split: Split


def read_dataset(data: str, *, seed: int = 0) -> Dataset:
    """Read and split interactions; items get random indices.

    Args:
        data: `beauty` (ordered, the last items left out), `mealrec` (sets of recipes with content,
            random items left out), or the path of a file as `read_histories` reads it.
        seed: of the items' order and of what is left out of sets.

    Raises:
        DataError: files that are not there or break a rule.
    """
    if data == "mealrec":
        path = _shared("interactions/mealrec_user_recipe.parquet")
        item_ids = shuffled_ids(mealrec_recipes(path), seed=seed)
        histories = read_mealrec(path, item_ids)
        return Dataset(data, item_ids, random_leave_one_out(histories, seed=seed))
    path = _shared("amazon_beauty/Beauty.txt.gz") if data == "beauty" else Path(data)
    item_ids = shuffled_ids(distinct_items(path), seed=seed)
    return Dataset(said(data), item_ids, leave_last_out(read_histories(path, item_ids)))


def new_items(item_ids: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Which items an item split keeps from all that is learned: one in ten, by their names alone.

    Raises:
        DataError: none of them is.
    """
    found = np.array([split_of(name) == "test" for name in item_ids], bool)
    if not found.any():
        raise DataError(
            f"none of the {len(item_ids)} items is new: one in ten is, by a hash of its name"
        )
    return found


def said(data: str) -> str:
    """The data as somebody else would name them: no place of this machine is in it."""
    return data if data in NAMES else place_of(Path(data))


def _shared(place: str) -> Path:
    folder = os.environ.get("RECIPE_JAX_DATA")
    if not folder:
        raise DataError(f"$RECIPE_JAX_DATA is not set: name the folder that holds {place}")
    return Path(folder) / place
