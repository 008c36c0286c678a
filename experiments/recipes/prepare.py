"""Raw recipes to foods and grams: a prepared folder."""

import dataclasses
from pathlib import Path
from typing import Any

from recipe_jax.data.prepare import prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to read and where to write.

    Attributes:
        recipes: raw recipes: .jsonl, .jsonl.gz or .jsonl.zst.
        out: the prepared folder.
        limit: read at most so many recipes.
        processes: of the parser; one for each core if not given.
    """

    recipes: Path
    out: Path
    limit: int | None = None
    processes: int | None = None


def run(flags: Flags) -> dict[str, Any]:
    """Prepare, print the yield, and return it."""
    report = prepare(flags.recipes, flags.out, limit=flags.limit, processes=flags.processes)
    return dataclasses.asdict(report)
