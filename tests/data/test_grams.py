"""Measures to grams, against weights worked out by hand."""

import pytest

from recipe_jax.data.files import DataError
from recipe_jax.data.foods import read_foods
from recipe_jax.data.grams import (
    HouseholdWeights,
    read_household_measure,
    read_household_weights,
    states,
)
from recipe_jax.data.ingredient_lines import Measure

CUP = 236.588
ROWS = [
    ("onion", 1.0, "cup, chopped", 160.0),
    ("onion", 1.0, "cup, sliced", 115.0),
    ("onion", 1.0, "large", 150.0),
    ("onion", 1.0, 'medium (2-1/2" dia)', 110.0),
    ("onion", 1.0, "small", 70.0),
    ("onion", 1.0, "slice, thin", 9.0),
    ("butter", 1.0, "tbsp", 14.2),
    ("butter", 1.0, "cup", 227.0),
    ("butter", 1.0, "stick", 113.0),
    ("cilantro", 9.0, "sprigs", 20.0),
    ("*", 1.0, "can", 400.0),
]
GROUPS = {"onion": "vegetables", "butter": "dairy", "cilantro": "herbs", "shallot": "vegetables"}


@pytest.fixture(scope="module")
def weights() -> HouseholdWeights:
    return HouseholdWeights(ROWS, GROUPS)


def _grams(weights: HouseholdWeights, food: str, words: str, *measures: Measure) -> float | None:
    return weights.weigh(measures, food, states(words)).grams


def test_mass_is_taken_as_written(weights: HouseholdWeights):
    pounds = Measure(quantity=2.0, unit="pound")
    ounces = Measure(quantity=3.0, unit="ounce", adds=True)
    assert _grams(weights, "onion", "", pounds, ounces) == pytest.approx(2 * 453.592 + 85.049, 1e-5)


def test_volume_takes_the_measure_of_the_same_state(weights: HouseholdWeights):
    cup = Measure(quantity=0.5, unit="cup")
    assert _grams(weights, "onion", "thinly sliced", cup) == pytest.approx(57.5)
    assert _grams(weights, "onion", "minced", cup) == pytest.approx(80.0)


def test_spoons_prefer_the_measure_by_the_spoon(weights: HouseholdWeights):
    spoons = Measure(quantity=3.0, unit="tablespoon")
    assert _grams(weights, "butter", "", spoons) == pytest.approx(42.6)


def test_volume_falls_back_to_the_density_of_the_group(weights: HouseholdWeights):
    weighed = weights.weigh((Measure(quantity=1.0, unit="cup"),), "shallot", frozenset())
    assert weighed.method == "volume_of_group"
    assert weighed.grams == pytest.approx(160.0, rel=1e-4)


@pytest.mark.parametrize(
    ("size", "grams"), [("", 110.0), ("small", 70.0), ("medium", 110.0), ("large", 150.0)]
)
def test_pieces_are_counted_by_size(weights: HouseholdWeights, size: str, grams: float):
    assert _grams(weights, "onion", "", Measure(quantity=2.0, size=size)) == 2 * grams


def test_packages_multiply_their_size(weights: HouseholdWeights):
    cans = Measure(quantity=2.0, unit="can")
    size = Measure(quantity=14.5, unit="ounce", per_item=True)
    assert _grams(weights, "onion", "", cans, size) == pytest.approx(2 * 14.5 * 28.3495, 1e-5)
    assert _grams(weights, "onion", "", cans) == 800.0


def test_a_total_in_parentheses_wins_over_the_count(weights: HouseholdWeights):
    total = Measure(quantity=1.0, unit="pound")
    measures = (Measure(quantity=6.0), total)
    weighed = weights.weigh(measures, "onion", frozenset())
    assert (weighed.grams, weighed.method) == (pytest.approx(453.592, 1e-5), "mass")


def test_the_size_of_a_source_package_is_not_the_amount(weights: HouseholdWeights):
    measures = (
        Measure(quantity=1.0, unit="cup"),
        Measure(quantity=1.0, unit="can"),
        Measure(quantity=15.0, unit="ounce", per_item=True),
    )
    assert _grams(weights, "onion", "chopped", *measures) == pytest.approx(160.0)


def test_less_is_subtracted(weights: HouseholdWeights):
    less = Measure(quantity=-1.0, unit="tablespoon", adds=True)
    cup = Measure(quantity=1.0, unit="cup")
    assert _grams(weights, "butter", "", cup, less) == pytest.approx(227.0 - 14.2)


@pytest.mark.parametrize(
    ("measures", "method"),
    [
        ((), "no_amount"),
        ((Measure(quantity=0.0, unit="cup"),), "no_amount"),
        ((Measure(quantity=2.0, unit="wheel"),), "no_unit:wheel"),
        ((Measure(quantity=1e9, unit="pound"),), "no_unit:pound"),
    ],
)
def test_what_cannot_be_weighed_says_why(
    weights: HouseholdWeights, measures: tuple[Measure, ...], method: str
):
    weighed = weights.weigh(measures, "onion", frozenset())
    assert (weighed.grams, weighed.method) == (None, method)


def test_read_household_measure():
    sprigs = read_household_measure(9.0, "sprigs", 20.0, "cilantro")
    assert sprigs is not None
    assert (sprigs.unit, sprigs.grams) == ("sprig", pytest.approx(20 / 9))
    sliced = read_household_measure(1.0, "cup, sliced", 115.0, "onion")
    assert sliced is not None
    assert sliced.state == {"sliced"}
    assert sliced.grams == pytest.approx(115 / CUP, rel=1e-5)
    assert read_household_measure(3.0, "oz", 85.0, "onion") is None
    assert read_household_measure(1.0, "NLEA serving", 148.0, "onion") is None


@pytest.mark.parametrize("row", [("onion", 0.0, "cup", 160.0), ("onion", 1.0, "cup", -1.0)])
def test_weights_must_be_positive(row: tuple[str, float, str, float]):
    with pytest.raises(DataError, match=r"food='onion' measure='cup': .* must be positive"):
        HouseholdWeights([row], GROUPS)


@pytest.mark.parametrize(
    ("food", "words", "measure", "grams"),
    [
        ("flour", "", Measure(quantity=2.0, unit="cup"), 250.0),
        ("butter", "", Measure(quantity=1.0, unit="stick"), 113.0),
        ("garlic", "", Measure(quantity=2.0, unit="clove"), 6.0),
        ("egg", "", Measure(quantity=3.0), 150.0),
        ("lemon", "juiced", Measure(quantity=1.0), 84.0),
        ("tomato", "cherry tomatoes", Measure(quantity=10.0), 170.0),
        ("black pepper", "ground", Measure(quantity=1.0, unit="teaspoon"), 2.3),
        ("brown sugar", "packed", Measure(quantity=1.0, unit="cup"), 220.0),
        ("bacon", "", Measure(quantity=4.0, unit="strip"), 112.0),
    ],
)
def test_packaged_weights(food: str, words: str, measure: Measure, grams: float):
    weights = read_household_weights(read_foods())
    assert _grams(weights, food, words, measure) == pytest.approx(grams, rel=1e-3)
