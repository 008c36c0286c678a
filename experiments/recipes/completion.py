"""Completion: hide one food of a recipe and rank every food that is not in the rest.

The protocol of every completion number of this project.  Recipes: 3 to 25 lines, at least 80 % of
them mapped, of the fixed split, whose set of foods is no training recipe's.  The hidden food is a
hash of the seed and the recipe's id, so that a recipe's query is the same for every method, on
every machine, and whichever other recipes lie beside it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64
from rich.console import Console
from rich.progress import track

from recipe_jax.data.files import DataError
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.metrics import (
    ndcg_at_k,
    ranks_of_targets,
    recall_at_k,
    reciprocal_rank,
    student_t_interval,
)

ScoreFn: TypeAlias = Callable[
    [Int32[np.ndarray, "b m"], Int32[np.ndarray, "b"]], Float[np.ndarray, "b v"]
]
"""Given foods (padded with `v`) and their counts, a score of every food; higher is better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionQueries:
    """One query a recipe, in compressed rows: query `i` gives `offsets[i]:offsets[i + 1]`.

    Attributes:
        recipe_ids: where each query comes from.
        offsets: row boundaries into `given`.
        given: the foods shown, in ascending order: their place tells nothing of the hidden one.
        hidden: the food to be found.
        num_foods: size of the vocabulary, which is also the padding index.
    """

    recipe_ids: Sequence[str]
    offsets: Int64[np.ndarray, "n_plus_one"]
    given: Int32[np.ndarray, "members"]
    hidden: Int32[np.ndarray, "n"]
    num_foods: int

    def __len__(self) -> int:
        """How many queries there are."""
        return len(self.hidden)

    def padded(self) -> tuple[Int32[np.ndarray, "n m"], Int32[np.ndarray, "n"]]:
        """The given foods as rows padded with `num_foods`, and their counts."""
        lengths = np.diff(self.offsets).astype(np.int32)
        rows = np.full((len(self), lengths.max(initial=0)), self.num_foods, np.int32)
        rows[np.arange(rows.shape[1]) < lengths[:, None]] = self.given
        return rows, lengths


def completion_recipes(sets: RecipeSets, split: str) -> RecipeSets:
    """The recipes of `split` that completion is scored on: no food set of a training recipe."""
    training = sets.select_split("train")
    return sets.select_completion().select_split(split).without_food_sets_of(training)


def completion_queries(recipes: RecipeSets, *, num_foods: int, seed: int = 0) -> CompletionQueries:
    """Hide one food of every recipe.

    Raises:
        DataError: no recipe, or one of fewer than two foods, which leaves nothing to be given.
    """
    if not len(recipes):
        raise DataError("completion: no recipe fits the protocol; is the prepared folder complete?")
    given, hidden = [], []
    for i, recipe_id in enumerate(recipes.recipe_ids):
        foods = np.sort(recipes.foods_of(i))
        if len(foods) < 2:
            raise DataError(f"completion: recipe {recipe_id} has {len(foods)} foods, needs 2")
        digest = hashlib.sha1(f"{seed} {recipe_id}".encode()).hexdigest()
        place = int(digest, 16) % len(foods)
        hidden.append(foods[place])
        given.append(np.delete(foods, place))
    return CompletionQueries(
        recipe_ids=recipes.recipe_ids,
        offsets=np.cumsum([0, *map(len, given)], dtype=np.int64),
        given=np.concatenate(given),
        hidden=np.array(hidden, np.int32),
        num_foods=num_foods,
    )


def completion_ranks(
    score: ScoreFn,
    queries: CompletionQueries,
    *,
    batch_size: int = 256,
    about: str | None = None,
) -> Float[np.ndarray, "n"]:
    """The rank of each query's hidden food among all foods not given; ties take the mid-rank.

    Args:
        score: scores every food for each set.
        queries: what is asked.
        batch_size: queries at a time.
        about: the name of a progress bar; none is shown if it has no name.

    Raises:
        ValueError: scores of another shape than `[b v]`, or NaN.
    """
    given, lengths = queries.padded()
    ranks = []
    starts = range(0, len(queries), batch_size)
    console = Console(stderr=True)
    for start in track(starts, about or "", console=console, transient=True, disable=about is None):
        rows = slice(start, start + batch_size)
        scores = np.asarray(score(given[rows], lengths[rows]))
        expected = (len(given[rows]), queries.num_foods)
        if scores.shape != expected:
            raise ValueError(f"score returned shape {scores.shape}, must be {expected}")
        excluded = food_bits(given[rows], num_foods=queries.num_foods)
        ranks.append(ranks_of_targets(scores, queries.hidden[rows], excluded))
    return np.concatenate(ranks)


def evaluate_completion(
    score: ScoreFn,
    queries: CompletionQueries,
    *,
    batch_size: int = 256,
    about: str | None = None,
) -> dict[str, Any]:
    """Recall at 1 and 10, NDCG at 10 and MRR, each with its 95 % t interval over queries."""
    ranks = completion_ranks(score, queries, batch_size=batch_size, about=about)
    values = {
        "recall_at_1": recall_at_k(ranks, 1),
        "recall_at_10": recall_at_k(ranks, 10),
        "ndcg_at_10": ndcg_at_k(ranks, 10),
        "mrr": reciprocal_rank(ranks),
    }
    report: dict[str, Any] = {"n": len(queries)}
    for name, value in values.items():
        mean, low, high = student_t_interval(value)
        report |= {name: mean, f"{name}_interval": [low, high]}
    return report


def food_bits(foods: Int32[np.ndarray, "n m"], *, num_foods: int) -> Bool[np.ndarray, "n v"]:
    """Rows of foods, padded with `num_foods`, as rows of bits."""
    bits = np.zeros((len(foods), num_foods + 1), bool)
    bits[np.arange(len(foods))[:, None], foods] = True
    return bits[:, :num_foods]
