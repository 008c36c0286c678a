"""One JSON file a recipe, in the repository's archive, collected into `recipes.jsonl.zst`."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from recipe_jax.data.files import DataError

# A scrape that was turned away left the error page's title in place of the recipe's.
_ERROR_TITLES = ("Too Many Requests",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collected:
    """What `collect_recipes` found.

    Attributes:
        num_recipes: recipes written.
        skipped: how many files were left out, by reason.
    """

    num_recipes: int
    skipped: dict[str, int]


def recipe_id_of(source: str, url: str) -> str:
    """`ar<number>` for an Allrecipes URL, else `<first 4 letters of source>_<sha1(url)[:10]>`.

    Args:
        source: the site, such as `www.epicurious.com`; a leading `www.` does not count.
        url: the recipe's page.
    """
    number = re.search(r"allrecipes\.com/recipe/(\d+)", url)
    if number:
        return f"ar{number[1]}"
    return f"{source.removeprefix('www.')[:4]}_{hashlib.sha1(url.encode()).hexdigest()[:10]}"


def collect_recipes(archive: Path, out: Path) -> Collected:
    """Collect `index/**/*.json` of a `.tar.gz` archive into one compressed JSON-lines file.

    Rows are `id, title, source, url, tags, ingredients` in the archive's order; a second recipe of
    the same id becomes `<id>-2`, and so on.  Directions are left out.  Nothing is unpacked to disk.

    Args:
        archive: what `fetch(["recipes"], ...)` downloaded.
        out: the `.jsonl.zst` file; appears only when whole.

    Raises:
        DataError: the archive is missing, damaged or holds no recipe, or `out` cannot be written.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: no such file; fetch the source 'recipes' first")
    partial = out.with_name(f"{out.name}.part")
    skipped: collections.Counter[str] = collections.Counter()
    copies: collections.Counter[str] = collections.Counter()
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with zstandard.open(partial, "wt", encoding="utf-8", newline="\n") as file:
            for content in _members(archive):
                row = _row_of(content)
                if isinstance(row, str):
                    skipped[row] += 1
                    continue
                copies[row["id"]] += 1
                if copies[row["id"]] > 1:
                    row["id"] += f"-{copies[row['id']]}"
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not copies:
            raise DataError(f"{archive}: holds no recipe (index/**/*.json)")
        partial.replace(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):  # an error on the way out would hide the first
            partial.unlink()
    return Collected(num_recipes=copies.total(), skipped=dict(skipped))


def _members(archive: Path) -> Iterator[bytes]:
    """The contents of the recipe files, in the archive's order."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile() and re.search(r"(^|/)index/.*\.json$", member.name):
                    content = tar.extractfile(member)
                    yield content.read() if content else b""
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{archive}: not a whole .tar.gz archive ({error}); delete it and fetch it again"
        ) from error


def _row_of(content: bytes) -> dict[str, Any] | str:
    """One output row, or why there is none."""
    try:
        recipe = json.loads(content)
        lines = [line for line in recipe["ingredients"] if isinstance(line, str)]
        title, url, source = (str(recipe[field]) for field in ("title", "url", "source"))
        tags = [str(tag) for tag in recipe.get("tags") or []]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "not a recipe in JSON"
    if title in _ERROR_TITLES:
        return "an error page of the site"
    if not lines:
        return "no ingredients"
    return {
        "id": recipe_id_of(source, url),
        "title": title,
        "source": source,
        "url": url,
        "tags": tags,
        "ingredients": lines,
    }
