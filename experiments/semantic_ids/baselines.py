"""Recommenders without a neural network, fitted on histories alone.

Each is a `fit_*` function that returns a frozen value, whose `score` is a `protocol.Scorer`.
"""

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Float64
from scipy.linalg import get_lapack_funcs

from recipe_jax.data.interactions import Histories

Scores: TypeAlias = Float32[np.ndarray, "u n"]
# Items by items: an array, or a sparse matrix of scipy, whose types say little.
ItemMatrix: TypeAlias = Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Popularity:
    """Every item by the number of users who took it, whoever asks."""

    counts: Float64[np.ndarray, "n"]

    def score(self, histories: Histories) -> Float64[np.ndarray, "u n"]:
        """Scores of every item, one row a user."""
        return np.tile(self.counts, (len(histories.users), 1))


def fit_popularity(histories: Histories, *, num_items: int) -> Popularity:
    """Count each item's users."""
    return Popularity(counts=np.bincount(histories.items, minlength=num_items).astype(np.float64))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NextIndex:
    """The item whose index follows the largest of the history, and nothing else.

    No recommender: it measures what the order of the ids gives away.  Where ids run in order of
    first appearance it finds four of a hundred items of Beauty; after a random permutation, none.
    """

    num_items: int

    def score(self, histories: Histories) -> Scores:
        """One for a single item of each user, else zero."""
        scores = np.zeros((len(histories.users), self.num_items), np.float32)
        largest = np.maximum.reduceat(histories.items, histories.offsets[:-1])
        rows = np.flatnonzero(largest + 1 < self.num_items)
        scores[rows, largest[rows] + 1] = 1.0
        return scores


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ItemToItem:
    """The sum of what each item of a history adds to every item.

    Attributes:
        weights: `[i, j]` is what an item `i` of the history adds to the score of `j`.
        decay: what an item counts beside the one after it in time; 1 where order means nothing.
    """

    weights: ItemMatrix
    decay: float = 1.0

    def score(self, histories: Histories) -> Scores:
        """Scores of every item, one row a user."""
        rows = recency_weights(histories, num_items=self.weights.shape[0], decay=self.decay)
        product: Any = rows @ self.weights
        return product.toarray() if scipy.sparse.issparse(product) else product

    def with_decay(self, decay: float) -> "ItemToItem":
        """The same weights, read with another decay."""
        return dataclasses.replace(self, decay=decay)


def fit_item_knn(histories: Histories, *, num_items: int, decay: float = 1.0) -> ItemToItem:
    """Cosine similarity of items by their users (Sarwar et al. 2001, doi:10.1145/371920.372071).

    Every other item of the catalogue is a neighbour.

    Args:
        histories: to learn from.
        num_items: of the catalogue.
        decay: of `ItemToItem`.
    """
    rows = recency_weights(histories, num_items=num_items)
    together = scipy.sparse.coo_array(rows.T @ rows)
    lengths = np.sqrt(np.maximum(together.diagonal(), 1.0))
    (left, right), values = together.coords, together.data
    values = np.where(left == right, 0.0, values / (lengths[left] * lengths[right]))
    shape = (num_items, num_items)
    weights = scipy.sparse.csr_array((values.astype(np.float32), (left, right)), shape)
    return ItemToItem(weights=weights, decay=decay)


def fit_ease(
    histories: Histories, *, num_items: int, penalty: float, decay: float = 1.0
) -> ItemToItem:
    """A linear model of each item from the others (Steck 2019, arXiv:1905.03375, eq. 8).

    Learned without order, asked with recency: the closed form stays, and a history's latest items
    count most.

    Args:
        histories: to learn from.
        num_items: of the catalogue; memory and time grow with its square and cube (12,101 items
            take 1.2 gigabytes and, on two cores, half a minute).
        penalty: the paper's lambda, in users.
        decay: of `ItemToItem`.

    Raises:
        ValueError: a penalty that is not positive: an item of no user makes the system singular.
    """
    rows = recency_weights(histories, num_items=num_items)
    weights = regularized_inverse(rows.T @ rows, penalty)
    weights /= -np.diag(weights)
    np.fill_diagonal(weights, 0.0)
    return ItemToItem(weights=weights, decay=decay)


