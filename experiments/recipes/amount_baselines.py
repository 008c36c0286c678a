"""Baselines of amounts, fitted on fully weighed training recipes alone.

Each value's `proportions` is an `amounts_protocol.ProportionsFn`.
"""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Float64, Int64

from experiments.recipes.amounts_protocol import Foods, Lengths
from experiments.recipes.completion_baselines import (
    NearestRecipes,
    dense_product,
    fit_nearest_recipes,
)
from recipe_jax.data.recipes import RecipeSets


@dataclasses.dataclass(frozen=True)
class UniformAmounts:
    """Every food of a recipe weighs the same."""

    def proportions(self, foods: Foods, lengths: Lengths) -> Float64[np.ndarray, "b m"]:
        """Proportions of the foods given; zero at padding."""
        return normalised(np.zeros(foods.shape), lengths)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FoodMeans:
    """Each food's geometric mean weight, relative to the scale of the recipes that it is in.

    Attributes:
        log_weight: of each food; only differences matter.
        log_deviation: standard deviation of a food's log-weight around it.
    """

    log_weight: Float64[np.ndarray, "v"]
    log_deviation: Float64[np.ndarray, "v"]

    def proportions(self, foods: Foods, lengths: Lengths) -> Float64[np.ndarray, "b m"]:
        """Proportions of the foods given; zero at padding."""
        return normalised(self.log_weight[_within(foods, self.log_weight)], lengths)

    def sample(
        self, foods: Foods, lengths: Lengths, *, num_samples: int, rng: np.random.Generator
    ) -> Float64[np.ndarray, "samples b m"]:
        """Draws with every food's log-weight independent and normal."""
        index = _within(foods, self.log_weight)
        noise = rng.standard_normal((num_samples, *foods.shape))
        return normalised(self.log_weight[index] + self.log_deviation[index] * noise, lengths)


def fit_food_means(
    recipes: RecipeSets, *, num_foods: int, shrinkage: float = 1.0, rounds: int = 20
) -> FoodMeans:
    """Fit log grams = recipe's scale + food's log-weight by alternating least squares.

    Args:
        recipes: fully weighed recipes.
        num_foods: size of the vocabulary.
        shrinkage: recipes' worth of weight by which a rare food is drawn to its recipe's scale,
            and its deviation to that of all foods.
        rounds: of the alternation, which converges linearly.

    Raises:
        ValueError: a food without positive grams, or a recipe of fewer than two foods.
    """
    if (recipes.sizes < 2).any():
        raise ValueError("food means need recipes of at least 2 foods: one says nothing")
    row, logs, counts = _log_grams(recipes, num_foods)
    log_weight = np.zeros(num_foods)
    residual = _centred(logs, row, recipes)
    for _ in range(rounds):
        totals = np.bincount(recipes.foods, residual, minlength=num_foods) + counts * log_weight
        log_weight = totals / (counts + shrinkage)
        residual = _centred(logs - log_weight[recipes.foods], row, recipes)
    # The recipe's scale is fitted too: it takes one degree of freedom from its members.
    squares = residual**2 * (recipes.sizes / (recipes.sizes - 1.0))[row]
    pooled = shrinkage * squares.mean()
    variance = (np.bincount(recipes.foods, squares, minlength=num_foods) + pooled) / (
        counts + shrinkage
    )
    return FoodMeans(log_weight=log_weight, log_deviation=np.sqrt(variance))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NearestAmounts:
    """Food means, corrected by how the most similar weighed recipes deviate from them.

    A food that few neighbours hold is drawn back to its mean by `shrinkage` votes.

    Attributes:
        means: the back-off.
        nearest: the weighed training recipes.
        deviations: each training recipe's log-weights relative to `means` and to its own scale.
        shrinkage: votes of the back-off.
    """

    means: FoodMeans
    nearest: NearestRecipes
    deviations: scipy.sparse.csr_array
    shrinkage: float

    def proportions(self, foods: Foods, lengths: Lengths) -> Float64[np.ndarray, "b m"]:
        """Proportions of the foods given; zero at padding."""
        votes = self.nearest.weights(foods)
        index = _within(foods, self.means.log_weight)
        deviation = np.take_along_axis(dense_product(votes, self.deviations), index, axis=1)
        voters = np.take_along_axis(dense_product(votes, self.nearest.rows), index, axis=1)
        correction = deviation / (voters + self.shrinkage)
        return normalised(self.means.log_weight[index] + correction, lengths)


def fit_nearest_amounts(
    recipes: RecipeSets,
    *,
    num_foods: int,
    neighbours: int = 50,
    exponent: float = 6.0,
    shrinkage: float = 0.1,
) -> NearestAmounts:
    """Keep fully weighed recipes; the defaults were the best of a sweep on validation recipes."""
    means = fit_food_means(recipes, num_foods=num_foods)
    row, logs, _ = _log_grams(recipes, num_foods)
    deviations = _centred(logs - means.log_weight[recipes.foods], row, recipes)
    nearest = fit_nearest_recipes(
        recipes, num_foods=num_foods, neighbours=neighbours, exponent=exponent
    )
    return NearestAmounts(
        means=means,
        nearest=nearest,
        deviations=scipy.sparse.csr_array(
            (deviations, recipes.foods, recipes.offsets), nearest.rows.shape
        ),
        shrinkage=shrinkage,
    )


def normalised(
    logits: Float64[np.ndarray, "*samples b m"], lengths: Lengths
) -> Float64[np.ndarray, "*samples b m"]:
    """Softmax over the first `lengths` members of each row; zero at padding."""
    within = np.arange(logits.shape[-1]) < lengths[:, None]
    logits = np.where(within, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _within(foods: Foods, table: Float64[np.ndarray, "v"]) -> Foods:
    """Padding made a valid index; what it looks up is dropped by `normalised`."""
    return np.minimum(foods, len(table) - 1)


def _log_grams(
    recipes: RecipeSets, num_foods: int
) -> tuple[Int64[np.ndarray, "members"], Float64[np.ndarray, "members"], Int64[np.ndarray, "v"]]:
    """Each member's recipe and log-weight, and the number of recipes of each food."""
    if not (recipes.grams > 0).all():
        raise ValueError("amounts are fitted on recipes whose every food has positive grams")
    row = np.repeat(np.arange(len(recipes)), recipes.sizes)
    counts = np.bincount(recipes.foods, minlength=num_foods)
    return row, np.log(recipes.grams.astype(np.float64)), counts


def _centred(
    values: Float64[np.ndarray, "members"], row: Int64[np.ndarray, "members"], recipes: RecipeSets
) -> Float64[np.ndarray, "members"]:
    """Values minus their mean within each recipe."""
    means = np.bincount(row, values, minlength=len(recipes)) / np.maximum(recipes.sizes, 1)
    return values - means[row]
