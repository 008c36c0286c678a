"""Two rankings as one: a share of the places is reserved for the second.

So items that a recommender has never learned of stand a chance beside those that it has (Rajput et
al. 2023, arXiv:2305.05065, section 4.3, where the share is an upper bound, epsilon).
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Int64

_ROUNDING = 1e-9
"""A tenth of thirty is three, whatever floating point makes of it."""


def reserved_places(num_places: int, share: float) -> Bool[np.ndarray, "k"]:
    """Which places are reserved: of the first `p`, for every `p`, `share * p` rounded down.

    They lie as evenly as they can, none before it is due, and which they are depends on nothing
    but the share: the first five of ten places are those of five.

    Args:
        num_places: how many places there are.
        share: from 0, none, to 1, all.

    Raises:
        ValueError: another share.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share={share} must be from 0 to 1")
    due = np.floor(share * np.arange(num_places + 1) + _ROUNDING)
    return np.diff(due) > 0


def mix_in(
    ranked: Int[np.ndarray, "u m"],
    others: Int[np.ndarray, "u o"],
    *,
    share: float,
    num_places: int,
) -> Int32[np.ndarray, "u k"]:
    """One list of distinct items for each row; `others` are the first to get reserved places.

    A place goes to the best item of its ranking that has none yet; where that ranking has no more,
    to the best of the other.  An item of `others` may win a place by `ranked`, too.

    Args:
        ranked: items, best first; -1 is no item.
        others: items, best first, for the reserved places; -1 is no item.
        share: of the places that are reserved, as `reserved_places` has it.
        num_places: how many items a list has; -1 where both rankings have no more.

    Raises:
        ValueError: a share that is none.
    """
    is_reserved = reserved_places(num_places, share)
    found = np.full((len(ranked), num_places), -1, np.int32)
    for row, pair in enumerate(zip(ranked.tolist(), others.tolist(), strict=True)):
        sources = [iter(source) for source in pair]
        placed = {-1}
        for place, reserved in enumerate(is_reserved.tolist()):
            turns = sources[::-1] if reserved else sources
            item = next((item for source in turns for item in source if item not in placed), -1)
            placed.add(item)
            found[row, place] = item
    return found


def top_items(
    scores: Float[np.ndarray, "u n"], may_win: Bool[np.ndarray, "u n"], count: int
) -> Int64[np.ndarray, "u k"]:
    """The items of the highest scores, best first; -1 where a row has no more that may win.

    Of equal scores the lower index is first: indices are to be random.
    """
    kept = np.where(may_win, scores, -np.inf)
    num_items = scores.shape[1]
    first = max(num_items - count, 0)
    least = np.partition(kept, first, axis=1)[:, first]
    found = np.full((len(scores), count), -1, np.int64)
    for row, values in enumerate(kept):
        items = np.flatnonzero((values >= least[row]) & may_win[row])
        items = items[np.argsort(-values[items], kind="stable")[:count]]
        found[row, : len(items)] = items
    return found
