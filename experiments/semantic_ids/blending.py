"""Several recommenders as one: a weighted sum of their scores, brought to one scale."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Float32

from experiments.semantic_ids.protocol import Scorer, item_bits
from recipe_jax.data.interactions import Queries
from recipe_jax.metrics import ndcg_at_k, ranks_of_targets

Question = TypeVar("Question")
"""What scorers are asked: histories, or texts."""

STEPS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Weights that are tried for one recommender beside the others."""


def standardized(scores: Float[np.ndarray, "u n"]) -> Float32[np.ndarray, "u n"]:
    """Each user's scores with mean 0 and deviation 1; equal scores become zeros."""
    centred = scores.astype(np.float32) - scores.mean(axis=1, keepdims=True, dtype=np.float32)
    deviation = np.sqrt(np.mean(centred**2, axis=1, keepdims=True))
    return centred / np.where(deviation > 0, deviation, 1.0)


def blend(
    scorers: Mapping[str, Callable[[Question], Float[np.ndarray, "u n"]]],
    weights: Mapping[str, float],
) -> Callable[[Question], Float32[np.ndarray, "u n"]]:
    """A weighted sum of standardized scores.

    Args:
        scorers: by name.
        weights: of the same names; a scorer of weight 0 is not asked.

    Raises:
        ValueError: a weight without a scorer.
    """
    missing = sorted(name for name in weights if name not in scorers)
    if missing:
        raise ValueError(f"the blend weighs {missing[0]!r}, must be among {sorted(scorers)}")

    def score(asked: Question) -> Float32[np.ndarray, "u n"]:
        parts = (
            weight * standardized(scorers[name](asked))
            for name, weight in weights.items()
            if weight
        )
        return sum(parts, start=np.zeros((), np.float32))

    return score


def mean_scorer(scorers: Sequence[Scorer]) -> Scorer:
    """The mean of standardized scores, such as of one model trained from several seeds."""
    return blend(
        {str(i): scorer for i, scorer in enumerate(scorers)},
        {str(i): 1.0 / len(scorers) for i in range(len(scorers))},
    )


def choose_weights(
    scorers: Mapping[str, Scorer], queries: Queries, *, num_items: int, rounds: int = 3
) -> tuple[dict[str, float], float]:
    """Weights by coordinate ascent on NDCG at 10, from the first scorer alone.

    All scores are held at once: four bytes for each scorer, user and item.

    Args:
        scorers: by name; the first one's weight stays 1.
        queries: of validation.
        num_items: of the catalogue.
        rounds: how often each weight is looked at again.

    Returns:
        The weights and the NDCG at 10 that they reach on these queries.
    """
    scores = {name: standardized(score(queries.histories)) for name, score in scorers.items()}
    excluded = item_bits(queries.histories, num_items)

    first = next(iter(scorers))

    def reached(weights: Mapping[str, float]) -> float:
        total = np.zeros_like(scores[first])
        for name, weight in weights.items():
            total += weight * scores[name]
        return float(ndcg_at_k(ranks_of_targets(total, queries.targets, excluded), 10).mean())

    return ascend(list(scorers), reached, rounds=rounds)


def ascend(
    names: Sequence[str], reached: Callable[[Mapping[str, float]], float], *, rounds: int = 3
) -> tuple[dict[str, float], float]:
    """Coordinate ascent over weights, each of `STEPS`, from the first name alone.

    Args:
        names: what is weighed; the first one's weight stays 1.
        reached: by weights of these names; higher is better.
        rounds: how often each weight is looked at again.

    Returns:
        The weights and what they reach; of equal ones the least.
    """
    first, *others = names
    weights = {first: 1.0} | dict.fromkeys(others, 0.0)
    best = reached(weights)
    for _ in range(rounds):
        before = best
        for name in others:
            tried = {step: reached(weights | {name: step}) for step in STEPS}
            step = max(tried, key=lambda step: (tried[step], -step))
            if tried[step] > best:
                weights, best = weights | {name: step}, tried[step]
        if best == before:
            break
    return weights, best
