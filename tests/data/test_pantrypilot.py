"""Recipes that were asked for: what is read of a few made-up ones, and what is refused."""

import copy
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from recipe_jax.data.files import DataError
from recipe_jax.data.pantrypilot import read_pantrypilot

PAIR = {
    "user_request": "something  warm",
    "chosen_recipe": {
        "name": "Bean soup",
        "cuisine": "Kitchen",
        "culinary_preference": "gluten_free",
        "main_ingredients": ["2 cups beans", "water"],
    },
    "rejected_recipe": {"name": "Bread", "main_ingredients": ["flour", "water"]},
}
PANTRY = {
    "input": {
        "user_inventory": ["beans", "rice"],
        "requested_ingredients": ["rice"],
        "user_request": "",
        "preference": "gluten_free",
        "cuisine": None,
    },
    "output": {"recipe": {"name": "Rice", "cuisine": "", "main_ingredients": ["1 cup rice"]}},
}
FILES = ("my_preferences.jsonl", "recipes_val.jsonl.gz", "recipes_test.jsonl.gz")


def write(root: Path, pairs: list[Any], validation: list[Any], test: list[Any]) -> Path:
    folder = root / "pantrypilot"
    folder.mkdir()
    for name, rows in zip(FILES, (pairs, validation, test), strict=True):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return root


def changed(row: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    row = copy.deepcopy(row)
    *parents, last = path.split(".")
    inner = row
    for parent in parents:
        inner = inner[parent]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return row


def test_requests_lead_to_what_was_chosen_and_pantries_to_what_was_written(tmp_path: Path):
    empty = changed(PANTRY, "output.recipe.main_ingredients", [])
    same = changed(PANTRY, "output.recipe", PAIR["rejected_recipe"])
    found = read_pantrypilot(write(tmp_path, [PAIR], [empty, PANTRY], [same]))
    assert found.items.ids == ("pair-1-chosen", "pair-1-rejected", "validation-2")
    assert found.items.texts == (
        "Bean soup; Kitchen; gluten-free; 2 cups beans, water",
        "Bread; flour, water",
        "Rice; 1 cup rice",
    )
    assert found.items.attributes["title"] == ("Bean soup", "Bread", "Rice")
    assert found.requests.queries == ("something warm",) and found.requests.targets.tolist() == [0]
    pantry = ("rice, gluten-free, beans, rice",)
    assert found.pantries["validation"].queries == pantry
    assert found.pantries["validation"].targets.tolist() == [2] and found.num_empty == 1
    assert found.pantries["test"].targets.tolist() == [1]  # equal to a recipe known already


@pytest.mark.parametrize(
    ("file", "path", "value", "rule"),
    [
        (0, "user_request", "", "row 2: user_request='' must not be empty"),
        (0, "user_request", ..., "row 2: field 'user_request' is missing"),
        (0, "user_request", 1.5, "row 2: user_request=1.5 must be a string"),
        (0, "chosen_recipe", None, "row 2: chosen_recipe=None must be a JSON object"),
        (0, "rejected_recipe.name", " ", "row 2: name=' ' must not be empty"),
        (0, "chosen_recipe.main_ingredients", [], r"row 2: main_ingredients=\[\] must not be"),
        (0, "chosen_recipe.main_ingredients", [{}], r"row 2: main_ingredients=\[{}\] must be"),
        (1, "output", [], r"row 2: output=\[\] must be a JSON object"),
        (1, "output.recipe", "x", "row 2: recipe='x' must be a JSON object"),
        (1, "input.user_inventory", "rice", "row 2: user_inventory='rice' must be a list of foods"),
        (2, "input.preference", True, "row 2: preference=True must be a string"),
        (2, "input.cuisine", ..., "row 2: field 'cuisine' is missing"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_file_row_and_field(
    tmp_path: Path, file: int, path: str, value: Any, rule: str
):
    rows = [[PAIR], [PANTRY], [PANTRY]]
    rows[file] = [rows[file][0], changed(rows[file][0], path, value)]
    with pytest.raises(DataError, match=f"{FILES[file]}: {rule}"):
        read_pantrypilot(write(tmp_path, *rows))


def test_missing_and_empty_files_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"my_preferences.jsonl: no such file"):
        read_pantrypilot(tmp_path)
    with pytest.raises(DataError, match=r"recipes_test.jsonl.gz: holds no recipe that was asked"):
        read_pantrypilot(write(tmp_path, [PAIR], [PANTRY], []))


@pytest.mark.real_data
def test_the_real_files_have_no_request_twice():
    found = read_pantrypilot(Path(os.environ["RECIPE_JAX_DATA"]))
    assert len(found.items.ids) == 2474 and found.num_empty == 4
    assert len(set(found.requests.queries)) == len(found.requests.targets) == 43
    sizes = {name: len(asked.queries) for name, asked in found.pantries.items()}
    assert sizes == {"validation": 1196, "test": 1200}
    for asked in (found.requests, *found.pantries.values()):
        assert len(set(asked.queries)) == len(set(asked.targets.tolist())) == len(asked.queries)
