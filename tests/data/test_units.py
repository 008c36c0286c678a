"""Units as cooks write them."""

import pytest

from recipe_jax.data.units import grams_per, is_mass, is_volume, milliliters_per, read_unit


@pytest.mark.parametrize(
    ("text", "name", "size", "container"),
    [
        ("cups", "cup", "", ""),
        ("Tbs", "tablespoon", "", ""),
        ("tsps", "teaspoon", "", ""),
        ("fluid ounces", "fluid_ounce", "", ""),
        ("fl. oz.", "fluid_ounce", "", ""),
        ("large cloves", "clove", "large", ""),
        ("medium", "", "medium", ""),
        ("fl oz bottles", "fluid_ounce", "", "bottle"),
        ("ounces cans or bottles", "ounce", "", "can"),
        ("loaves", "loaf", "", ""),
        ("bunches", "bunch", "", ""),
        ("tin", "can", "", ""),
        ("flagons", "", "", ""),
    ],
)
def test_read_unit(text: str, name: str, size: str, container: str):
    unit = read_unit(text)
    assert (unit.name, unit.size, unit.container) == (name, size, container)


def test_heaping_is_more_and_scant_is_less_than_level():
    heaping, level, scant = (read_unit(t).factor for t in ("heaping cups", "cups", "scant cup"))
    assert heaping > level == 1.0 > scant


def test_conversions_are_us_customary():
    assert grams_per("ounce") == pytest.approx(28.3495, abs=1e-4)
    assert milliliters_per("cup") == pytest.approx(236.588, abs=1e-3)
    assert milliliters_per("cup") == pytest.approx(48 * milliliters_per("teaspoon"))
    assert milliliters_per("gallon") == pytest.approx(16 * milliliters_per("cup"))


def test_no_unit_is_both_mass_and_volume():
    assert is_mass("pound") and not is_volume("pound")
    assert is_volume("pinch") and not is_mass("pinch")
    assert not is_mass("clove") and not is_volume("clove") and not is_mass("")
