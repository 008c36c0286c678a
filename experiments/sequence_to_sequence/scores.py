"""Exact match with its interval."""

import math
from collections.abc import Sequence
from typing import Any

from recipe_jax.metrics import Interval

_NORMAL_QUANTILE = 1.959963984540054
"""Of 97.5 %."""


def wilson_interval(successes: int, n: int) -> Interval:
    """A share with its 95 % score interval (Wilson 1927); sound for shares of 0 and of 1 as well.

    Raises:
        ValueError: nothing was tried.
    """
    if n < 1:
        raise ValueError(f"an interval needs at least 1 trial, got {n}")
    share, z2 = successes / n, _NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * share * (1 - share) / n + z2**2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def exact_match(written: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """The share of targets written without any difference: `exact_match, …_interval, n`."""
    right = sum(text == target for text, target in zip(written, targets, strict=True))
    share, low, high = wilson_interval(right, len(targets))
    return {"exact_match": share, "exact_match_interval": [low, high], "n": len(targets)}
