"""Recipes that were asked for: the data of PantryPilot (abhikothari091/PantryPilot, MIT).

People wrote 43 requests and chose one of two recipes for each.  A model wrote 2,400 recipes, each
for a pantry: foods, some of them with a wish for a diet, a cuisine, or what must be used.  These
have no request in words (`user_request` is empty in all of them), so what was asked is the list.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from recipe_jax.data.catalogues import (
    FIELD_SEPARATOR,
    Catalogue,
    catalogue_fingerprint,
    joined,
)
from recipe_jax.data.files import DataError
from recipe_jax.data.text_lines import parse_object, read_lines

_PANTRIES = {"validation": "recipes_val.jsonl.gz", "test": "recipes_test.jsonl.gz"}
_PREFERENCES = "my_preferences.jsonl"


class Asked(NamedTuple):
    """Queries, and the item that each of them led to.

    Attributes:
        queries: as text; never empty.
        targets: rows of the catalogue.
    """

    queries: tuple[str, ...]
    targets: Int64[np.ndarray, "u"]


class AskedRecipes(NamedTuple):
    """Recipes with what they were made or chosen for.

    Attributes:
        items: every recipe once: title, cuisine, diet and ingredients; attributes `title, cuisine`.
        requests: sentences that people wrote, and the recipe that they preferred.
        pantries: of each file, `validation` and `test`: what must be used, a diet and a cuisine
            where there is one, the foods that are there; and the recipe written for them.
        num_empty: recipes without ingredients, as of a model that found none; left out.
    """

    items: Catalogue
    requests: Asked
    pantries: dict[str, Asked]
    num_empty: int


def read_pantrypilot(folder: Path) -> AskedRecipes:
    """Read all three files.  Recipes that are equal in every word are one item.

    Args:
        folder: holds `pantrypilot/my_preferences.jsonl` and the two files of recipes.

    Raises:
        DataError: a file that is not there or damaged, or a row that breaks a rule: the message
            names file, row, field, value and rule.
    """
    folder = folder / "pantrypilot"
    recipes, num_empty = _Recipes(), 0
    requests: dict[str, list[tuple[str, int]]] = {name: [] for name in ("pairs", *_PANTRIES)}
    for row, place, pair in _rows(folder / _PREFERENCES):
        query = _text(pair, ("user_request",), place, " ")
        if not query:
            raise DataError(f"{place}: user_request={pair['user_request']!r} must not be empty")
        chosen, _ = (
            recipes.add(f"pair-{row}-{kind}", _member(pair, f"{kind}_recipe", place), place)
            for kind in ("chosen", "rejected")
        )
        requests["pairs"].append((query, chosen))
    for name, file in _PANTRIES.items():
        for row, place, example in _rows(folder / file):
            recipe = _member(_member(example, "output", place), "recipe", place)
            if recipe.get("main_ingredients") == []:
                num_empty += 1
                continue
            query = _pantry(_member(example, "input", place), place)
            requests[name].append((query, recipes.add(f"{name}-{row}", recipe, place)))
    asked = {name: _asked(folder, name, rows) for name, rows in requests.items()}
    return AskedRecipes(recipes.catalogue(), asked.pop("pairs"), asked, num_empty)


class _Recipes:
    """Items as they come; those of equal texts are one."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.cuisines: list[str] = []

    def add(self, identifier: str, recipe: Mapping[str, Any], place: str) -> int:
        """The row of a recipe, a new one if it is new."""
        title = _text(recipe, ("name",), place, " ")
        ingredients = _text(recipe, ("main_ingredients",), place, ", ")
        for field, value in {"name": title, "main_ingredients": ingredients}.items():
            if not value:
                raise DataError(f"{place}: {field}={recipe[field]!r:.60} must not be empty")
        known = {"cuisine": None, "culinary_preference": None, **recipe}  # both may be missing
        cuisine = _text(known, ("cuisine",), place, " ")
        diet = _text(known, ("culinary_preference",), place, " ")
        text = FIELD_SEPARATOR.join(part for part in (title, cuisine, diet, ingredients) if part)
        if text not in self.row_of:
            self.row_of[text] = len(self.ids)
            self.ids.append(identifier)
            self.titles.append(title)
            self.cuisines.append(cuisine)
        return self.row_of[text]

    def catalogue(self) -> Catalogue:
        attributes = {"title": tuple(self.titles), "cuisine": tuple(self.cuisines)}
        ids, texts = tuple(self.ids), tuple(self.row_of)
        return Catalogue(ids, texts, attributes, catalogue_fingerprint(ids, texts))


def _rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for row, line in read_lines(path):
        place = f"{path}: row {row}"
        yield row, place, parse_object(line, place)


def _member(value: Mapping[str, Any], field: str, place: str) -> dict[str, Any]:
    """An object within an object."""
    found = value.get(field)
    if not isinstance(found, dict):
        raise DataError(f"{place}: {field}={found!r:.60} must be a JSON object")
    return found


def _pantry(asked: Mapping[str, Any], place: str) -> str:
    """What was asked as words: the most special first, which changes no ranking by words."""
    found = asked.get("user_inventory")
    if not isinstance(found, list) or not found:
        raise DataError(f"{place}: user_inventory={found!r:.60} must be a list of foods, not empty")
    fields = ("requested_ingredients", "preference", "cuisine", "user_inventory")
    return _text(asked, fields, place, ", ")


def _text(value: Mapping[str, Any], fields: tuple[str, ...], place: str, separator: str) -> str:
    """Fields in words; `gluten_free` is written both so and `gluten-free`, and read as the same."""
    for field in fields:
        if field not in value:
            raise DataError(f"{place}: field {field!r} is missing; it has {sorted(value)}")
    parts = (joined(value[field], separator, f"{place}: {field}") for field in fields)
    return separator.join(part.replace("_", "-") for part in parts if part)


def _asked(folder: Path, name: str, rows: list[tuple[str, int]]) -> Asked:
    if not rows:
        file = _PANTRIES.get(name, _PREFERENCES)
        raise DataError(f"{folder / file}: holds no recipe that was asked for")
    queries, targets = zip(*rows, strict=True)
    return Asked(queries, np.array(targets, np.int64))
