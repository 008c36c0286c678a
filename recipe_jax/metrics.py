"""Metrics in plain numpy: rankings, proportions, sampled distributions, sets, and their intervals.

Every metric returns one value per example; the caller averages, or asks for the mean with its
interval.  Nothing here knows a model or a file.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def ranks_of_targets(
    scores: Float[np.ndarray, "n v"],
    targets: Int[np.ndarray, "n"],
    excluded: Bool[np.ndarray, "n v"],
) -> Float64[np.ndarray, "n"]:
    """The rank of each target among the candidates of its row; 1 is best.

    Ties get the mid-rank, `1 + better + tied / 2`: the expected rank when equal scores are ordered
    at random.  An item's place in the vocabulary (often sorted by popularity) never breaks a tie,
    and a scorer that is constant ranks every target in the middle.

    Args:
        scores: higher is better; infinities are allowed.
        targets: the column of the true item.
        excluded: columns that do not compete, such as the items already given.

    Raises:
        ValueError: a NaN score, or a target outside the columns or excluded.
    """
    n, v = scores.shape
    if ((targets < 0) | (targets >= v)).any():
        raise ValueError(f"targets must lie in [0, {v}), got {targets.min()} to {targets.max()}")
    rows = np.arange(n)
    if excluded[rows, targets].any():
        row = int(np.argmax(excluded[rows, targets]))
        raise ValueError(f"targets[{row}]={targets[row]} is excluded from its own ranking")
    if np.isnan(scores).any():
        row = int(np.argmax(np.isnan(scores).any(axis=1)))
        raise ValueError(f"scores[{row}] contains NaN, which has no rank")
    own = scores[rows, targets][:, None]
    better = np.sum((scores > own) & ~excluded, axis=1)
    tied = np.sum((scores == own) & ~excluded, axis=1) - 1
    return 1.0 + better + tied / 2


def recall_at_k(ranks: Float[np.ndarray, "n"], k: int) -> Float64[np.ndarray, "n"]:
    """1 where the single target is among the first `k`, else 0."""
    return (ranks <= k).astype(np.float64)


def reciprocal_rank(ranks: Float[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """`1 / rank`; its mean is the MRR."""
    return 1.0 / ranks.astype(np.float64)


def ndcg_at_k(ranks: Float[np.ndarray, "n"], k: int) -> Float64[np.ndarray, "n"]:
    """Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002) with one relevant item.

    The ideal gain is 1, so this is `1 / log2(1 + rank)` within the first `k`, else 0.
    """
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks.astype(np.float64)), 0.0)


def student_t_interval(values: Num[np.ndarray, "n"], *, level: float = 0.95) -> Interval:
    """The mean of independent values (seeds, recipes) with Student's t interval.

    Raises:
        ValueError: fewer than two values, which have no spread.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 values, got {n}")
    mean = float(np.mean(values, dtype=np.float64))
    error = float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(n)
    half = student_t_quantile(n - 1, level=level) * error
    return Interval(mean, mean - half, mean + half)


def student_t_quantile(degrees: int, *, level: float = 0.95) -> float:
    """The `t` with `P(|T| <= t) = level` for Student's t with `degrees` of freedom.

    Bisects the finite series of Abramowitz & Stegun (1964), 26.7.3 and 26.7.4, in the angle
    `arctan(t / sqrt(degrees))`.

    Raises:
        ValueError: no degrees of freedom, or a level outside (0, 1).
    """
    if degrees < 1 or not 0 < level < 1:
        raise ValueError(f"need degrees >= 1 and 0 < level < 1, got {degrees=} {level=}")
    # Odd degrees sum cos, 2/3 cos^3, ...; even degrees sum 1, 1/2 cos^2, ...
    odd = degrees % 2
    numerators = np.arange(1 + odd, degrees - 2, 2, dtype=np.float64)
    coefficients = np.cumprod(np.concatenate([[1.0], numerators / (numerators + 1)]))
    powers = odd + 2 * np.arange(len(coefficients))

    def inside(angle: float) -> float:
        series = math.sin(angle) * float(np.sum(coefficients * math.cos(angle) ** powers))
        if not odd:
            return series
        return 2 / math.pi * (angle + (series if degrees > 1 else 0.0))

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def bootstrap_interval(
    values: Num[np.ndarray, "n"],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The mean with its percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: no values.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least 1 value, got 0")
    drawn = (rng.integers(len(values), size=len(values)) for _ in range(resamples))
    means = np.array([np.mean(values[rows], dtype=np.float64) for rows in drawn])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(values, dtype=np.float64)), float(low), float(high))


def centred_log_ratios(
    proportions: Float[np.ndarray, "*batch m"], present: Bool[np.ndarray, "*batch m"]
) -> Float64[np.ndarray, "*batch m"]:
    """Logarithms minus their mean over the members present (Aitchison 1982); 0 elsewhere.

    The scale cancels: grams give the same result as proportions.

    Raises:
        ValueError: a member present whose proportion is not a positive finite number.
    """
    inside = np.where(present, proportions, 1.0)
    if not (np.isfinite(inside) & (inside > 0)).all():
        worst = inside[~(np.isfinite(inside) & (inside > 0))][0]
        raise ValueError(f"proportions of members present must be positive and finite, got {worst}")
    logs = np.log(inside.astype(np.float64))
    counts = np.maximum(present.sum(axis=-1, keepdims=True), 1)
    return np.where(present, logs - logs.sum(axis=-1, keepdims=True) / counts, 0.0)


