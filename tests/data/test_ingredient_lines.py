"""Raw lines are read as a cook would read them."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import nltk.data
import nltk.downloader
import pytest

from recipe_jax.data import ingredient_lines
from recipe_jax.data.files import DataError
from recipe_jax.data.ingredient_lines import (
    TAGGER,
    IngredientLine,
    Measure,
    line_of_parse,
    parse_line,
    parse_lines,
)


def _has_tagger() -> bool:
    try:
        nltk.data.find(f"taggers/{TAGGER}/{TAGGER}.weights.json")
    except LookupError:
        return False
    return True


needs_tagger = pytest.mark.skipif(not _has_tagger(), reason=f"NLTK has no {TAGGER}")


def _measures(line: IngredientLine) -> list[tuple[float, str, bool]]:
    return [(round(m.quantity, 4), m.unit, m.per_item) for m in line.measures]


@needs_tagger
@pytest.mark.parametrize(
    ("line", "name", "measures"),
    [
        ("2 cups plain flour", "plain flour", [(2.0, "cup", False)]),
        ("\u00bd teaspoon salt", "salt", [(0.5, "teaspoon", False)]),
        ("1 1/2 cups milk", "milk", [(1.5, "cup", False)]),
        ("2-3 tablespoons honey", "honey", [(2.5, "tablespoon", False)]),
        ("one egg", "egg", [(1.0, "", False)]),
        ("2 lb. 3 oz. beef chuck", "beef chuck", [(2.0, "pound", False), (3.0, "ounce", False)]),
        (
            "1 (16 ounce) package frozen peas",
            "frozen peas",
            [(1.0, "package", False), (16.0, "ounce", True)],
        ),
        ("3 (8 ounce) yams", "yams", [(3.0, "", False), (8.0, "ounce", True)]),
        (
            "6 carrots (about 1 pound), peeled",
            "carrots",
            [(6.0, "", False), (1.0, "pound", False)],
        ),
        ("2 cupsrice vinegar", "rice vinegar", [(2.0, "cup", False)]),
        ("&frac12; cup sugar", "sugar", [(0.5, "cup", False)]),
        ("a pinch of saffron", "saffron", [(1.0, "pinch", False)]),
        ("juice of 1 lemon", "lemon", [(1.0, "", False)]),
        ("paprika to taste", "paprika", []),
    ],
)
def test_names_and_measures(line: str, name: str, measures: list[tuple[float, str, bool]]):
    read = parse_line(line)
    assert read.kind == "ingredient"
    assert (read.names[0], _measures(read)) == (name, measures)


@needs_tagger
def test_and_names_several_foods_or_names_one():
    assert parse_line("salt and pepper to taste").names == ("salt", "pepper")
    assert len(parse_line("1 cup butter or margarine").names) == 1


@needs_tagger
def test_each_shares_the_measure():
    assert parse_line("1 cup each raspberries and blueberries").is_shared
    assert not parse_line("2 chicken breasts (8 ounces each)").is_shared


@needs_tagger
def test_preparation_is_kept():
    assert "chopped" in parse_line("1 cup onions, finely chopped").preparation


@pytest.mark.parametrize("line", ["Dough:", "Special equipment: a wok", "Garnish: mint", "", "   "])
def test_what_is_no_ingredient_needs_no_parser(line: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingredient_lines, "require_tagger", lambda: None)
    read = parse_line(line)
    assert read.kind != "ingredient"
    assert (read.names, read.measures) == ((), ())


@needs_tagger
def test_each_distinct_line_is_read_once_and_alike_in_a_pool():
    lines = [f"{n} cups flour" for n in range(1, 301)] + ["1 cups flour"]
    pooled = parse_lines(lines, processes=2, show_progress=False)
    assert list(pooled) == lines[:-1]
    assert pooled == parse_lines(lines, processes=1, show_progress=False)
    assert pooled["7 cups flour"].measures == (Measure(quantity=7.0, unit="cup"),)


def test_a_missing_tagger_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    def nothing_found(resource: str) -> None:
        raise LookupError(resource)

    monkeypatch.setattr(nltk.data, "find", nothing_found)
    monkeypatch.setattr(nltk.downloader, "download", lambda *_, **__: False)
    with pytest.raises(DataError, match=f"{TAGGER}.*set NLTK_DATA") as caught:
        parse_lines(["1 cup flour"])
    assert "\n" not in str(caught.value)


def _amount(quantity: Any, unit: str, **flags: Any) -> SimpleNamespace:
    defaults = {"starting_index": 0, "APPROXIMATE": False, "SINGULAR": False, "quantity_max": None}
    amount = SimpleNamespace(quantity=quantity, unit=unit, **(defaults | flags))
    amount.quantity_max = amount.quantity_max or quantity
    return amount


def _parse(*amounts: Any, names: tuple[str, ...] = ("flour",)) -> SimpleNamespace:
    return SimpleNamespace(
        name=[SimpleNamespace(text=name, starting_index=9) for name in names],
        amount=list(amounts),
        size=None,
        preparation=None,
        comment=None,
        purpose=None,
    )


@pytest.mark.parametrize(
    ("words", "quantity"), [("few", 3.0), ("half", 0.5), ("1 dozen", 12.0), ("", 1.0)]
)
def test_words_for_numbers(words: str, quantity: float):
    line = line_of_parse("some flour", _parse(_amount(words, "cups")))
    assert line.measures == (Measure(quantity=quantity, unit="cup"),)


def test_a_quantity_that_is_no_number_is_no_measure():
    assert line_of_parse("flour", _parse(_amount("lots", "cups"))).measures == ()


def test_minus_subtracts():
    parts = [_amount(Fraction(1), "cup"), _amount(Fraction(2), "tablespoons")]
    composite = SimpleNamespace(amounts=parts, subtractive=True)
    line = line_of_parse("1 cup minus 2 tablespoons flour", _parse(composite))
    assert [(m.quantity, m.unit, m.adds) for m in line.measures] == [
        (1.0, "cup", False),
        (-2.0, "tablespoon", True),
    ]
