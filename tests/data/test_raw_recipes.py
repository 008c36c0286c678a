"""Rows of JSON lines, whole and broken."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from recipe_jax.data.files import DataError
from recipe_jax.data.raw_recipes import read_raw_recipes, recipe_id_of

TOAST = {"id": "t1", "title": "Toast", "source": "home", "ingredients": ["1 slice bread"]}


def _write(path: Path, *rows: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst"])
def test_reads_plain_and_compressed_rows(tmp_path: Path, name: str):
    path = _write(tmp_path / name, TOAST, "", {**TOAST, "id": "t2"})
    first, second = read_raw_recipes(path)
    assert (first.recipe_id, first.title, first.source) == ("t1", "Toast", "home")
    assert first.lines == ("1 slice bread",)
    assert (second.recipe_id, second.row) == ("t2", 3)


def test_limit_reads_no_further(tmp_path: Path):
    path = _write(tmp_path / "r.jsonl", TOAST, "{broken")
    assert len(list(read_raw_recipes(path, limit=1))) == 1


def test_ids_of_the_public_form(tmp_path: Path):
    url = "http://allrecipes.com/recipe/4711/toast/"
    row = {"title": "Toast", "source": "allrecipes.com", "url": url, "ingredients": ["bread"]}
    (recipe,) = read_raw_recipes(_write(tmp_path / "r.jsonl", row))
    assert recipe.recipe_id == "ar4711"
    identifier = recipe_id_of("example.org", "http://example.org/toast")
    assert identifier.startswith("exam_") and len(identifier) == 15
    assert identifier != recipe_id_of("example.org", "http://example.org/other")


def test_reads_pantrypilot_and_skips_its_refusals(tmp_path: Path):
    recipe = {"name": "Toast", "main_ingredients": ["1 slice bread"]}
    path = _write(
        tmp_path / "r.jsonl", {"output": {"recipe": recipe}}, {"output": {"recipe": None}}
    )
    (only,) = read_raw_recipes(path)
    assert (only.title, only.lines, only.source) == ("Toast", ("1 slice bread",), "pantrypilot")


def test_an_empty_recipe_has_no_lines(tmp_path: Path):
    path = _write(tmp_path / "r.jsonl", {**TOAST, "ingredients": ["", " "]})
    assert next(read_raw_recipes(path)).lines == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "row 2: value='{broken' is not JSON"),
        ("[1]", "row 2: must be a JSON object, is list"),
        ({"id": "x"}, "row 2: field 'ingredients' is missing"),
        ({"id": "x", "ingredients": "salt"}, "row 2: ingredients='salt' must be a list"),
        ({"id": "x", "ingredients": ["salt", 3]}, "row 2: ingredients hold 3; each must be"),
        ({"id": 7, "ingredients": ["salt"]}, "row 2: id=7 must be a string"),
        ({"ingredients": ["salt"]}, "row 2: has neither 'id' nor 'url'"),
        (TOAST, "row 2: id='t1' occurred in row 1"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: object, message: str):
    path = _write(tmp_path / "r.jsonl", TOAST, row)
    with pytest.raises(DataError, match=message) as caught:
        list(read_raw_recipes(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.jsonl.zst"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str):
    rows = [{**TOAST, "id": f"{i}", "title": f"{i * 7919}"} for i in range(2000)]
    path = _write(tmp_path / name, *rows)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"r\.jsonl.*(cannot be read|not JSON)"):
        list(read_raw_recipes(path))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        list(read_raw_recipes(tmp_path / "none.jsonl"))
