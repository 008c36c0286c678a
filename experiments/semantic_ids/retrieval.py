"""Items for a query in words without any trained model: what answers where none can."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from experiments.semantic_ids.blending import standardized
from experiments.semantic_ids.recommending import Recommendation, Recommendations
from experiments.semantic_ids.text_baselines import (
    NearestTexts,
    TextChoices,
    fit_nearest_texts,
)
from recipe_jax.data.bm25 import Bm25, Bm25Config, fit_bm25
from recipe_jax.data.catalogues import Catalogue
from recipe_jax.semantic_ids import SemanticIds, format_id


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Retriever:
    """BM25 and nearest texts, standardized and added up.

    Attributes:
        item_ids: of the catalogue.
        semantic_ids: each item's as text; empty where there are none.
        words: BM25 of the items.
        nearest: vectors of the items.
        weight: of the nearest texts beside BM25.
    """

    item_ids: tuple[str, ...]
    semantic_ids: tuple[str, ...]
    words: Bm25
    nearest: NearestTexts
    weight: float

    def search(self, query: str, *, k: int) -> Recommendations:
        """The `k` items that fit a query best, those of equal scores in the catalogue's order.

        Args:
            query: words; those that no item has add nothing.
            k: how many items.

        Raises:
            ValueError: a query that is empty or has no word of any item, or `k` out of range.
        """
        started = time.perf_counter()
        if not query.strip():
            raise ValueError("the query is empty, must hold a word at least")
        if not 1 <= k <= len(self.item_ids):
            raise ValueError(f"k={k} must be from 1 to {len(self.item_ids)}, the number of items")
        by_words = self.words.scores([query])
        if not by_words.any():
            raise ValueError(f"no item has any word of the query {query!r:.60}: use other words")
        by_vectors = self.nearest.scores([query])
        scores = (standardized(by_words) + self.weight * standardized(by_vectors))[0]
        best = _highest(scores, k)
        found = tuple(
            Recommendation(self.item_ids[item], self.semantic_ids[item], float(scores[item]))
            for item in best.tolist()
        )
        return Recommendations(found, 0, 1e3 * (time.perf_counter() - started))


def make_retriever(
    catalogue: Catalogue, ids: SemanticIds | None, *, choices: TextChoices | None = None
) -> Retriever:
    """Index a catalogue.

    Args:
        catalogue: its texts are what is found.
        ids: semantic IDs of its items, to be named beside them; of more items if there are.
        choices: settings of the index; `TextChoices()` if None.

    Raises:
        ValueError: no item, no word that two items have, or an item without an ID among `ids`.
    """
    if not catalogue.ids:
        raise ValueError("the catalogue has no item, must have one at least to be searched")
    choices = TextChoices() if choices is None else choices
    return Retriever(
        item_ids=catalogue.ids,
        semantic_ids=_written(catalogue.ids, ids),
        words=fit_bm25(catalogue.texts, Bm25Config(k1=choices.k1, b=choices.b)),
        nearest=fit_nearest_texts(catalogue.texts, dim=choices.dim),
        weight=choices.blend.get("nearest_texts", 0.0),
    )


def _highest(scores: Float32[np.ndarray, "n"], k: int) -> Int[np.ndarray, "k"]:
    """The first `k` of a stable sort, of which only they are sorted."""
    least = np.partition(scores, -k)[-k]
    found = np.flatnonzero(scores >= least)
    return found[np.argsort(-scores[found], kind="stable")][:k]


def _written(items: Sequence[str], ids: SemanticIds | None) -> tuple[str, ...]:
    if ids is None:
        return ("",) * len(items)
    known = {item: format_id(row) for item, row in zip(ids.items, ids.codes, strict=True)}
    missing = [item for item in items if item not in known]
    if missing:
        raise ValueError(
            f"item {missing[0]!r} has no semantic ID, nor have {len(missing) - 1} others: "
            "quantize this catalogue"
        )
    return tuple(known[item] for item in items)
