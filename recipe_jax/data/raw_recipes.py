"""Raw recipes from JSON lines: one recipe a row, its ingredients as written."""

import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from recipe_jax.data.files import DataError

_BLOCK_BYTES = 1 << 20
_ALLRECIPES = re.compile(r"allrecipes\.com/.*?recipes?/(\d+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawRecipe:
    """A recipe as its source wrote it.

    Attributes:
        row: its row in the file, from 1.
        lines: its ingredients; empty where the source has none.
    """

    row: int
    recipe_id: str
    title: str
    source: str
    lines: tuple[str, ...]


def read_raw_recipes(path: Path, *, limit: int | None = None) -> Iterator[RawRecipe]:
    """Read `.jsonl`, `.jsonl.gz` or `.jsonl.zst`, row by row.

    A row is an object with `ingredients` (strings), and `title`, `id`, `source`, `url` where it has
    them; or a row of PantryPilot, whose recipe is at `output.recipe`.  Rows without a recipe
    (PantryPilot's refusals) are skipped.

    Args:
        path: the file.
        limit: how many recipes to read at most.

    Raises:
        DataError: a missing or truncated file, a row that is no recipe, an id that occurs
            twice.
    """
    seen: dict[str, int] = {}
    for row, text in _rows(path):
        if limit is not None and len(seen) >= limit:
            return
        recipe = _recipe(text, row, f"{path}: row {row}")
        if recipe is None:
            continue
        if recipe.recipe_id in seen:
            raise DataError(
                f"{path}: row {row}: id={recipe.recipe_id!r} occurred in row "
                f"{seen[recipe.recipe_id]}; ids must be distinct"
            )
        seen[recipe.recipe_id] = row
        yield recipe


def recipe_id_of(source: str, url: str) -> str:
    """The id of a recipe that brings none: `ar<number>` for Allrecipes, else source and URL.

    `"epicurious.com"` gives `epic_` and ten digits of the URL's SHA-1.
    """
    if (number := _ALLRECIPES.search(url)) is not None:
        return f"ar{number[1]}"
    return f"{source[:4]}_{hashlib.sha1(url.encode()).hexdigest()[:10]}"


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    """Rows that are not blank, with their numbers from 1."""
    row = 0
    try:
        for row, text in enumerate(_lines(path), start=1):
            if text.strip():
                yield row, text
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: after row {row}: not UTF-8 text ({error.reason})") from error
    except (EOFError, OSError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: after row {row}: cannot be read ({error})") from error


def _lines(path: Path) -> Iterator[str]:
    if path.suffix == ".zst":
        yield from _zstd_lines(path)
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from file
    else:
        with path.open(encoding="utf-8") as file:
            yield from file


def _zstd_lines(path: Path) -> Iterator[str]:
    # Not `stream_reader`: it takes a truncated file for a complete one.
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    rest = b""
    with path.open("rb") as file:
        while not decompressor.eof:
            compressed = file.read(_BLOCK_BYTES)
            if not compressed:
                raise EOFError("the compressed data end too early")
            *lines, rest = (rest + decompressor.decompress(compressed)).split(b"\n")
            yield from (line.decode() for line in lines)
    yield rest.decode()


def _recipe(text: str, row_number: int, place: str) -> RawRecipe | None:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        shown = text.strip()[:40]
        raise DataError(f"{place}: value={shown!r} is not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be a JSON object, is {type(row).__name__}")
    if isinstance(output := row.get("output"), dict) and "ingredients" not in row:
        if not isinstance(inner := output.get("recipe"), dict):
            return None
        digest = hashlib.sha1(text.encode()).hexdigest()[:10]
        row = {
            "id": f"pp_{digest}",
            "title": inner.get("name", ""),
            "source": "pantrypilot",
            "ingredients": inner.get("main_ingredients"),
        }
    return RawRecipe(
        row=row_number,
        recipe_id=_identifier(row, place),
        title=_text(row, "title", place),
        source=_text(row, "source", place),
        lines=_ingredients(row, place),
    )


def _identifier(row: dict[str, Any], place: str) -> str:
    identifier = _text(row, "id", place)
    if not identifier:
        source, url = _text(row, "source", place), _text(row, "url", place)
        if not url:
            raise DataError(
                f"{place}: has neither 'id' nor 'url'; one of them must tell recipes apart"
            )
        identifier = recipe_id_of(source, url)
    return identifier


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: {field}={value!r} must be a string")
    return value.strip()


def _ingredients(row: dict[str, Any], place: str) -> tuple[str, ...]:
    if "ingredients" not in row:
        raise DataError(f"{place}: field 'ingredients' is missing; it has {sorted(row)}")
    lines = row["ingredients"]
    if not isinstance(lines, list):
        raise DataError(f"{place}: ingredients={lines!r:.60} must be a list of strings")
    for line in lines:
        if not isinstance(line, str):
            raise DataError(f"{place}: ingredients hold {line!r:.60}; each must be a string")
    return tuple(lines) if any(line.strip() for line in lines) else ()
