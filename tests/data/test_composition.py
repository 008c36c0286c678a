"""Molecular features: scaling laws, facts of USDA and Ahn et al., and damaged files."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_jax.data import assets
from recipe_jax.data.composition import (
    MIN_COVERAGE,
    FoodFeatures,
    Nutrition,
    Scaling,
    grams_per_unit,
    in_grams,
    informative,
    read_food_features,
    read_nutrition,
    standardise,
    write_composition,
)
from recipe_jax.data.files import DataError
from recipe_jax.data.foods import read_foods

FOODS = read_foods()
FEATURES = read_food_features()
NUTRITION = read_nutrition()
PACKAGED = assets.ASSETS


def test_features_are_about_the_vocabulary():
    assert FEATURES.foods == NUTRITION.foods == FOODS.names
    assert FEATURES.components.shape == (507, 51)
    assert FEATURES.flavour.shape == (507, 762)
    assert (PACKAGED / "composition.npz").stat().st_size < 400_000


def test_components_are_standardised_over_the_foods_with_a_figure():
    observed = np.where(FEATURES.observed, FEATURES.components.astype(np.float64), np.nan)
    np.testing.assert_allclose(np.nanmean(observed, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(observed, axis=0), 1, atol=1e-5)
    assert (FEATURES.components[~FEATURES.observed] == 0).all()
    assert (FEATURES.observed.mean(axis=0) >= MIN_COVERAGE).all()
    assert not FEATURES.observed.all()


def test_components_turn_back_into_the_figures():
    grams = in_grams(FEATURES.components, FEATURES.scaling)
    for column, name in enumerate(FEATURES.component_names):
        place = NUTRITION.names.index(name)
        factor = grams_per_unit(NUTRITION.units[place], name)
        figures = NUTRITION.per_100g[:, place] * factor
        np.testing.assert_array_equal(FEATURES.observed[:, column], ~np.isnan(figures))
        seen = FEATURES.observed[:, column]
        floor = float(FEATURES.scaling.floor[column])
        np.testing.assert_allclose(
            grams[seen, column], figures[seen], rtol=1e-4, atol=1e-4 * floor, err_msg=name
        )


def test_no_aggregate_is_a_component():
    totals = ("Energy", "Ash", "Protein", "total", "Total", "RAE", "by difference", "D2 + D3")
    exempt = "Vitamin C, total ascorbic acid"
    for name in FEATURES.component_names:
        assert name == exempt or not any(total in name for total in totals), name


@pytest.mark.parametrize(
    ("food", "name", "unit", "amount"),
    [
        ("butter", "Fatty acids, total saturated", "g", 51.368),
        ("butter", "Carbohydrate, by difference", "g", 0.06),
        ("salt", "Sodium, Na", "mg", 38758),
        ("water", "Energy", "kcal", 0),
        ("egg", "Vitamin D (D2 + D3)", "µg", 2.0),
        ("egg", "Cholesterol", "mg", 372),
        ("sugar", "Sugars, total", "g", 99.8),
        ("olive oil", "fatty acid 18:1 undifferentiated", "g", 71.269),
        ("orange", "Vitamin C, total ascorbic acid", "mg", 53.2),
        ("vodka", "Alcohol, ethyl", "g", 33.4),
        ("tomato paste", "Lycopene", "µg", 28764),
    ],
)
def test_usda_facts(food: str, name: str, unit: str, amount: float):
    assert NUTRITION.units[NUTRITION.names.index(name)] == unit
    assert NUTRITION.amount(food, name) == pytest.approx(amount, rel=1e-4)


@pytest.mark.parametrize(
    ("food", "compound", "contains"),
    [
        ("cinnamon", "cinnamaldehyde", True),
        ("clove", "eugenol", True),
        ("lemon", "limonene (d-,l-, and dl-)", True),
        ("mint", "menthol", True),
        ("garlic", "allyl disulfide", True),
        ("butter", "menthol", False),
    ],
)
def test_flavour_facts(food: str, compound: str, contains: bool):
    row, column = FOODS.index_of(food), FEATURES.compound_names.index(compound)
    assert FEATURES.flavour[row, column] == float(contains)


def test_flavour_is_presence_where_the_network_knows_the_food():
    np.testing.assert_array_equal(FEATURES.has_flavour, FOODS.ahn_ids >= 0)
    assert set(np.unique(FEATURES.flavour)) == {0.0, 1.0}
    assert (FEATURES.flavour.sum(axis=0) >= 2).all()
    unknown = FEATURES.flavour[~FEATURES.has_flavour]
    assert len(unknown) == 266 and not unknown.any()
    assert "farnesol" not in FEATURES.compound_names


def test_unknown_food_or_measurement_is_a_value_error():
    with pytest.raises(ValueError, match="food 'gravel' is not among the 507 known"):
        NUTRITION.amount("gravel", "Energy")
    with pytest.raises(ValueError, match="measurement 'Joy' is not among"):
        NUTRITION.amount("butter", "Joy")


def test_units_are_weights():
    assert grams_per_unit("g", "Water") == 1
    assert grams_per_unit("mg", "Sodium, Na") == 1e-3
    assert grams_per_unit("µg", "Lycopene") == 1e-6
    assert grams_per_unit("\N{GREEK SMALL LETTER MU}g", "Lycopene") == 1e-6
    for name, unit in (("Energy", "kcal"), ("Sodium, Na", "IU")):
        with pytest.raises(ValueError, match="is no weight"):
            grams_per_unit(unit, name)


def test_international_units_agree_with_usdas_own_conversion():
    per_iu = grams_per_unit("IU", "Vitamin D") * 1e6
    for food in ("egg", "butter", "milk"):
        micrograms = NUTRITION.amount(food, "Vitamin D (D2 + D3)")
        assert per_iu * NUTRITION.amount(food, "Vitamin D") == pytest.approx(micrograms, abs=0.06)
    retinol = NUTRITION.amount("butter", "Retinol")
    vitamin_a = NUTRITION.amount("butter", "Vitamin A, IU") * grams_per_unit("IU", "Vitamin A, IU")
    assert vitamin_a * 1e6 == pytest.approx(retinol, rel=0.15)


@given(st.data())
def test_standardising_is_undone_keeps_order_and_ignores_missing(data: st.DataObject):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    grams = 10 ** rng.uniform(-8, 2, (20, 3)) * (rng.random((20, 3)) < 0.7)
    grams[:2] = [[1.0] * 3, [0.0] * 3]
    grams[2:][rng.random((18, 3)) < 0.2] = np.nan
    values, observed, scaling = standardise(grams)
    np.testing.assert_array_equal(observed, ~np.isnan(grams))
    back = in_grams(values, scaling)
    for column in range(3):
        seen = observed[:, column]
        floor = float(scaling.floor[column])
        np.testing.assert_allclose(
            back[seen, column], grams[seen, column], rtol=1e-3, atol=1e-4 * floor
        )
        order = np.argsort(grams[seen, column], kind="stable")
        assert (np.diff(values[seen, column][order]) >= 0).all()


def test_standardising_by_hand():
    values, _, scaling = standardise(np.array([[0.0], [1.0], [1.0], [np.nan]]))
    np.testing.assert_allclose(scaling.floor, [1.0])
    np.testing.assert_allclose(scaling.mean, [2 / 3 * np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(values[:, 0], [-np.sqrt(2), 0.5**0.5, 0.5**0.5, 0], rtol=1e-6)


def test_standardising_needs_two_different_figures():
    with pytest.raises(ValueError, match="above zero"):
        standardise(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="component 1 has the same figure"):
        standardise(np.array([[0.0, 2.0], [1.0, 2.0]]))


def test_informative_components_have_coverage_and_positive_figures():
    grams = np.ones((10, 3))
    grams[:3, 0] = np.nan
    grams[:6, 1] = 0
    np.testing.assert_array_equal(informative(grams), [False, False, True])
    grams[0, 0], grams[0, 1] = 1, 1
    np.testing.assert_array_equal(informative(grams), [True, True, True])


def small() -> tuple[FoodFeatures, Nutrition]:
    foods = ("salt", "sugar")
    features = FoodFeatures(
        foods=foods,
        component_names=("Water", "Sodium, Na", "Zinc, Zn"),
        components=np.array([[1, 2, 0], [-1, -2, 3]], np.float32),
        observed=np.array([[True, True, False], [True, True, True]]),
        scaling=Scaling(*np.array([[1, 2, 3], [0, 1, 2], [1, 1, 2]], np.float32)),
        compound_names=("vanillin", "eugenol"),
        flavour=np.array([[0, 0], [1, 0]], np.float32),
        has_flavour=np.array([False, True]),
    )
    per_100g = np.array([[0, np.nan], [387, 0.5]], np.float32)
    nutrition = Nutrition(
        foods=foods, names=("Energy", "Water"), units=("kcal", "g"), per_100g=per_100g
    )
    return features, nutrition


def test_round_trip_writes_the_same_bytes(tmp_path: Path):
    features, nutrition = small()
    write_composition(tmp_path / "a.npz", features, nutrition)
    again = read_food_features(tmp_path / "a.npz", foods=["salt", "sugar"])
    write_composition(tmp_path / "b.npz", again, read_nutrition(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    np.testing.assert_array_equal(again.components, features.components)
    np.testing.assert_array_equal(again.observed, features.observed)
    np.testing.assert_array_equal(np.stack(again.scaling), np.stack(features.scaling))
    np.testing.assert_array_equal(again.flavour, features.flavour)
    assert again.compound_names == features.compound_names
    assert sorted(part.name for part in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_features_and_nutrition_must_be_about_the_same_foods(tmp_path: Path):
    features, _ = small()
    with pytest.raises(ValueError, match="same foods"):
        write_composition(tmp_path / "a.npz", features, NUTRITION)


def test_another_vocabulary_is_refused(tmp_path: Path):
    write_composition(tmp_path / "a.npz", *small())
    with pytest.raises(DataError, match="its 2 foods are not the 507 of the vocabulary"):
        read_food_features(tmp_path / "a.npz", foods=FOODS.names)


BROKEN = {
    "components has shape (2, 2), must be (2, 3)": ("components", lambda array: array[:, :2]),
    "components row 1 holds a value that is not finite": (
        "components",
        lambda array: np.where(array == 3, np.float32(np.nan), array),
    ),
    "components must be 0 where observed is false": ("observed", lambda array: array & False),
    "components is float64, must be float32": ("components", lambda array: array.astype(float)),
    "observed is int64, must be bool": ("observed", lambda array: array.astype(np.int64)),
    "scaling must have positive floors": ("scaling", lambda array: array * np.float32(0)),
    "flavour must be 0 where has_flavour is false": ("has_flavour", lambda array: array & False),
    "components has shape (2, 3), must be (2, 4)": (
        "component_names",
        lambda array: np.append(array, "more"),
    ),
    "array 'scaling' is missing": ("scaling", None),
    "per_100g must be finite and not negative, or NaN": ("per_100g", lambda array: -array - 1),
    "nutrition_units has shape (1,), must be (2,)": ("nutrition_units", lambda array: array[:1]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_array_is_one_clear_line(tmp_path: Path, message: str):
    path = tmp_path / "composition.npz"
    write_composition(path, *small())
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    name, change = BROKEN[message]
    array = arrays.pop(name)
    if change is not None:
        arrays[name] = change(array)
    np.savez(path, **arrays)
    read = read_nutrition if name in ("per_100g", "nutrition_units") else read_food_features
    with pytest.raises(DataError) as error:
        read(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_damaged_and_pickled_files_are_one_clear_line(tmp_path: Path):
    path = tmp_path / "composition.npz"
    with pytest.raises(DataError, match="no such file"):
        read_food_features(path)
    whole = (PACKAGED / "composition.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[20_000:20_100] = bytes(100)
    pickled = io.BytesIO()
    np.savez(pickled, foods=np.array([{"a": 1}], dtype=object))
    for data in (b"", b"no zip", whole[:5000], bytes(flipped), pickled.getvalue()):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"composition\.npz: not a composition table") as error:
            read_food_features(path)
        assert "\n" not in str(error.value)


def test_written_archive_has_fixed_dates(tmp_path: Path):
    write_composition(tmp_path / "a.npz", *small())
    for path in (tmp_path / "a.npz", PACKAGED / "composition.npz"):
        with zipfile.ZipFile(path) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.real_data
def test_packaged_assets_are_what_the_sources_give(tmp_path: Path):
    data = os.environ["RECIPE_JAX_DATA"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert assets.main(["--data", data, "--out", str(tmp_path / name)]) == 0
    for name in ("foods.csv", "composition.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a/foods.csv").read_bytes() == (PACKAGED / "foods.csv").read_bytes()
    with (
        np.load(tmp_path / "a/composition.npz", allow_pickle=False) as made,
        np.load(PACKAGED / "composition.npz", allow_pickle=False) as shipped,
    ):
        assert made.files == shipped.files
        for name in made.files:
            if made[name].dtype == np.float32:
                np.testing.assert_allclose(made[name], shipped[name], rtol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(made[name], shipped[name], err_msg=name)


def test_assets_without_sources_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert assets.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "canonical_ingredients.csv: no such file" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
