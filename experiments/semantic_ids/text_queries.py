"""Queries in words, and the one item of a catalogue that each of them is for.

Every item of the catalogue competes.  A query's item is known because the query was made of it or
for it; others may answer it as well, so a recall of 1 is out of reach and what counts is which
system is ahead.
"""

import collections
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int

from experiments.sequence_to_sequence.scores import wilson_interval
from recipe_jax.data.catalogues import (
    FIELD_SEPARATOR,
    Catalogue,
    catalogue_fingerprint,
    recipe_catalogue,
)
from recipe_jax.data.files import DataError
from recipe_jax.data.pantrypilot import Asked, read_pantrypilot
from recipe_jax.data.recipes import split_of
from recipe_jax.metrics import ndcg_at_k, ranks_of_targets, reciprocal_rank, student_t_interval

TextScorer: TypeAlias = Callable[[Sequence[str]], Float[np.ndarray, "u n"]]
"""Queries to a score of every item for each; higher is better."""

TaskName: TypeAlias = Literal["recipe-titles", "pantrypilot-pantries", "pantrypilot-requests"]
SplitName: TypeAlias = Literal["validation", "test"]

CUTOFFS = (1, 5, 10)

_NONE = Asked((), np.zeros(0, np.int64))


class TextQueries(NamedTuple):
    """What is asked, of what.

    Attributes:
        name: of the task.
        items: all that a system may know of the items: what it indexes, and what codes are made of.
        queries: as text.
        targets: the item of each query, a row of `items`.
        known: queries whose items may be learned from, none of them asked; may be empty.
        num_left_out: queries of the split that are not asked, and why.
    """

    name: TaskName
    items: Catalogue
    queries: tuple[str, ...]
    targets: Int[np.ndarray, "u"]
    known: Asked
    num_left_out: dict[str, int]


def read_text_queries(
    task: TaskName, *, split: SplitName, num_queries: int | None = None, seed: int = 0
) -> TextQueries:
    """The queries of a task, from `$RECIPE_JAX_DATA`.

    Args:
        task: `recipe-titles` as `title_queries` says; `pantrypilot-pantries` and
            `pantrypilot-requests` of `read_pantrypilot`.
        split: of pantries, the file that they are in; the requests are a test alone.
        num_queries: at most so many, a random sample; all of them if None.
        seed: of the sample.

    Raises:
        DataError: data that are not there or break a rule.
        ValueError: requests for validation.
    """
    root = os.environ.get("RECIPE_JAX_DATA")
    if not root:
        raise DataError(f"$RECIPE_JAX_DATA is not set: it names the folder of data for {task}")
    if task == "recipe-titles":
        found = title_queries(recipe_catalogue(Path(root)), split=split)
    else:
        data = read_pantrypilot(Path(root))
        if task == "pantrypilot-requests" and split != "test":
            raise ValueError(
                f"{task}: {len(data.requests.queries)} requests are too few to split; choose by "
                "pantrypilot-pantries, which ask of the same items"
            )
        asked: Asked = data.requests if task == "pantrypilot-requests" else data.pantries[split]
        left_out = {"recipe without ingredients, of either split": data.num_empty}
        found = TextQueries(task, data.items, *asked, _NONE, left_out)
    if num_queries is None or num_queries >= len(found.queries):
        return found
    drawn = np.random.default_rng(seed).permutation(len(found.queries))[:num_queries]
    rows = np.sort(drawn)
    return found._replace(
        queries=tuple(found.queries[row] for row in rows.tolist()), targets=found.targets[rows]
    )


