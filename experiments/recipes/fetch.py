"""Download the public sources, licence notices first."""

import dataclasses
from pathlib import Path
from typing import Any

from recipe_jax.data.recipe_archive import collect_recipes
from recipe_jax.data.sources import SOURCES, fetch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to download.

    Attributes:
        out: the folder for the files; the same command continues what was interrupted.
        sources: names of sources; the recipes if none is given.
    """

    out: Path
    sources: tuple[str, ...] = ("recipes",)


def run(flags: Flags) -> dict[str, Any]:
    """Download, and collect an archive of recipes into the one file that `prepare` reads."""
    paths = fetch(flags.sources, flags.out, sources=SOURCES)
    headline: dict[str, Any] = {"files": [str(path) for path in paths]}
    for archive in (path for path in paths if path.name == "recipes.tar.gz"):
        target = archive.with_name("recipes.jsonl.zst")
        collected = collect_recipes(archive, target)
        headline |= {"recipes": str(target), "num_recipes": collected.num_recipes}
    return headline