def log_ratio_error(
    predicted: Float[np.ndarray, "n m"],
    actual: Float[np.ndarray, "n m"],
    present: Bool[np.ndarray, "n m"],
) -> Float64[np.ndarray, "n"]:
    """Per recipe the root mean square difference of centred log-proportions (log units)."""
    difference = centred_log_ratios(predicted, present) - centred_log_ratios(actual, present)
    return np.sqrt(mean_over_members(difference**2, present))


def proportion_error(
    predicted: Float[np.ndarray, "n m"],
    actual: Float[np.ndarray, "n m"],
    present: Bool[np.ndarray, "n m"],
) -> Float64[np.ndarray, "n"]:
    """Per recipe the mean absolute difference of proportions; both rows should sum to 1."""
    return mean_over_members(np.abs(predicted.astype(np.float64) - actual), present)


def mean_over_members(
    values: Num[np.ndarray, "*batch m"], present: Bool[np.ndarray, "*batch m"]
) -> Float64[np.ndarray, "*batch"]:
    """The mean over the members present; what padding holds never counts.

    Raises:
        ValueError: a row with no member.
    """
    counts = present.sum(axis=-1)
    if not counts.all():
        raise ValueError("every row needs at least one member present")
    return np.where(present, values, 0.0).sum(axis=-1, dtype=np.float64) / counts


def crps_from_samples(
    samples: Float[np.ndarray, "samples *shape"], observed: Float[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Continuous ranked probability score (Gneiting & Raftery 2007, eq. 21), in the data's units.

    `E|X - y| - E|X - X'| / 2`, the second mean over pairs of *different* samples, so the estimate
    is unbiased ("fair") for any number of samples; a single one may be slightly negative.

    Raises:
        ValueError: fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        raise ValueError(f"CRPS needs at least 2 samples, got {count}")
    ordered = np.sort(samples.astype(np.float64), axis=0)
    # The sum of |x_i - x_j| over pairs is a weighted sum of the order statistics.
    weights = 2.0 * np.arange(count) - (count - 1)
    spread = np.tensordot(weights, ordered, axes=1) / (count * (count - 1))
    return np.mean(np.abs(ordered - observed), axis=0) - spread


def central_interval(
    samples: Float[np.ndarray, "samples *shape"], level: float
) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
    """Bounds of the central `level` interval of samples.

    Quantiles sit at rank `p (samples + 1)` (Weibull), so that one more draw from the same
    distribution falls inside with probability `level`, however few the samples.
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(samples.astype(np.float64), tails, axis=0, method="weibull")
    return low, high


def interval_coverage(
    low: Float[np.ndarray, "*shape"],
    high: Float[np.ndarray, "*shape"],
    observed: Float[np.ndarray, "*shape"],
) -> Float64[np.ndarray, "*shape"]:
    """1 where the closed interval holds the observation, else 0."""
    return ((low <= observed) & (observed <= high)).astype(np.float64)


def pinball_loss(
    quantile: Float[np.ndarray, "*shape"], observed: Float[np.ndarray, "*shape"], level: float
) -> Float64[np.ndarray, "*shape"]:
    """Quantile loss (Koenker & Bassett 1978): least where `quantile` is the `level` quantile."""
    error = observed.astype(np.float64) - quantile
    return np.maximum(level * error, (level - 1) * error)


def wasserstein_distance(first: Num[np.ndarray, "n"], second: Num[np.ndarray, "other_n"]) -> float:
    """Wasserstein-1 distance between two samples on the line: the area between their CDFs.

    Raises:
        ValueError: an empty sample.
    """
    if not len(first) or not len(second):
        raise ValueError(f"both samples need a value, got {len(first)} and {len(second)}")
    points = np.sort(np.concatenate([first, second]).astype(np.float64))
    cdfs = [
        np.searchsorted(np.sort(sample), points[:-1], side="right") / len(sample)
        for sample in (first, second)
    ]
    return float(np.sum(np.abs(cdfs[0] - cdfs[1]) * np.diff(points)))


def highest_jaccard(
    sets: Bool[np.ndarray, "n v"], others: Bool[np.ndarray, "other_n v"], *, chunk: int = 4096
) -> Float64[np.ndarray, "n"]:
    """For each set its highest Jaccard similarity to any of `others`; two empty sets have 1.

    Dense products over chunks of `others`: 1,000 sets against 50,000 of 507 foods take about two
    seconds and 200 megabytes.
    """
    bits = sets.astype(np.float32)
    sizes = bits.sum(axis=1)
    highest = np.zeros(len(sets))
    for start in range(0, len(others), chunk):
        block = others[start : start + chunk].astype(np.float32)
        shared = bits @ block.T
        union = sizes[:, None] + block.sum(axis=1)[None, :] - shared
        # Divided in float64: float32 would put 9 shared of 10 below a threshold of 0.9.
        similarity = np.where(union > 0, shared / np.maximum(union, 1, dtype=np.float64), 1.0)
        highest = np.maximum(highest, similarity.max(axis=1))
    return highest
