"""Baselines of completion, fitted on training recipes alone.

Each is a `fit_*` function that returns a frozen value, whose `score` is a `completion.ScoreFn`.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Float64, Int32

from experiments.recipes.completion import food_bits
from recipe_jax.data.recipes import RecipeSets

Foods: TypeAlias = Int32[np.ndarray, "b m"]
Lengths: TypeAlias = Int32[np.ndarray, "b"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Popularity:
    """Every food by the number of training recipes that contain it, whatever is given."""

    counts: Float64[np.ndarray, "v"]

    def score(self, given: Foods, lengths: Lengths) -> Float64[np.ndarray, "b v"]:
        """Scores of every food, one row a query."""
        return np.tile(self.counts, (len(given), 1))


def fit_popularity(training: RecipeSets, *, num_foods: int) -> Popularity:
    """Count each food's recipes."""
    return Popularity(counts=np.bincount(training.foods, minlength=num_foods).astype(np.float64))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NaiveBayes:
    """Naive Bayes over co-occurrence: prior of the food, evidence of each food that is given.

    Foods given are far from independent, so their evidence is divided by `lengths ** damping`:
    0 is plain naive Bayes, 1 the mean evidence.

    Attributes:
        log_prior: log of the share of recipes with the food.
        evidence: `[i, j]` is log P(i | j) - log P(i): what a given food `i` says for food `j`.
        damping: between 0 and 1.
    """

    log_prior: Float64[np.ndarray, "v"]
    evidence: Float64[np.ndarray, "v v"]
    damping: float

    def score(self, given: Foods, lengths: Lengths) -> Float64[np.ndarray, "b v"]:
        """Scores of every food, one row a query."""
        bits = food_bits(given, num_foods=len(self.log_prior))
        return self.log_prior + (bits @ self.evidence) / lengths[:, None] ** self.damping


def fit_naive_bayes(
    training: RecipeSets, *, num_foods: int, damping: float = 0.5, smoothing: float = 10.0
) -> NaiveBayes:
    """Estimate P(i | j) from counts, each shrunk towards P(i) by `smoothing` recipes."""
    rows = membership(training, num_foods)
    together = dense_product(rows.T, rows).astype(np.float64)
    prior = (np.diag(together) + 0.5) / (len(training) + 1.0)
    conditional = (together + smoothing * prior[:, None]) / (np.diag(together) + smoothing)
    evidence = np.log(conditional) - np.log(prior)[:, None]
    return NaiveBayes(log_prior=np.log(prior), evidence=evidence, damping=damping)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ease:
    """A linear model of each food from the others (Steck 2019, arXiv:1905.03375).

    Attributes:
        weights: `[i, j]` is what a given food `i` adds to food `j`; zero on the diagonal.
    """

    weights: Float64[np.ndarray, "v v"]

    def score(self, given: Foods, lengths: Lengths) -> Float64[np.ndarray, "b v"]:
        """Scores of every food, one row a query."""
        return food_bits(given, num_foods=len(self.weights)) @ self.weights


def fit_ease(training: RecipeSets, *, num_foods: int, penalty: float = 30.0) -> Ease:
    """The closed form of Steck (2019), eq. 8; `penalty` is its lambda, in recipes.

    Raises:
        ValueError: a penalty that is not positive: a food of no recipe makes the system singular.
    """
    if not penalty > 0:
        raise ValueError(f"penalty={penalty} must be positive")
    rows = membership(training, num_foods)
    gram = dense_product(rows.T, rows).astype(np.float64)
    precision = np.linalg.inv(gram + penalty * np.eye(num_foods))
    weights = -precision / np.diag(precision)
    np.fill_diagonal(weights, 0.0)
    return Ease(weights=weights)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NearestRecipes:
    """Votes of the most similar training recipes, each with its cosine to a power.

    Attributes:
        rows: food bits of the training recipes.
        unit_rows: the same, each of length 1.
        neighbours: recipes that vote.
        exponent: of the cosine.
    """

    rows: scipy.sparse.csr_array
    unit_rows: Float32[np.ndarray, "n v"]
    neighbours: int
    exponent: float

    def weights(self, foods: Foods) -> scipy.sparse.csr_array:
        """The vote of each training recipe (columns) in each query (rows)."""
        bits = food_bits(foods, num_foods=self.unit_rows.shape[1])
        cosines = unit_vectors(bits.astype(np.float32)) @ self.unit_rows.T
        nearest = np.argpartition(cosines, -self.neighbours, axis=1)[:, -self.neighbours :]
        votes = np.take_along_axis(cosines, nearest, axis=1) ** self.exponent
        offsets = np.arange(0, votes.size + 1, self.neighbours)
        return scipy.sparse.csr_array((votes.ravel(), nearest.ravel(), offsets), cosines.shape)

    def score(self, given: Foods, lengths: Lengths) -> Float32[np.ndarray, "b v"]:
        """Scores of every food, one row a query."""
        return dense_product(self.weights(given), self.rows)


def fit_nearest_recipes(
    training: RecipeSets, *, num_foods: int, neighbours: int = 200, exponent: float = 3.0
) -> NearestRecipes:
    """Keep the training recipes; fewer than `neighbours` of them all vote."""
    rows = membership(training, num_foods)
    return NearestRecipes(
        rows=rows,
        unit_rows=unit_vectors(rows.toarray()),
        neighbours=min(neighbours, len(training)),
        exponent=exponent,
    )


def sample_popular_sets(
    popularity: Popularity, lengths: Lengths, *, rng: np.random.Generator
) -> Foods:
    """Recipes of given lengths, foods drawn by popularity without replacement; padded.

    The Gumbel top-k trick (Kool et al. 2019, arXiv:1903.06059).
    """
    num_foods = len(popularity.counts)
    with np.errstate(divide="ignore"):
        logits = np.log(popularity.counts)
    order = np.argsort(-(logits + rng.gumbel(size=(len(lengths), num_foods))), axis=1)
    drawn = order[:, : lengths.max(initial=0)]
    within = np.arange(drawn.shape[1]) < lengths[:, None]
    return np.where(within, drawn, num_foods).astype(np.int32)


def membership(recipes: RecipeSets, num_foods: int) -> scipy.sparse.csr_array:
    """Food bits of recipes, in float32."""
    ones = np.ones(len(recipes.foods), np.float32)
    shape = (len(recipes), num_foods)
    return scipy.sparse.csr_array((ones, recipes.foods, recipes.offsets), shape)


def dense_product(
    first: scipy.sparse.sparray, second: scipy.sparse.csr_array
) -> Float32[np.ndarray, "b v"]:
    """The product of two sparse matrices as a dense one."""
    return scipy.sparse.csr_array(first @ second).toarray()


def unit_vectors(rows: Float32[np.ndarray, "n v"]) -> Float32[np.ndarray, "n v"]:
    """Rows of Euclidean length 1; a row of zeros stays one."""
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return rows / np.where(lengths > 0, lengths, 1.0)