def title_queries(catalogue: Catalogue, *, split: SplitName) -> TextQueries:
    """Titles of the split's recipes, to be found by their ingredients.

    A title that another recipe has, too, is not asked: nothing in it says which of them is meant.
    Nor is that of a recipe without ingredients, of which nothing else could be known.  The titles
    of recipes for training may be learned from.

    Args:
        catalogue: recipes whose texts begin with their attribute `title`.
        split: of `recipe_jax.data.recipes.split_of`.
    """
    titles, items = catalogue.attributes["title"], without_titles(catalogue)
    folded = [" ".join(title.lower().split()) for title in titles]
    count = collections.Counter(folded)
    rows: dict[str, list[int]] = {"asked": [], "known": []}
    left_out = {"title of several recipes": 0, "recipe without ingredients": 0}
    for row, name in enumerate(catalogue.ids):
        part = split_of(name)
        if part == "train":
            rows["known"].append(row)
        elif part == split and items.texts[row] == catalogue.texts[row]:
            left_out["recipe without ingredients"] += 1
        elif part == split and count[folded[row]] > 1:
            left_out["title of several recipes"] += 1
        elif part == split:
            rows["asked"].append(row)
    asked, known = (
        Asked(tuple(titles[row] for row in kind), np.array(kind, np.int64))
        for kind in rows.values()
    )
    return TextQueries("recipe-titles", items, *asked, known, left_out)


def without_titles(catalogue: Catalogue) -> Catalogue:
    """Recipes by their ingredients alone; titles stay as attributes of those for training.

    Titles are in no text, not even in those of recipes for training: else what is asked is mostly
    which recipe has no title (`experiments/LOG.md`).  For the same reason whether an item has the
    attribute must not be used to find it.  A recipe without ingredients keeps its title as its
    text, which is never empty.
    """
    titles = catalogue.attributes["title"]
    texts = tuple(
        text.removeprefix(title + FIELD_SEPARATOR)
        for text, title in zip(catalogue.texts, titles, strict=True)
    )
    kept = (
        title if split_of(name) == "train" else ""
        for name, title in zip(catalogue.ids, titles, strict=True)
    )
    attributes = {**catalogue.attributes, "title": tuple(kept)}
    fingerprint = catalogue_fingerprint(catalogue.ids, texts)
    return Catalogue(catalogue.ids, texts, attributes, fingerprint)


def text_ranks(
    score: TextScorer, asked: TextQueries, *, queries_at_once: int = 128
) -> Float64[np.ndarray, "u"]:
    """The rank of each query's item among all items; 1 is best, equal scores share their rank.

    Args:
        score: scores every item for each query.
        asked: queries and items.
        queries_at_once: memory grows with it, by some twenty bytes an item.

    Raises:
        ValueError: scores of another shape than queries by items, or NaN.
    """
    ranks = []
    for start in range(0, len(asked.queries), queries_at_once):
        queries = asked.queries[start : start + queries_at_once]
        scores = np.asarray(score(queries))
        expected = (len(queries), len(asked.items.ids))
        if scores.shape != expected:
            raise ValueError(f"the scorer returned shape {scores.shape}, must be {expected}")
        targets = asked.targets[start : start + queries_at_once]
        nothing = np.broadcast_to(np.False_, expected)
        ranks.append(ranks_of_targets(scores, targets, nothing))
    return np.concatenate(ranks)


def text_metrics(ranks: Float64[np.ndarray, "u"]) -> dict[str, Any]:
    """Recall at 1, 5 and 10, MRR and NDCG at 10, each with its 95 % interval over queries, and `n`.

    Intervals of recall are Wilson's, sound for few queries and for shares of 0 and 1; the others
    Student's t.
    """
    report: dict[str, Any] = {"n": len(ranks)}
    for k in CUTOFFS:
        share, low, high = wilson_interval(int((ranks <= k).sum()), len(ranks))
        report |= {f"recall_at_{k}": share, f"recall_at_{k}_interval": [low, high]}
    for name, values in {"mrr": reciprocal_rank(ranks), "ndcg_at_10": ndcg_at_k(ranks, 10)}.items():
        mean, low, high = student_t_interval(values)
        report |= {name: mean, f"{name}_interval": [low, high]}
    return report