def fit_transitions(
    histories: Histories, *, num_items: int, penalty: float, decay: float
) -> ItemToItem:
    """A linear model of the next item from those before it, the latest counting most.

    Ridge regression over every place of every history, as in SLIT (Choi et al. 2021,
    arXiv:2103.16104), with the next item alone as the target where that has all that follow.

    Args:
        histories: to learn from, in order.
        num_items: of the catalogue; memory and time as for `fit_ease`.
        penalty: of the squared weights, in places of histories.
        decay: in learning and of `ItemToItem`.

    Raises:
        ValueError: a penalty that is not positive, or histories without an order.
    """
    if not histories.ordered:
        raise ValueError("histories without an order have no transitions")
    before, following = transitions(histories, num_items=num_items, decay=decay)
    inverse = regularized_inverse(before.T @ before, penalty)
    weights = inverse @ scipy.sparse.csc_array(before.T @ following)
    # By rows: scipy would copy it for every product with a sparse matrix.
    return ItemToItem(weights=np.ascontiguousarray(weights), decay=decay)


def transitions(
    histories: Histories, *, num_items: int, decay: float, max_items: int = 20
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """For every item but a user's first: the items before it, by recency, and the item itself.

    Args:
        histories: in order.
        num_items: of the catalogue.
        decay: what an item counts beside the one after it in time.
        max_items: how many items before it are seen; beyond twenty little weight is left.

    Returns:
        Two matrices of places by items.
    """
    first = np.repeat(histories.offsets[:-1], histories.lengths)
    places = np.arange(len(histories.items))
    targets = places[places > first]
    shape = (len(targets), num_items)
    numbers, columns, values = [], [], []
    for steps in range(1, max_items + 1):
        numbers.append(np.flatnonzero(targets - steps >= first[targets]))
        columns.append(histories.items[targets[numbers[-1]] - steps])
        values.append(np.full(len(numbers[-1]), decay ** (steps - 1), np.float32))
    coordinates = (np.concatenate(numbers), np.concatenate(columns))
    before = scipy.sparse.csr_array((np.concatenate(values), coordinates), shape)
    ones = np.ones(len(targets), np.float32)
    following = scipy.sparse.csr_array(
        (ones, (np.arange(len(targets)), histories.items[targets])), shape
    )
    return before, following


def recency_weights(
    histories: Histories, *, num_items: int, decay: float = 1.0
) -> scipy.sparse.csr_array:
    """Users by items: `decay ** s` for an item that `s` others followed, else nothing."""
    values = np.float32(decay) ** histories.places_from_end.astype(np.float32)
    shape = (len(histories.users), num_items)
    return scipy.sparse.csr_array((values, histories.items, histories.offsets), shape)


def regularized_inverse(gram: ItemMatrix, penalty: float) -> Float32[np.ndarray, "n n"]:
    """The inverse of a Gram matrix plus `penalty` on its diagonal, by Cholesky, in float32.

    Raises:
        ValueError: a penalty that is not positive.
    """
    if not penalty > 0:
        raise ValueError(f"penalty={penalty} must be positive")
    dense = gram.toarray(order="F").astype(np.float32, copy=False)
    dense[np.diag_indices_from(dense)] += np.float32(penalty)
    factorize, invert = get_lapack_funcs(("potrf", "potri"), (dense,))
    factor, failed = factorize(dense, lower=1, overwrite_a=1)
    inverse, failed_too = invert(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise ValueError(f"penalty={penalty} is too small: the system is singular in float32")
    # LAPACK fills one triangle; the other still holds what was given.
    for column in range(len(inverse)):
        inverse[column, column + 1 :] = inverse[column + 1 :, column]
    return inverse.T  # the same, row by row
