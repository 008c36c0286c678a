"""One read line to foods and grams: names, measures and household weights together."""

import dataclasses
from collections.abc import Iterable

from recipe_jax.data.food_names import FoodNames
from recipe_jax.data.grams import HouseholdWeights, states
from recipe_jax.data.ingredient_lines import IngredientLine, Measure
from recipe_jax.data.units import is_mass, is_volume, read_unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class MappedFood:
    """What one name of a line became.

    Attributes:
        name: as written.
        food: the canonical food; None where no rule is sure enough.
        grams: None where nothing tells the weight.
        method: how the grams were found, or why there are none: "no_food", "no_amount",
            "no_unit:…".
    """

    name: str
    food: str | None
    grams: float | None
    method: str


def map_line(
    line: IngredientLine, names: FoodNames, weights: HouseholdWeights
) -> tuple[MappedFood, ...]:
    """The foods of a line, in its order; empty for what is no ingredient.

    An ingredient line always gives at least one row; where no food is found its food is None.
    """
    if line.kind != "ingredient":
        return ()
    found = _foods(line.names, names)
    if not found:
        found = dict(list(_foods(line.phrases, names).items())[:1])
    if line.measures and not line.is_shared:
        # The parser's further names of a line with one amount are alternatives or leftovers.
        found = dict(list(found.items())[:1])
    if not found:
        name = next(iter((*line.names, *line.phrases)), "")
        return (MappedFood(name=name, food=None, grams=None, method="no_food"),)
    words = states(f"{line.preparation} {' '.join(line.names)}")
    mapped = []
    for food, name in found.items():
        measures = tuple(_counted_as_named(measure, name) for measure in line.measures)
        weighed = weights.weigh(measures, food, words)
        mapped.append(MappedFood(name=name, food=food, grams=weighed.grams, method=weighed.method))
    return tuple(mapped)


def _foods(written: Iterable[str], names: FoodNames) -> dict[str, str]:
    """Each food that is named, once, and the first name that led to it."""
    found: dict[str, str] = {}
    for name in written:
        if (match := names.match(name)) is not None:
            found.setdefault(match.food, name)
    return found


def _counted_as_named(measure: Measure, name: str) -> Measure:
    """`"10 basil leaves"` counts leaves: the last word of the name is the unit."""
    if measure.unit:
        return measure
    unit = read_unit(name.split()[-1] if name else "").name
    is_piece = unit and not is_mass(unit) and not is_volume(unit)
    return dataclasses.replace(measure, unit=unit) if is_piece else measure
