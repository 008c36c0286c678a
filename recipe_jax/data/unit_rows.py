"""Rows of length one: of such vectors an inner product is a cosine."""

import numpy as np
from jaxtyping import Float


def unit_rows(rows: Float[np.ndarray, "n d"], *, least: float = 0.0) -> Float[np.ndarray, "n d"]:
    """Rows divided by their lengths, of the same dtype.

    Args:
        rows: vectors.
        least: rows of at most this length say nothing, and become zeros.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > least, lengths, np.inf)
