"""Amounts: given a recipe's foods, say each one's share of the weight.

The protocol of every amount number of this project.  Recipes: those of the fixed split in which
every mapped line is weighed and at least 3 foods remain; amounts of one food are summed.  Food sets
seen in training are kept: the same set in other proportions is a fair question.  Every recipe
counts the same, whatever its length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Num

from recipe_jax.data.batching import pad_recipes
from recipe_jax.data.files import DataError
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.metrics import (
    bootstrap_interval,
    central_interval,
    centred_log_ratios,
    crps_from_samples,
    interval_coverage,
    log_ratio_error,
    mean_over_members,
    pinball_loss,
    proportion_error,
)

Foods: TypeAlias = Int32[np.ndarray, "b m"]
Lengths: TypeAlias = Int32[np.ndarray, "b"]
ProportionsFn: TypeAlias = Callable[[Foods, Lengths], Float[np.ndarray, "b m"]]
"""Foods (padded with the vocabulary's size) and their counts to proportions: zero at padding."""
SamplesFn: TypeAlias = Callable[[Foods, Lengths], Float[np.ndarray, "samples b m"]]
"""The same, to draws from the predicted distribution of proportions."""

SUM_TOLERANCE = 1e-3
"""How far a predicted recipe's proportions may sum from 1, in float32 and bfloat16 models alike."""


class AmountQueries(NamedTuple):
    """Recipes whose foods are given and whose proportions are asked for.

    Attributes:
        foods: index into the vocabulary of `v` foods; `v` at padding.
        lengths: members per recipe; members come first, then padding.
        proportions: each member's true share of the recipe's grams; zero at padding.
    """

    foods: Int32[np.ndarray, "n m"]
    lengths: Int32[np.ndarray, "n"]
    proportions: Float64[np.ndarray, "n m"]

    @property
    def present(self) -> Bool[np.ndarray, "n m"]:
        """Where a row holds a food rather than padding."""
        return np.arange(self.foods.shape[1]) < self.lengths[:, None]


def amount_recipes(sets: RecipeSets, split: str) -> RecipeSets:
    """The fully weighed recipes of `split` that amounts are fitted or scored on."""
    return sets.select_split(split).select_weighed()


def amount_queries(recipes: RecipeSets, *, num_foods: int) -> AmountQueries:
    """Fully weighed recipes as padded rows.

    Raises:
        DataError: no recipe, or one that is not fully weighed.
    """
    if not len(recipes):
        raise DataError("amounts: no recipe is fully weighed; is the prepared folder complete?")
    size = int(recipes.sizes.max())
    batch = pad_recipes(recipes, range(len(recipes)), num_foods=num_foods, size=size)
    totals = batch.grams.sum(axis=1, dtype=np.float64)
    if not totals.all():
        worst = recipes.recipe_ids[int(np.argmin(totals))]
        raise DataError(f"amounts: recipe {worst} has a food without a positive weight")
    return AmountQueries(batch.foods, batch.lengths, batch.grams / totals[:, None])


def evaluate_proportions(
    predict: ProportionsFn, queries: AmountQueries, *, batch_size: int = 256
) -> dict[str, Any]:
    """Centred log-ratio error and mean absolute error of proportions, with 95 % intervals.

    Raises:
        ValueError: proportions that do not sum to 1, or weight on padding.
    """
    present = queries.present
    parts = []
    for rows in _slices(len(queries.lengths), batch_size):
        predicted = np.asarray(predict(queries.foods[rows], queries.lengths[rows]))
        _check_proportions(predicted, present[rows])
        parts.append(predicted)
    predicted = np.concatenate(parts)
    return _report(
        {
            "log_ratio_error": log_ratio_error(predicted, queries.proportions, present),
            "proportion_error": proportion_error(predicted, queries.proportions, present),
        }
    )


def evaluate_samples(
    sample: SamplesFn, queries: AmountQueries, *, level: float = 0.8, batch_size: int = 128
) -> dict[str, Any]:
    """CRPS of samples, and the coverage of their central intervals, with 95 % intervals.

    `crps` is of proportions, `crps_log_ratio` of centred log-proportions, where small foods count
    as much as large ones.  `coverage` is the share of a recipe's foods whose proportion the
    `level` interval holds, `pinball_loss` the mean loss of that interval's two bounds; both
    average over recipes.

    Raises:
        ValueError: proportions that do not sum to 1, a member sampled at 0, or weight on padding.
    """
    present = queries.present
    parts = []
    for rows in _slices(len(queries.lengths), batch_size):
        samples = np.asarray(sample(queries.foods[rows], queries.lengths[rows]))
        _check_proportions(samples, present[rows])
        parts.append(_score_samples(samples, queries.proportions[rows], present[rows], level))
    return _report({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _score_samples(
    samples: Float[np.ndarray, "samples b m"],
    actual: Float[np.ndarray, "b m"],
    present: Bool[np.ndarray, "b m"],
    level: float,
) -> dict[str, Float64[np.ndarray, "b"]]:
    everywhere = np.broadcast_to(present, samples.shape)
    low, high = central_interval(samples, level)
    bounds = pinball_loss(low, actual, (1 - level) / 2) + pinball_loss(
        high, actual, (1 + level) / 2
    )
    ratios = centred_log_ratios(samples, everywhere), centred_log_ratios(actual, present)
    values = {
        "crps": crps_from_samples(samples, actual),
        "crps_log_ratio": crps_from_samples(*ratios),
        "coverage": interval_coverage(low, high, actual),
        "pinball_loss": bounds / 2,
    }
    return {name: mean_over_members(value, present) for name, value in values.items()}


def _check_proportions(
    proportions: Num[np.ndarray, "*samples b m"], present: Bool[np.ndarray, "b m"]
) -> None:
    if proportions.shape[-2:] != present.shape:
        raise ValueError(f"proportions have shape {proportions.shape}, must end in {present.shape}")
    on_padding = np.abs(np.where(present, 0.0, proportions)).max(initial=0.0)
    if on_padding != 0:
        raise ValueError(f"padding was given a proportion of {on_padding}, must be 0")
    totals = proportions.astype(np.float64).sum(axis=-1)
    furthest = totals.flat[np.abs(totals - 1).argmax()]
    if not abs(furthest - 1) <= SUM_TOLERANCE:
        raise ValueError(f"proportions of a recipe sum to {furthest}, must be 1")


def _slices(count: int, batch_size: int) -> list[slice]:
    return [slice(start, start + batch_size) for start in range(0, count, batch_size)]


def _report(values: dict[str, Float64[np.ndarray, "n"]]) -> dict[str, Any]:
    report: dict[str, Any] = {"n": len(next(iter(values.values())))}
    for name, value in values.items():
        mean, low, high = bootstrap_interval(value, rng=np.random.default_rng(0))
        report |= {name: mean, f"{name}_interval": [low, high]}
    return report
