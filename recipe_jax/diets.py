"""Diets and allergens by rule, food by food: what was checked, never that something is safe.

`assets/diets.csv` says of every canonical food what it contains, and what some products under its
name contain (unknown).  All were judged by hand, one by one, by these rules:

- Judged is the food under its canonical name, as sold in North America and as its USDA record
  describes it.  Where kinds or brands differ, what only some contain is unknown.
- A canonical food stands for several written names.  Where a sizeable share of them are another
  product (refried beans under `pinto bean`), what that product contains is unknown.  Rarer ones are
  not looked at (almond extract under `vanilla extract`, pesto under `basil`): where foods were read
  from the lines of a recipe, check its words too.
- Cheese set by rennet is unknown, since the rennet may come from calves or from microbes.  Wine,
  beer and apple juice may be fined with isinglass, gelatin, egg white or casein: unknown.  Filters
  of which nothing is added to the food (bone char for sugar) are not looked at.
- Traces from shared equipment are not looked at, except gluten in oats, which is common.
- Refined soybean oil is unknown for soy, a spirit that may be distilled from grain for gluten,
  coconut for tree nuts: the rules of countries differ.  Shellfish are crustaceans and molluscs.

Unknown, and a food that the table does not list, are not cleared.  Halal and kosher are not
claimed: `pork` and `alcohol` are only about those two.
"""

import csv
import importlib.resources
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

Status = Literal["contains", "unknown", "free"]

_FLESH = frozenset({"meat", "gelatin", "rennet", "fining"})
_VEGETARIAN = _FLESH | {"fish", "shellfish"}

DIETS: Mapping[str, frozenset[str]] = {
    "vegan": _VEGETARIAN | {"dairy", "eggs", "honey", "additives"},
    "vegetarian": _VEGETARIAN,
    "pescatarian": _FLESH,
    "gluten": frozenset({"gluten"}),
    "dairy": frozenset({"dairy"}),
    "eggs": frozenset({"eggs"}),
    "nuts": frozenset({"peanuts", "tree-nuts"}),
    "tree-nuts": frozenset({"tree-nuts"}),
    "peanuts": frozenset({"peanuts"}),
    "soy": frozenset({"soy"}),
    "fish": frozenset({"fish"}),
    "shellfish": frozenset({"shellfish"}),
    "sesame": frozenset({"sesame"}),
    "alcohol": frozenset({"alcohol"}),
    "pork": frozenset({"pork"}),
}
"""What each diet excludes.  `additives` are those that some brands make from animals (vitamin D3
from wool, carmine, mono- and diglycerides); `meat` includes poultry, stock and animal fat."""


class Contents(NamedTuple):
    """What one food contains, what some products under its name contain, and why it is so."""

    contains: frozenset[str]
    unknown: frozenset[str]
    note: str


class Finding(NamedTuple):
    """What a diet's rule found in one food.

    Attributes:
        food: as it was asked.
        status: `contains` what the diet excludes, may (`unknown`), or is `free` of it by its name.
        because: the excluded contents behind the status, sorted; empty where it is `free` and where
            the food is not listed.
    """

    food: str
    status: Status
    because: tuple[str, ...]


@cache
def food_contents() -> Mapping[str, Contents]:
    """The packaged table: contents by canonical food, in vocabulary order."""
    source = importlib.resources.files("recipe_jax") / "assets/diets.csv"
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    return {
        row["food"]: Contents(
            frozenset(row["contains"].split()), frozenset(row["unknown"].split()), row["note"]
        )
        for row in rows
    }


def excluded_contents(diet: str) -> frozenset[str]:
    """The contents that `diet` excludes.

    Raises:
        ValueError: an unknown diet; the message lists `DIETS`.
    """
    if diet not in DIETS:
        raise ValueError(f"diet {diet!r} is not among the known: {', '.join(DIETS)}")
    return DIETS[diet]


def check(foods: Sequence[str], diet: str) -> list[Finding]:
    """What the rule of `diet` finds in each food; a food that is not listed is `unknown`.

    Raises:
        ValueError: an unknown diet.
    """
    excluded = excluded_contents(diet)
    table = food_contents()
    findings = []
    for food in foods:
        contents = table.get(food)
        if contents is None:
            findings.append(Finding(food, "unknown", ()))
        elif contents.contains & excluded:
            findings.append(Finding(food, "contains", tuple(sorted(contents.contains & excluded))))
        elif contents.unknown & excluded:
            findings.append(Finding(food, "unknown", tuple(sorted(contents.unknown & excluded))))
        else:
            findings.append(Finding(food, "free", ()))
    return findings


def cleared(foods: Sequence[str], diet: str) -> Bool[np.ndarray, "n"]:
    """Which foods the rule of `diet` found free of what it excludes; unknown is not cleared.

    Raises:
        ValueError: an unknown diet.
    """
    return np.array([finding.status == "free" for finding in check(foods, diet)], bool)
