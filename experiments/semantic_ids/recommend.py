"""Recommend items to somebody whose history is given.

python -m experiments.semantic_ids recommend --run runs/generative --history B001 B002 --k 10

Every item exists, none is named twice and none of the history is.  The last line on stdout is one
JSON object.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.commands import check_least
from experiments.semantic_ids.recommending import recommend
from experiments.semantic_ids.trained import load_recommender


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Who is recommended what by which model.

    Attributes:
        run: the run folder of `train`, or its model folder.
        history: names of items, the latest last.
        k: how many items.
    """

    run: Path
    history: tuple[str, ...]
    k: int = 10

    def __post_init__(self) -> None:
        check_least(self, k=1)


def run(flags: Flags) -> dict[str, Any]:
    """Recommend, print a table; time is that of a second call, when all is compiled."""
    recommender = load_recommender(flags.run)
    recommend(recommender, flags.history, k=flags.k)
    found = recommend(recommender, flags.history, k=flags.k)
    if found.num_read < len(flags.history):
        print(
            f"the model reads {found.num_read} items: the latest of {len(flags.history)}",
            file=sys.stderr,
        )
    table = Table("", "item", "semantic ID", "score")
    for place, row in enumerate(found.items, start=1):
        table.add_row(str(place), row.item, row.semantic_id.replace("[", "\\["), f"{row.score:.3f}")
    Console(stderr=True).print(table)
    return {
        "items": [row.item for row in found.items],
        "semantic_ids": [row.semantic_id for row in found.items],
        "scores": [row.score for row in found.items],
        "milliseconds": round(found.milliseconds, 3),
    }
