"""An id of its own for every item: the last level assigned under a constraint.

Items that are nearly the same share their nearest codes however good the codebooks are.  Here items
that share all codes but the last are given different last codes, such that they lie as near to
their codewords as they can.  It is an option: `encode` takes the nearest, whoever else does.
"""

import numpy as np
from jaxtyping import Float, Int, Int32
from scipy.optimize import linear_sum_assignment

from recipe_jax.quantizers.quantizer import ModelQuantizer
from recipe_jax.quantizers.statistics import prefix_groups


def encode_distinct(
    quantizer: ModelQuantizer,
    vectors: Float[np.ndarray, "n d"],
    *,
    taken: Int[np.ndarray, "m q"] | None = None,
) -> Int32[np.ndarray, "n q"]:
    """The codes of a whole catalogue, no two rows with the same while codes suffice.

    Zheng et al. 2024 (LC-Rec, arXiv:2311.09049) spread items evenly over the last
    level's codes where they collide.  There an entropic relaxation is solved over all of them; here
    the problem itself, within each prefix: of all ways to give its items different codes, the one
    of least total squared distance (Kuhn 1955; Crouse 2016, doi:10.1109/TAES.2016.140952).
    Prefixes without a collision keep the nearest codes.

    Args:
        quantizer: gives codes and what its last level is given.
        vectors: the whole catalogue: codes depend on all of it.
        taken: codes of items that were there before these, which keep them.

    Returns:
        The codes.  Of a prefix with more items than codes some items still share theirs.

    Raises:
        ValueError: as `ModelQuantizer.encode` does.
    """
    codes, rest = quantizer.encode_with_rest(vectors)
    codebook = quantizer.last_codebook
    before = codes[:0] if taken is None else taken
    for rows in _colliding_prefixes(np.concatenate([before, codes]).astype(np.int32)):
        held, rows = rows[rows < len(before)], rows[rows >= len(before)] - len(before)
        free = np.setdiff1d(np.arange(len(codebook)), before[held, -1])
        left = rest[rows, None].astype(np.float64) - codebook[None, free]
        chosen, last = linear_sum_assignment(np.square(left).sum(axis=-1))
        codes[rows[chosen], -1] = free[last]
    return codes


def _colliding_prefixes(codes: Int[np.ndarray, "n q"]) -> list[Int[np.ndarray, "m"]]:
    """The rows of each prefix (all codes but the last) of which two share the last as well."""
    groups = prefix_groups(codes)
    prefix = groups[:, -2] if codes.shape[1] > 1 else np.zeros(len(codes), np.int64)
    shared = np.bincount(groups[:, -1])[groups[:, -1]] > 1
    order = np.argsort(prefix, kind="stable")
    starts = np.flatnonzero(np.diff(prefix[order], prepend=-1))
    colliding = set(prefix[shared].tolist())
    return [rows for rows in np.split(order, starts[1:]) if prefix[rows[0]] in colliding]
