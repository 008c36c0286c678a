"""Raw recipes from JSON lines: one recipe a row, its ingredients as written."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe_jax.data.files import DataError
from recipe_jax.data.text_lines import parse_object, read_lines

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
    for row, text in read_lines(path):
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


def _recipe(text: str, row_number: int, place: str) -> RawRecipe | None:
    row = parse_object(text, place)
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
