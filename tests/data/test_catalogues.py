"""Catalogues: what a row becomes, what is refused by row, and orders that carry all along."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe_jax.data.catalogues import (
    beauty_catalogue,
    catalogue_fingerprint,
    permuted,
    random_order,
    read_catalogue,
    recipe_catalogue,
    take,
)
from recipe_jax.data.files import DataError

SOUP = {"id": "s", "title": "Tomato  soup\n", "parts": ["tomato", " ", "salt"], "kind": None}
CAKE = {"id": 7, "title": None, "parts": ["flour"], "kind": "cake"}
FIELDS = {"text_fields": ("title", "parts"), "attribute_fields": ("kind", "parts")}


def write_rows(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return path


def write_table(path: Path, columns: dict[str, object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_row_becomes_an_item(tmp_path: Path):
    found = read_catalogue(write_rows(tmp_path / "a.jsonl", SOUP, b"", CAKE), **FIELDS)
    assert found.ids == ("s", "7")
    assert found.texts == ("Tomato soup; tomato, salt", "flour")
    assert found.attributes == {"kind": ("", "cake"), "parts": ("tomato|salt", "flour")}


def test_parquet_is_read_as_json_lines_are(tmp_path: Path):
    rows = [SOUP | {"id": "4"}, CAKE | {"id": "7"}]
    table = {name: [row[name] for row in rows] for name in SOUP}
    table["kind"] = pa.array(table["kind"]).dictionary_encode()
    table["unused"] = pa.array([b"\xff", b""])
    from_table = read_catalogue(write_table(tmp_path / "a.parquet", table), **FIELDS)
    assert from_table == read_catalogue(write_rows(tmp_path / "a.jsonl", *rows), **FIELDS)
    numbers = write_table(tmp_path / "b.parquet", {**table, "id": [4, 7]})
    assert read_catalogue(numbers, **FIELDS) == from_table


BROKEN = {
    "row 3: value='{' is not JSON": b"{",
    "row 3: byte 10 is 0xe9, which is no UTF-8": b'{"id": "ca\xe9", "title": "x"}',
    "row 3: field 'title' is missing; it has ['id', 'name']": {"id": "c", "name": "x"},
    "row 3: id='a' occurred in row 1; ids must be distinct": {"id": "a", "title": "x"},
    "row 3: id='4' occurred in row 2; ids must be distinct": {"id": 4, "title": "x"},
    "row 3: id=' ' must be a whole number or a string, not empty": {"id": " ", "title": "x"},
    "row 3: id=None must be a whole number or a string": {"id": None, "title": "x"},
    "row 3: id=True must be a whole number or a string": {"id": True, "title": "x"},
    "row 3: id=1.5 must be a whole number or a string": {"id": 1.5, "title": "x"},
    "row 3: title=[''] must hold a text that is not empty": {"id": "c", "title": " \n"},
    "row 3: title={'en': 'x'} must be a string, a whole number, a list": (
        {"id": "c", "title": {"en": "x"}}
    ),
    "row 3: title=['x', 1.5] must be a string, a whole number, a list": (
        {"id": "c", "title": ["x", 1.5]}
    ),
    "row 3: title: character 1 is '\\ud800', which is no character of UTF-8": (
        b'{"id": "c", "title": "x\\ud800"}'
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_malformed_row_is_refused_by_its_number(tmp_path: Path, message: str):
    rows = [{"id": "a", "title": "x"}, {"id": "4", "title": "x"}, BROKEN[message]]
    path = write_rows(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        read_catalogue(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


BROKEN_TABLES = {
    "column 'title' is missing; it has ['id', 'name']": {"id": ["a"], "name": ["x"]},
    "row 1: title=b'x' must be a string": {"id": ["a"], "title": pa.array([b"x"])},
    "row 2: title=[''] must hold a text": {"id": ["a", "b"], "title": ["x", None]},
    "row 2: id='a' occurred in row 1": {"id": ["a", "a"], "title": ["x", "y"]},
    "row 1: id=1.0 must be a whole number": {"id": [1.0], "title": ["x"]},
    "holds no item": {"id": pa.array([], pa.string()), "title": pa.array([], pa.string())},
}


@pytest.mark.parametrize("message", BROKEN_TABLES)
def test_a_malformed_table_is_refused(tmp_path: Path, message: str):
    path = write_table(tmp_path / "a.parquet", BROKEN_TABLES[message])
    with pytest.raises(DataError) as caught:
        read_catalogue(path)
    assert f"{path}: {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_whose_strings_are_no_utf8_is_refused_by_row(tmp_path: Path):
    count = 9000  # beyond what is read at once
    data = pa.array([b"x"] * (count - 1) + [b"caf\xe9"])
    strings = pa.StringArray.from_buffers(count, data.buffers()[1], data.buffers()[2])
    path = write_table(tmp_path / "a.parquet", {"id": range(count), "title": strings})
    with pytest.raises(DataError, match=r"row 9000: title: byte 3 is 0xe9, which is no UTF-8"):
        read_catalogue(path)


@pytest.mark.parametrize("keep", [slice(0, 0), slice(0, -9), slice(9, None)])
def test_a_damaged_table_is_refused(tmp_path: Path, keep: slice):
    path = write_table(tmp_path / "a.parquet", {"id": ["a"], "title": ["x"]})
    path.write_bytes(path.read_bytes()[keep])
    with pytest.raises(DataError, match="not a whole parquet table") as caught:
        read_catalogue(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path):
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(DataError, match=f"{name}: no such file"):
            read_catalogue(tmp_path / name)
    with pytest.raises(DataError, match=r"a\.csv: name must end in \.jsonl"):
        read_catalogue(tmp_path / "a.csv")
    with pytest.raises(DataError, match="holds no item"):
        read_catalogue(write_rows(tmp_path / "b.jsonl", b"", b""))


def test_a_permuted_catalogue_holds_the_same_items(tmp_path: Path):
    rows = [{"id": i, "title": f"title {i}", "kind": f"kind {i}"} for i in range(50)]
    old = read_catalogue(write_rows(tmp_path / "a.jsonl", *rows), attribute_fields=("kind",))
    new = permuted(old, seed=3)
    order = random_order(50, seed=3)
    assert sorted(order) == list(range(50)) and (order != np.arange(50)).sum() > 40
    for i, row in enumerate(order):
        assert new.ids[i] == old.ids[row] == str(row)
        assert new.texts[i] == f"title {row}" and new.attributes["kind"][i] == f"kind {row}"
    assert new == permuted(old, seed=3) and new.ids != permuted(old, seed=4).ids
    assert take(new, np.argsort(order)) == old


def test_the_fingerprint_tells_apart_all_that_counts():
    whole = catalogue_fingerprint(("a", "b"), ("x", "y"))
    assert whole == catalogue_fingerprint(["a", "b"], ["x", "y"]) and len(whole) == 64
    others = [
        (("b", "a"), ("y", "x")),
        (("a", "b"), ("x", "z")),
        (("a", "c"), ("x", "y")),
        (("a",), ("x",)),
        (("ax", "b"), ("", "y")),
        (("a", "b"), ("xb", "")),
    ]
    assert len({whole, *(catalogue_fingerprint(*other) for other in others)}) == 7


def beauty_folder(folder: Path, *rows: str) -> Path:
    (folder / "amazon_beauty").mkdir()
    text = "\n".join(["item_id\ttitle\tbrand\tcategories", *rows]) + "\n"
    path = folder / "amazon_beauty" / "items_beauty.tsv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return folder


def test_beauty_becomes_characters_and_leaves_out_unknown_brands(tmp_path: Path):
    folder = beauty_folder(
        tmp_path,
        "1\tL&#39;Oreal &amp; Co\tL&#39;Oreal Paris\tBeauty > Hair Care",
        "2\tSponge\tUnknown\tBeauty > Tools &amp; More",
        "3\tSoap\t\tBeauty",
    )
    found = beauty_catalogue(folder)
    assert found.ids == ("1", "2", "3")
    assert found.texts == (
        "L'Oreal & Co; L'Oreal Paris; Beauty > Hair Care",
        "Sponge; Beauty > Tools & More",
        "Soap; Beauty",
    )
    assert found.attributes == {
        "title": ("L'Oreal & Co", "Sponge", "Soap"),
        "brand": ("L'Oreal Paris", "", ""),
        "category": ("Beauty > Hair Care", "Beauty > Tools & More", "Beauty"),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2\tSoap\tBeauty", "row 3: .'2', 'Soap', 'Beauty'. must be .'item_id', 'title'"),
        ("1\tSoap\t\tBeauty", "row 3: item_id='1' occurred in row 2"),
        ("\tSoap\t\tBeauty", "row 3: item_id='' must be a whole number or a string, not empty"),
        ("2\t\tUnknown\t ", "row 3: title, brand, categories=.'', '', ''. must hold a text"),
    ],
)
def test_beauty_refuses_a_malformed_row(tmp_path: Path, row: str, message: str):
    folder = beauty_folder(tmp_path, "1\tSponge\t\tBeauty", row)
    with pytest.raises(DataError, match=message):
        beauty_catalogue(folder)


@pytest.mark.real_data
def test_all_of_beauty_is_read():
    found = beauty_catalogue(Path(os.environ["RECIPE_JAX_DATA"]))
    assert len(found.ids) == 12_101 and set(found.ids) == {str(i) for i in range(1, 12_102)}
    assert not any("&amp;" in text or "Unknown" in text.split("; ") for text in found.texts)
    assert len(set(found.attributes["category"])) == 254
    assert sum(brand == "" for brand in found.attributes["brand"]) > 4626  # with the unknown ones
    assert found.texts[1].startswith("OPI Red Shatter Crackle Nail Polish")


@pytest.mark.real_data
def test_all_recipes_are_read():
    found = recipe_catalogue(Path(os.environ["RECIPE_JAX_DATA"]))
    assert len(found.ids) == 65_991 and min(map(len, found.texts)) > 2
    assert set(found.attributes) == {"title", "tags", "source"}
    assert "Vegetarian" in {tag for tags in found.attributes["tags"] for tag in tags.split("|")}
