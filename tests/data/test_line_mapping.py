"""Read lines become foods and grams."""

import pytest

from recipe_jax.data.food_names import FoodNames
from recipe_jax.data.grams import HouseholdWeights
from recipe_jax.data.ingredient_lines import IngredientLine, Measure
from recipe_jax.data.line_mapping import map_line

NAMES = FoodNames({"pepper": "black pepper"}, ["salt", "black pepper", "basil", "sesame oil"])
WEIGHTS = HouseholdWeights(
    [("salt", 1.0, "tsp", 6.0), ("basil", 1.0, "leaf", 0.5), ("basil", 1.0, "bunch", 60.0)],
    {"salt": "spices", "black pepper": "spices"},
)
TEASPOON = Measure(quantity=1.0, unit="teaspoon")


def _line(*names: str, **fields: object) -> IngredientLine:
    return IngredientLine(kind="ingredient", names=names, **fields)  # pyright: ignore


def test_names_without_amount_are_all_kept():
    mapped = map_line(_line("salt", "pepper"), NAMES, WEIGHTS)
    assert [(one.food, one.grams, one.method) for one in mapped] == [
        ("salt", None, "no_amount"),
        ("black pepper", None, "no_amount"),
    ]


def test_one_amount_goes_to_the_first_food():
    mapped = map_line(_line("salt", "pepper", measures=(TEASPOON,)), NAMES, WEIGHTS)
    assert [(one.food, one.grams) for one in mapped] == [("salt", pytest.approx(6.0))]


def test_a_shared_amount_goes_to_every_food():
    line = _line("salt", "pepper", measures=(TEASPOON,), is_shared=True)
    mapped = map_line(line, NAMES, WEIGHTS)
    assert [one.food for one in mapped] == ["salt", "black pepper"]
    assert all(one.grams for one in mapped)


def test_the_last_word_of_the_name_may_be_the_unit():
    (leaves,) = map_line(_line("basil leaves", measures=(Measure(quantity=8.0),)), NAMES, WEIGHTS)
    assert (leaves.grams, leaves.method) == (4.0, "count")


def test_a_name_cut_wrongly_is_found_in_the_phrase():
    (oil,) = map_line(_line("Asian", phrases=("cold", "Asian sesame oil")), NAMES, WEIGHTS)
    assert (oil.name, oil.food) == ("Asian sesame oil", "sesame oil")


def test_a_food_named_twice_is_one():
    assert len(map_line(_line("pepper", "black pepper"), NAMES, WEIGHTS)) == 1


def test_an_unknown_food_keeps_its_line():
    (row,) = map_line(_line("stardust", measures=(TEASPOON,)), NAMES, WEIGHTS)
    assert (row.name, row.food, row.grams, row.method) == ("stardust", None, None, "no_food")


@pytest.mark.parametrize("kind", ["heading", "equipment", "note"])
def test_what_is_no_ingredient_gives_no_row(kind: str):
    assert map_line(IngredientLine(kind=kind), NAMES, WEIGHTS) == ()  # pyright: ignore
