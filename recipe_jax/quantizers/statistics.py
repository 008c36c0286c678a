"""What a quantizer makes of a whole catalogue: how codes are used, and how many items share theirs.

Every function takes the codes of all items.  Of a batch these numbers mean little: a thousand items
cannot use four thousand codes, and two items that share their codes are seldom in one batch.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int, Int64


class CodeStatistics(NamedTuple):
    """Of the codes of a catalogue; one number for each level where there are several.

    Attributes:
        usage: share of the level's codes that some item has.
        perplexity: of the level's codes: how many equally likely ones would be as uncertain.
        next_code_nats: entropy of the level's code given those before it, in nats; they sum to the
            entropy of a whole id.
        collision_rate: 1 - distinct ids / items.
        largest_collision: items of the id that most items have.
    """

    usage: Float64[np.ndarray, "q"]
    perplexity: Float64[np.ndarray, "q"]
    next_code_nats: Float64[np.ndarray, "q"]
    collision_rate: float
    largest_collision: int


def code_statistics(codes: Int[np.ndarray, "n q"], num_codes: int) -> CodeStatistics:
    """Statistics of the codes of all items.

    Args:
        codes: of every item of the catalogue.
        num_codes: of each level.

    Raises:
        ValueError: no item, or a code that does not exist.
    """
    counts = code_counts(codes, num_codes)
    entropies = np.array([_entropy(level) for level in counts])
    prefixes = prefix_groups(codes)
    joint = np.array([0.0, *(_entropy(np.bincount(prefix)) for prefix in prefixes.T)])
    sizes = np.bincount(prefixes[:, -1])
    return CodeStatistics(
        usage=(counts > 0).mean(axis=1),
        perplexity=np.exp(entropies),
        next_code_nats=np.maximum(np.diff(joint), 0.0),
        collision_rate=1.0 - len(sizes) / len(codes),
        largest_collision=int(sizes.max()),
    )


def code_counts(codes: Int[np.ndarray, "n q"], num_codes: int) -> Int64[np.ndarray, "q c"]:
    """How many items have each code of each level.

    Raises:
        ValueError: no item, or a code that does not exist.
    """
    if not codes.size:
        raise ValueError(f"codes of shape {codes.shape} hold no item: a catalogue is needed")
    if codes.min() < 0 or codes.max() >= num_codes:
        raise ValueError(
            f"codes from {codes.min()} to {codes.max()} must be from 0 to {num_codes - 1}"
        )
    return np.stack([np.bincount(level, minlength=num_codes) for level in codes.T])


def prefix_groups(codes: Int[np.ndarray, "n q"]) -> Int64[np.ndarray, "n q"]:
    """For each level a number of each item's prefix up to it: equal where the prefixes are."""
    groups = np.zeros(len(codes), np.int64)
    columns = []
    for level in codes.T:
        pairs = np.stack([groups, level], axis=1)
        groups = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        columns.append(groups)
    return np.stack(columns, axis=1)


def reconstruction_error(
    vectors: Float[np.ndarray, "n d"], decoded: Float[np.ndarray, "n d"]
) -> float:
    """Share of the variance that decoding does not bring back, `sum |x - x'|^2 / sum |x - mean|^2`.

    0 is perfect; 1 is no better than the mean of the catalogue.

    Raises:
        ValueError: all rows are the same.
    """
    wide = vectors.astype(np.float64)
    total = np.square(wide - wide.mean(axis=0)).sum()
    if not total > 0:
        raise ValueError(f"all {len(vectors)} rows are the same: nothing to reconstruct")
    return float(np.square(wide - decoded).sum() / total)


def named_statistics(statistics: CodeStatistics) -> dict[str, float]:
    """Flat names to numbers, as `metrics.jsonl` holds them: `usage_0`, `usage_1`, ..."""
    named: dict[str, float] = {}
    for name, value in statistics._asdict().items():
        if isinstance(value, np.ndarray):
            named |= {f"{name}_{level}": float(number) for level, number in enumerate(value)}
        else:
            named[name] = float(value)
    return named


def _entropy(counts: Int[np.ndarray, "c"]) -> float:
    """In nats, of the shares that the counts are."""
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))
