"""How recommenders are compared: one item of each user is left out and every item is ranked.

All items compete but those of the user's history; none are sampled.  Equal scores share their mean
rank, so that neither an item's index nor a constant score wins anything.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from recipe_jax.data.interactions import Histories, Queries
from recipe_jax.metrics import ndcg_at_k, ranks_of_targets, recall_at_k, student_t_interval

Scorer: TypeAlias = Callable[[Histories], Float[np.ndarray, "u n"]]
"""Histories to a score of every item for each user; higher is better."""

CUTOFFS = (5, 10)


def target_ranks(
    score: Scorer, queries: Queries, *, num_items: int, users_at_once: int = 512
) -> Float64[np.ndarray, "u"]:
    """The rank of each query's target among all items that its history does not hold; 1 is best.

    Args:
        score: scores every item for each user.
        queries: what is asked.
        num_items: of the catalogue.
        users_at_once: memory grows with it, by some ten bytes an item.

    Raises:
        ValueError: scores of another shape than users by items, or NaN.
    """
    ranks = []
    for start in range(0, len(queries.targets), users_at_once):
        histories = queries.histories.rows(start, start + users_at_once)
        scores = np.asarray(score(histories))
        expected = (len(histories.users), num_items)
        if scores.shape != expected:
            raise ValueError(f"the scorer returned shape {scores.shape}, must be {expected}")
        targets = queries.targets[start : start + users_at_once]
        ranks.append(ranks_of_targets(scores, targets, item_bits(histories, num_items)))
    return np.concatenate(ranks)


def ranking_metrics(ranks: Float64[np.ndarray, "u"]) -> dict[str, Any]:
    """Recall and NDCG at 5 and 10, each with its 95 % t interval over users, and `n`."""
    report: dict[str, Any] = {"n": len(ranks)}
    for name, values in _values(ranks).items():
        mean, low, high = student_t_interval(values)
        report |= {name: mean, f"{name}_interval": [low, high]}
    return report


def metrics_of_seeds(ranks: Sequence[Float64[np.ndarray, "u"]]) -> dict[str, Any]:
    """As `ranking_metrics`, of trainings that differ in their seed.

    A metric is the mean over seeds, its interval that of each user's mean over seeds: it says how
    far other users would move it.  `…_of_seeds` holds the value of each training.

    Args:
        ranks: of each training.
    """
    tables = [_values(each) for each in ranks]
    report: dict[str, Any] = {"n": len(ranks[0]), "num_seeds": len(ranks)}
    for name in tables[0]:
        values = np.stack([table[name] for table in tables])
        mean, low, high = student_t_interval(values.mean(axis=0))
        report |= {name: mean, f"{name}_interval": [low, high]}
        if len(ranks) > 1:
            report[f"{name}_of_seeds"] = values.mean(axis=1).tolist()
    return report


def evaluate_ranking(score: Scorer, queries: Queries, *, num_items: int) -> dict[str, Any]:
    """`ranking_metrics` of a scorer."""
    return ranking_metrics(target_ranks(score, queries, num_items=num_items))


def item_bits(histories: Histories, num_items: int) -> Bool[np.ndarray, "u n"]:
    """Whether each user's history holds each item."""
    bits = np.zeros((len(histories.users), num_items), bool)
    bits[np.repeat(np.arange(len(bits)), histories.lengths), histories.items] = True
    return bits


def _values(ranks: Float64[np.ndarray, "u"]) -> dict[str, Float64[np.ndarray, "u"]]:
    return {
        f"{name}_at_{k}": metric(ranks, k)
        for k in CUTOFFS
        for name, metric in (("recall", recall_at_k), ("ndcg", ndcg_at_k))
    }
