"""Catalogues: items with a text each, from a file of any shop or kitchen.

An item's index is its row in the catalogue.  `permuted` puts the rows in a random order, before any
model, position or tie-break can learn from the order in which a file lists them.
"""

import hashlib
import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from recipe_jax.data.catalogue_rows import read_rows
from recipe_jax.data.files import DataError
from recipe_jax.data.text_lines import read_lines
from recipe_jax.data.texts import check_characters

FIELD_SEPARATOR = "; "
"""Between the fields of an item's text."""

LIST_SEPARATOR = "|"
"""Between the values of an attribute that has several: `value.split("|")` gives them."""

_BEAUTY_COLUMNS = ["item_id", "title", "brand", "categories"]


class Catalogue(NamedTuple):
    """Items in an order, which gives them their indices.

    Attributes:
        ids: distinct and not empty.
        texts: what is known of each item in words; never empty.
        attributes: name -> a value for each item, to filter by or ask for; "" where there is none.
        fingerprint: `catalogue_fingerprint` of ids and texts: another order is another catalogue.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    fingerprint: str


def read_catalogue(
    path: Path,
    *,
    id_field: str = "id",
    text_fields: Sequence[str] = ("title",),
    attribute_fields: Sequence[str] = (),
) -> Catalogue:
    """Read JSON lines, plain or compressed, or a parquet table: one item a row.

    A field holds a string, a whole number, a list of these, or null.  Lists are joined by ", " in
    texts and by `LIST_SEPARATOR` in attributes, runs of white space become one space, and fields
    that are empty add nothing to the text.

    Args:
        path: `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`.
        id_field: tells items apart; a string or a whole number.
        text_fields: make up an item's text, joined by `FIELD_SEPARATOR`.
        attribute_fields: to filter by or to ask for.

    Raises:
        DataError: a file that cannot be read, or a row that is malformed, without a field, with a
            field of another type or no UTF-8, whose text is empty, or whose id occurred before: the
            message names file, row, field, value and rule.
    """
    fields = list(dict.fromkeys([id_field, *text_fields, *attribute_fields]))

    def items() -> Iterator[tuple[int, str, list[str], list[str]]]:
        for row, values in read_rows(path, fields):
            place = f"{path}: row {row}"
            yield (
                row,
                _identifier(values[id_field], f"{place}: {id_field}"),
                [joined(values[field], ", ", f"{place}: {field}") for field in text_fields],
                [
                    joined(values[field], LIST_SEPARATOR, f"{place}: {field}")
                    for field in attribute_fields
                ],
            )

    return _collect(path, id_field, text_fields, attribute_fields, items())


def beauty_catalogue(folder: Path) -> Catalogue:
    """The items of Amazon's Beauty reviews (McAuley et al. 2015, arXiv:1506.04757), 12,101 of them.

    An item's text is its title, its brand unless that is "Unknown", and its path of categories; its
    attributes are these three, `title`, `brand` and `category`.  HTML entities become characters.

    Args:
        folder: holds `amazon_beauty/items_beauty.tsv.gz`.

    Raises:
        DataError: as `read_catalogue`.
    """
    path = folder / "amazon_beauty" / "items_beauty.tsv.gz"

    def items() -> Iterator[tuple[int, str, list[str], list[str]]]:
        for row, line in read_lines(path):
            values = line.rstrip("\r\n").split("\t")
            if len(values) != len(_BEAUTY_COLUMNS) or (row == 1 and values != _BEAUTY_COLUMNS):
                raise DataError(f"{path}: row {row}: {values!r:.60} must be {_BEAUTY_COLUMNS}")
            if row == 1:
                continue
            name, *values = (" ".join(html.unescape(value).split()) for value in values)
            title, brand, categories = values
            brand = "" if brand == "Unknown" else brand
            identifier = _identifier(name, f"{path}: row {row}: item_id")
            parts = [title, brand, categories]
            yield row, identifier, parts, parts

    return _collect(path, "item_id", _BEAUTY_COLUMNS[1:], ("title", "brand", "category"), items())


def recipe_catalogue(folder: Path) -> Catalogue:
    """The raw recipes, 65,991 of them: title and ingredients; attributes `title, tags, source`.

    Args:
        folder: holds `recipes/recipes.jsonl.zst`.

    Raises:
        DataError: as `read_catalogue`.
    """
    return read_catalogue(
        folder / "recipes" / "recipes.jsonl.zst",
        text_fields=("title", "ingredients"),
        attribute_fields=("title", "tags", "source"),
    )


def random_order(num_items: int, *, seed: int) -> Int64[np.ndarray, "n"]:
    """The rows of the old catalogue in the order of `permuted`, as for a matrix of vectors."""
    return np.random.default_rng(seed).permutation(num_items)


def permuted(catalogue: Catalogue, *, seed: int) -> Catalogue:
    """The same items in a random order; ids, texts and attributes travel together."""
    return take(catalogue, random_order(len(catalogue.ids), seed=seed))


def take(catalogue: Catalogue, rows: Int[np.ndarray, "n"]) -> Catalogue:
    """The items of these rows, in this order; the rows are distinct."""

    def pick(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(values[row] for row in rows.tolist())

    ids, texts = pick(catalogue.ids), pick(catalogue.texts)
    attributes = {name: pick(values) for name, values in catalogue.attributes.items()}
    return Catalogue(ids, texts, attributes, catalogue_fingerprint(ids, texts))


def catalogue_fingerprint(ids: Iterable[str], texts: Iterable[str]) -> str:
    """SHA-256 over ids and texts in their order, each with its length: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for pair in zip(ids, texts, strict=True):
        for value in pair:
            data = value.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def joined(value: Any, separator: str, place: str) -> str:
    """The values of a field that are not empty, each in one line.

    Args:
        value: a string, a whole number, a list of these, or null.
        separator: between them.
        place: file, row and field, for messages.

    Raises:
        DataError: a value of another type, or one that is no UTF-8.
    """
    parts = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, bool) or not isinstance(part, str | int | None):
            raise DataError(
                f"{place}={value!r:.60} must be a string, a whole number, a list of these, or null"
            )
        if part is not None and (words := str(part).split()):
            parts.append(" ".join(words))
    text = separator.join(parts)
    check_characters(place, text)
    return text


