"""Written names lead to canonical foods, by table and by rule."""

import pytest

from recipe_jax.data.files import DataError
from recipe_jax.data.food_names import FoodNames, normalise, read_food_names
from recipe_jax.data.foods import read_foods

FOODS = ("butter", "peanut butter", "dried basil", "basil", "cheddar", "pasta", "olive oil")
NAMES = {"cheddar cheese": "cheddar", "rigatoni": "pasta", "food coloring": ""}


@pytest.fixture(scope="module")
def small() -> FoodNames:
    return FoodNames(NAMES, FOODS)


@pytest.fixture(scope="module")
def packaged() -> FoodNames:
    return read_food_names(read_foods().names)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Tomatoes", "tomato"),
        ("Confectioners\u2019 Sugar (sifted)", "confectioner sugar"),
        ("Devil's food", "devil food"),
        ("BRAND\u00ae Cherries", "brand cherry"),
        ("asparagus", "asparagus"),
        ("bay leaves", "bay leaf"),
        ("molasses", "molasses"),
    ],
)
def test_normalise(written: str, normal: str):
    assert normalise(written) == normal
    assert normalise(normal) == normal


@pytest.mark.parametrize(
    ("written", "food", "by"),
    [
        ("Cheddar Cheeses", "cheddar", "exact"),
        ("butter", "butter", "exact"),
        ("cold unsalted butter", "butter", "strip"),
        ("large dried basil", "dried basil", "strip"),
        ("fresh basil leaves", "basil", "phrase"),
        ("crunchy peanut butter", "peanut butter", "phrase"),
        ("pasta such as penne", "pasta", "strip"),
        ("Some Brand rigatoni", "pasta", "phrase"),
        ("chedder cheese", "cheddar", "spelling"),
    ],
)
def test_match(small: FoodNames, written: str, food: str, by: str):
    match = small.match(written)
    assert match is not None
    assert (match.food, match.by) == (food, by)


@pytest.mark.parametrize("written", ["food coloring", "unicorn dust", "", "basil-free"])
def test_unknown_names_match_nothing(small: FoodNames, written: str):
    assert small.match(written) is None


def test_the_head_noun_decides_not_a_word_before_it(small: FoodNames):
    assert small.match("olive oil dressing") != small.match("olive oil")
    match = small.match("basil butter")
    assert match is not None and match.food == "butter"


@pytest.mark.parametrize(
    ("written", "food"),
    [
        ("all-purpose flour", "flour"),
        ("scallions", "green onion"),
        ("halibut steaks", "halibut"),
        ("dried ancho chilies", "ancho chile"),
        ("almond butter", "peanut butter"),
        ("freshly ground black pepper", "black pepper"),
    ],
)
def test_packaged_table(packaged: FoodNames, written: str, food: str):
    match = packaged.match(written)
    assert match is not None and match.food == food


def test_every_canonical_food_means_itself(packaged: FoodNames):
    for food in read_foods().names:
        match = packaged.match(food)
        assert match is not None and match.food == food


def test_suggest_names_the_nearest_foods_first(packaged: FoodNames):
    assert packaged.suggest("tomatoe")[0] == "tomato"
    assert packaged.suggest("scallion")[0] == "green onion"
    assert len(packaged.suggest("xyzzy", limit=2)) == 2


def test_a_name_outside_the_vocabulary_is_refused():
    with pytest.raises(DataError, match="'ambrosia' is not among the 7 foods"):
        FoodNames({"nectar": "ambrosia"}, FOODS)
