"""Items by the vectors of what a user had last, and a share of the places reserved for new ones.

Nothing is learned of users here: an item needs a vector and no history, so that one which came
today is found as well as any other.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32

from experiments.semantic_ids.baselines import recency_weights
from experiments.semantic_ids.protocol import Scorer, item_bits
from recipe_jax.data.interactions import Histories
from recipe_jax.data.unit_rows import unit_rows
from recipe_jax.reserved_places import mix_in, reserved_places, top_items


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingRetrieval:
    """The cosine between each item and the mean of a history, the latest items counting most.

    Attributes:
        vectors: of every item, of length 1 or 0.
        decay: what an item counts beside the one after it in time; 1 where order means nothing.
    """

    vectors: Float32[np.ndarray, "n d"]
    decay: float = 1.0

    def score(self, histories: Histories) -> Float32[np.ndarray, "u n"]:
        """Scores of every item, one row a user; zeros where a history says nothing."""
        num_items = len(self.vectors)
        weights = recency_weights(histories, num_items=num_items, decay=self.decay)
        return unit_rows(weights @ self.vectors) @ self.vectors.T


def fit_embedding_retrieval(
    vectors: Float32[np.ndarray, "n d"], *, decay: float = 1.0
) -> EmbeddingRetrieval:
    """Retrieval by vectors of any length; the zero vector is like no other."""
    return EmbeddingRetrieval(vectors=unit_rows(vectors), decay=decay)


def with_fallback(
    main: Scorer,
    retrieval: Scorer,
    is_new: Bool[np.ndarray, "n"],
    *,
    share: float,
    num_places: int = 10,
) -> Scorer:
    """A scorer that gives a share of the first places to the best new items by another one.

    Which places these are is the same for everyone, see `reserved_places`.  Items beyond the first
    places share the last rank; what a user knows gets no place.

    Args:
        main: has the other places; it may give some of them to new items as well.
        retrieval: ranks the new items.
        is_new: which items are.
        share: of the places, from 0 to 1.
        num_places: of which anything is to be known, such as the largest cutoff of a metric.

    Raises:
        ValueError: another share, or no new item.
    """
    reserved_places(num_places, share)
    check_new_items(is_new)

    def score(histories: Histories) -> Float32[np.ndarray, "u n"]:
        unknown = ~item_bits(histories, len(is_new))
        mixed = mix_in(
            top_items(main(histories), unknown, num_places),
            top_items(retrieval(histories), unknown & is_new, num_places),
            share=share,
            num_places=num_places,
        )
        scores = np.zeros(unknown.shape, np.float32)
        user, place = np.nonzero(mixed >= 0)
        scores[user, mixed[user, place]] = num_places - place
        return scores

    return score


def check_new_items(is_new: Bool[np.ndarray, "n"]) -> None:
    """Refuse a fallback on nothing.

    Raises:
        ValueError: no item is new.
    """
    if not is_new.any():
        raise ValueError(
            f"none of {len(is_new)} items is new, so there is nothing to fall back on: train with "
            "--new-items"
        )
