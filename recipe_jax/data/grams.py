"""Measures of a food to grams.

A mass is taken as written; a volume is weighed with the food's own household measures (USDA SR26
and SR28: a cup of chopped onion is 160 g); things are counted with the weight of one ("medium",
"clove", "stick") or of one package.  What cannot be weighed keeps no grams and says why.
"""

import csv
import dataclasses
import gzip
import importlib.resources
import io
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from recipe_jax.data.files import DataError
from recipe_jax.data.foods import FoodTable
from recipe_jax.data.ingredient_lines import Measure
from recipe_jax.data.units import (
    CONTAINERS,
    Unit,
    grams_per,
    is_mass,
    is_volume,
    milliliters_per,
    read_unit,
)

# A whole line above this is a misread number ("1000000 cups"), not an amount.
MAX_GRAMS = 50_000.0
ANY_FOOD = "*"
_WORD = re.compile(r"[a-z]+")
_PARENTHESES = re.compile(r"\([^)]*\)")
_SMALL_SPOONS = {"teaspoon", "tablespoon", "dash", "pinch", "drop", "dessertspoon"}
# Words of a USDA measure that say nothing about the state of the food.
_IDLE_WORDS = frozenset("nfs and the with yield about approx all whole fruit item each".split())
_SAME_STATE = {
    "minced": "chopped", "diced": "chopped", "cubed": "cube", "dice": "cube", "slice": "sliced",
    "grate": "grated", "shred": "shredded", "halved": "half", "quartered": "sliced",
    "crumble": "crumbled", "julienne": "strip", "julienned": "strip", "puree": "pureed",
    "mash": "mashed", "crushed": "crumb",
}  # fmt: skip
# Units that count whole pieces of a food, so that the weight of one piece will do.
_WHOLE_UNITS = frozenset(
    "head ear bulb fillet link stalk pod breast thigh wing leg chop steak bar ball square spear "
    "roll loaf patty item count serving berry seed floret cap drumstick rack roast medallion stick "
    "clove cutlet round recipe batch cake crown heart shell".split()
)
_NEAR_UNITS = {
    "rib": "stalk", "bulb": "head", "crown": "head", "strip": "slice", "stem": "sprig",
    "branch": "sprig", "envelope": "package", "packet": "package", "box": "package",
    "pouch": "package", "sachet": "package", "container": "package", "carton": "container",
    "tub": "container", "rasher": "slice", "round": "slice", "wedge": "slice", "knob": "piece",
    "inch": "piece", "loaf": "package", "sheet": "piece", "peel": "strip", "bag": "package",
    "package": "container", "ball": "piece", "quarter": "slice",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighed:
    """The weight of a line and how it was found.

    Attributes:
        grams: None where nothing told the weight.
        method: "mass", "volume", "volume_of_group", "count" or "package"; without grams the
            reason: "no_amount" or "no_unit:" and the unit that has no known weight.
    """

    grams: float | None
    method: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class HouseholdMeasure:
    """What one unit of a food weighs.

    Attributes:
        unit: as in `recipe_jax.data.units`; empty for one whole piece.
        size: "small", "medium", "large" or empty.
        state: words such as "chopped" that must hold for it.
        grams: of one unit, or of one millilitre where the unit is a volume.
    """

    unit: str
    size: str
    state: frozenset[str]
    grams: float


class HouseholdWeights:
    """Weighs measures of foods.

    Args:
        rows: `(food, amount, measure, grams)`, the preferred ones first; the food `"*"` stands for
            any food that has no row of its own.
        groups: the USDA group of each food.  The median density of its group weighs a volume of
            a food for which no volume is listed.

    Raises:
        DataError: an amount or a weight that is not positive.
    """

    def __init__(self, rows: Iterable[tuple[str, float, str, float]], groups: dict[str, str]):
        self._volumes: dict[str, list[HouseholdMeasure]] = defaultdict(list)
        self._pieces: dict[str, list[HouseholdMeasure]] = defaultdict(list)
        for food, amount, measure, grams in rows:
            if not (amount > 0 and grams > 0):
                raise DataError(
                    f"weights: food={food!r} measure={measure!r}: amount={amount} and "
                    f"grams={grams} must be positive"
                )
            read = read_household_measure(amount, measure, grams, food)
            if read is not None:
                kind = self._volumes if is_volume(read.unit) else self._pieces
                kind[food].append(read)
        self._groups = groups
        densities = defaultdict(list)
        for food, measures in self._volumes.items():
            densities[groups.get(food, "")].append(measures[0].grams)
        self._group_density = {g: statistics.median(each) for g, each in densities.items()}

    def weigh(self, measures: tuple[Measure, ...], food: str, words: frozenset[str]) -> Weighed:
        """The weight of a line of `food`.

        Args:
            measures: what the line says, in its order; several are several ways to say it.
            food: a canonical food.
            words: lower-case words of the line ("chopped", "packed") that choose among measures.
        """
        ways = _ways(measures)
        if not ways:
            return Weighed(grams=None, method="no_amount")
        ways.sort(key=lambda way: _directness(way[0]))
        for way in ways:
            parts = [self._part(part, food, words) for part in way]
            grams = sum(part.grams or math.nan for part in parts)
            if 0 < grams <= MAX_GRAMS:
                return Weighed(grams=grams, method=parts[0].method)
        unit = " ".join(part.unit or "piece" for part in ways[0])
        return Weighed(grams=None, method=f"no_unit:{unit}")

    def _part(self, measure: Measure, food: str, words: frozenset[str]) -> Weighed:
        if is_mass(measure.unit):
            return Weighed(grams=measure.quantity * grams_per(measure.unit), method="mass")
        if is_volume(measure.unit):
            return self._volume(measure, food, words)
        grams = self._piece(measure.unit, measure.size, food, words)
        method = "package" if measure.unit in CONTAINERS else "count"
        return Weighed(grams=grams and measure.quantity * grams, method=method)

    def _volume(self, measure: Measure, food: str, words: frozenset[str]) -> Weighed:
        milliliters = measure.quantity * milliliters_per(measure.unit)
        listed = self._volumes.get(food)
        if not listed:
            density = self._group_density.get(self._groups.get(food, ""))
            grams = milliliters * density if density else None
            return Weighed(grams=grams, method="volume_of_group")
        is_small = measure.unit in _SMALL_SPOONS
        best = min(
            listed, key=lambda one: (_misfit(one, words), (one.unit in _SMALL_SPOONS) != is_small)
        )
        return Weighed(grams=milliliters * best.grams, method="volume")

    def _piece(self, unit: str, size: str, food: str, words: frozenset[str]) -> float | None:
        for owner in (food, ANY_FOOD):
            for near in _units_near(unit):
                listed = [each for each in self._pieces.get(owner, ()) if each.unit == near]
                if listed:
                    return min(
                        listed,
                        key=lambda one: (_misfit(one, words), _size_distance(one.size, size)),
                    ).grams
        return None


def _units_near(unit: str) -> list[str]:
    """The unit and those that may stand for it, nearest first."""
    units = [unit]
    if (near := _NEAR_UNITS.get(unit)) is not None:
        units.append(near)
    return [*units, ""] if unit in _WHOLE_UNITS else units


def _misfit(household: HouseholdMeasure, words: frozenset[str]) -> int:
    """How badly a household measure fits a line with these words; negative where it fits well."""
    return 2 * len(household.state - words) - 3 * len(household.state & words)


def _size_distance(listed: str, wanted: str) -> int:
    if listed == wanted:
        return 0
    places = ("small", "", "medium", "large")
    if not wanted:
        return {"medium": 1, "large": 2, "small": 3}[listed]
    return abs(places.index(listed) - places.index(wanted)) + 1


def _directness(measure: Measure) -> int:
    if is_mass(measure.unit):
        return 0
    return 1 if is_volume(measure.unit) else 2


def _ways(measures: Sequence[Measure]) -> list[list[Measure]]:
    """The ways in which the measures tell the amount, each as parts to be added."""
    ways: list[list[Measure]] = []
    for measure in measures:
        if measure.adds and ways:
            ways[-1].append(measure)
        elif measure.per_item and ways:
            count = ways[-1][0].quantity
            ways.append([dataclasses.replace(measure, quantity=count * measure.quantity)])
        else:
            ways.append([measure])
    # "1 cup of hominy (from a 15-ounce can)": the size of a package it was taken from.
    if len(measures) > 2 and is_volume(measures[0].unit) and measures[2].per_item:
        return ways[:1]
    return [way for way in ways if way[0].quantity > 0]


def states(text: str) -> frozenset[str]:
    """The words of a line that may choose among household measures, in the singular."""
    words = (word.removesuffix("s") for word in _WORD.findall(text.lower()) if len(word) > 2)
    return frozenset(_SAME_STATE[word] if word in _SAME_STATE else word for word in words)


def read_household_measure(
    amount: float, measure: str, grams: float, food: str
) -> HouseholdMeasure | None:
    """USDA's words for a household measure, such as `cup, chopped` or `medium (2-1/2" dia)`.

    Returns:
        None for measures that say nothing new: masses, servings and dashes.
    """
    text = _PARENTHESES.sub(" ", measure.lower()).replace('"', " ")
    unit = read_unit(text)
    if is_mass(unit.name) or unit.name == "dash" or "nlea" in text or "serving" in text:
        return None
    per_unit = grams / amount
    if is_volume(unit.name):
        per_unit /= milliliters_per(unit.name)
    said = [word for word in _WORD.findall(text) if _is_unit_or_size(word, unit)]
    state = states(text) - states(" ".join((food, *said))) - _IDLE_WORDS
    return HouseholdMeasure(unit=unit.name, size=unit.size, state=state, grams=per_unit)


def _is_unit_or_size(word: str, unit: Unit) -> bool:
    read = read_unit(word)
    return bool(read.size) or (bool(read.name) and read.name == unit.name)


def read_household_weights(foods: FoodTable) -> HouseholdWeights:
    """The packaged household measures of `foods`."""
    asset = importlib.resources.files("recipe_jax") / "assets/weights.csv.gz"
    text = gzip.decompress(asset.read_bytes()).decode()
    rows = [
        (row["food"], float(row["amount"]), row["measure"], float(row["grams"]))
        for row in csv.DictReader(io.StringIO(text))
    ]
    return HouseholdWeights(rows, dict(zip(foods.names, foods.groups, strict=True)))
