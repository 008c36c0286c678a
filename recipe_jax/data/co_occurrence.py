"""Vectors of items from who took what: items that people take one after the other lie close."""

import numpy as np
import scipy.sparse
from jaxtyping import Float32
from sklearn.utils.extmath import randomized_svd

from recipe_jax.data.interactions import Histories
from recipe_jax.data.unit_rows import unit_rows


def co_occurrence_vectors(
    histories: Histories, *, num_items: int, dim: int, decay: float = 0.7, seed: int = 0
) -> Float32[np.ndarray, "n d"]:
    """Singular directions of the items' co-occurrence (Levy and Goldberg 2014, section 3.3).

    Two items of a history count `decay ** (s - 1)` where one stands `s` places behind the other,
    and 1 where histories have no order.  Counts are divided by the square root of both items'
    totals, as in a normalized graph Laplacian, where the paper takes the logarithm; of the `dim`
    largest singular values the square roots scale the directions, and rows have length one.

    Args:
        histories: to learn from.
        num_items: of the catalogue; one of no history gets a row of zeros.
        dim: width, below `num_items`.
        decay: from 0 to 1.
        seed: of the randomized decomposition.

    Raises:
        ValueError: a width or a decay out of range, or histories in which no two items meet.
    """
    if not 1 <= dim < num_items or not 0 < decay <= 1:
        raise ValueError(
            f"dim={dim} must be from 1 to {num_items - 1}, below the number of items, and "
            f"decay={decay} above 0 and at most 1"
        )
    counts = _counts(histories, num_items, decay)
    if not counts.nnz:
        raise ValueError("no two items stand in one history: nothing can be learned of them")
    scale = 1.0 / np.sqrt(np.maximum(counts.sum(axis=1), 1e-12))
    scaled = scipy.sparse.dia_array((scale[None], [0]), shape=counts.shape)
    left, values, _ = randomized_svd(scaled @ counts @ scaled, dim, random_state=seed)
    return unit_rows(left * np.sqrt(values), least=1e-6).astype(np.float32)


def _counts(histories: Histories, num_items: int, decay: float) -> scipy.sparse.csr_array:
    """Symmetric counts of pairs, a history's items with themselves left out."""
    users = np.repeat(np.arange(len(histories.users)), histories.lengths)
    total: scipy.sparse.csr_array = scipy.sparse.csr_array((num_items, num_items), dtype=float)
    for steps in range(1, int(histories.lengths.max(initial=1))):
        together = np.flatnonzero(users[:-steps] == users[steps:])
        first, second = histories.items[together], histories.items[together + steps]
        different = first != second
        weight = decay ** (steps - 1) if histories.ordered else 1.0
        if weight < 1e-3:
            break
        values = np.full(int(different.sum()), weight)
        pairs = (values, (first[different], second[different]))
        total = total + scipy.sparse.csr_array(pairs, shape=total.shape)
    return scipy.sparse.csr_array(total + total.T)