def _collect(
    path: Path,
    id_field: str,
    text_fields: Sequence[str],
    attribute_names: Sequence[str],
    items: Iterable[tuple[int, str, list[str], list[str]]],
) -> Catalogue:
    """A catalogue of rows with their ids, parts of texts and attributes, all of them checked."""
    seen: dict[str, int] = {}
    texts: list[str] = []
    columns: list[list[str]] = [[] for _ in attribute_names]
    for row, identifier, parts, attributes in items:
        place = f"{path}: row {row}"
        if identifier in seen:
            raise DataError(
                f"{place}: {id_field}={identifier!r} occurred in row {seen[identifier]}; "
                "ids must be distinct"
            )
        seen[identifier] = row
        text = FIELD_SEPARATOR.join(part for part in parts if part)
        if not text:
            names = ", ".join(text_fields)
            raise DataError(f"{place}: {names}={parts} must hold a text that is not empty")
        texts.append(text)
        for column, value in zip(columns, attributes, strict=True):
            column.append(value)
    if not seen:
        raise DataError(f"{path}: holds no item")
    ids = tuple(seen)
    attributes = {name: tuple(c) for name, c in zip(attribute_names, columns, strict=True)}
    return Catalogue(ids, tuple(texts), attributes, catalogue_fingerprint(ids, texts))


def _identifier(value: Any, place: str) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and (not isinstance(value, str) or not value.strip()):
        raise DataError(f"{place}={value!r:.60} must be a whole number or a string, not empty")
    identifier = str(value).strip()
    check_characters(place, identifier)
    return identifier
