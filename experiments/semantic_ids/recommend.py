"""Recommend items to somebody whose history is given, or who says what is wanted.

python -m experiments.semantic_ids recommend --run runs/generative --history B001 B002 --k 10

A language model of `tune` takes `--query "a matte red lipstick"` as well.  Every item exists, none
is named twice and none of the history is.  A model that was trained without some items (`train
--new-items`) may name them, too; `--new-share` keeps places for those whose vectors are nearest to
the history's.  The last line on stdout is one JSON object.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.commands import check_least
from experiments.semantic_ids.embedding_retrieval import fit_embedding_retrieval
from experiments.semantic_ids.questions import knows_questions
from experiments.semantic_ids.recommending import Fallback, Recommendations, recommend
from experiments.semantic_ids.trained import Recommender, load_recommender
from recipe_jax.data.array_files import read_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Who is recommended what by which model.

    Attributes:
        run: the run folder of `train` or `tune`, or its model folder.
        history: names of items, the latest last.
        query: what is wanted, in words; in place of a history.
        k: how many items.
        new_share: of the places, from 0 to 1, that are kept for items that the model never saw.
        vectors: of the items, such as the vectors.npz of `quantize --new-items`; for --new-share.
        decay: of what an item of the history counts beside the next, for --new-share.
    """

    run: Path
    history: tuple[str, ...] = ()
    query: str | None = None
    k: int = 10
    new_share: float | None = None
    vectors: Path | None = None
    decay: float = 0.5

    def __post_init__(self) -> None:
        check_least(self, k=1, decay=0.0)
        if bool(self.history) == (self.query is not None):
            raise ValueError("give either --history, of one item at least, or --query")
        if self.new_share is not None and self.vectors is None:
            raise ValueError("--new-share needs --vectors, by which new items are found")


def run(flags: Flags) -> dict[str, Any]:
    """Recommend, print a table; time is that of a second call, when all is compiled."""
    ask = asking(flags)
    ask()
    found = ask()
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
        "by_fallback": [row.by_fallback for row in found.items],
        "milliseconds": round(found.milliseconds, 3),
    }


def asking(flags: Flags) -> Callable[[], Recommendations]:
    """What is asked of which model.

    Raises:
        ValueError: a sentence for a model that reads none, or places kept for new items by one that
            knows of none.
    """
    if not knows_questions(flags.run):
        if flags.query is not None:
            raise ValueError(f"--query is for a language model of tune, which {flags.run} is not")
        recommender = load_recommender(flags.run)
        fallback = make_fallback(flags, recommender)
        return functools.partial(
            recommend, recommender, flags.history, k=flags.k, fallback=fallback
        )
    if flags.new_share is not None:
        raise ValueError(f"--new-share is for a model of train, which {flags.run} is not")
    # Needs the extra [language], which the others do not.
    from experiments.semantic_ids.language_recommending import (
        load_language_recommender,
        recommend_for_history,
        recommend_for_query,
    )

    model = load_language_recommender(flags.run)
    if flags.query is not None:
        return functools.partial(recommend_for_query, model, flags.query, k=flags.k)
    return functools.partial(recommend_for_history, model, flags.history, k=flags.k)


def make_fallback(flags: Flags, recommender: Recommender) -> Fallback | None:
    """The fallback that the flags name, if any.

    Raises:
        DataError: vectors that cannot be read, or none of an item.
    """
    if flags.new_share is None or flags.vectors is None:
        return None
    vectors = read_vectors(flags.vectors, recommender.item_ids)
    retrieval = fit_embedding_retrieval(vectors, decay=flags.decay)
    return Fallback(retrieval, flags.new_share)
