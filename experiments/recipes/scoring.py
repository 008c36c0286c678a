"""A trained model as the functions that the protocols ask for."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, Int64

from experiments.recipes.amounts_protocol import ProportionsFn, SamplesFn
from experiments.recipes.completion import ScoreFn, food_bits
from recipe_jax import joint_decoding
from recipe_jax.batches import Molecules
from recipe_jax.data.batching import BUCKETS
from recipe_jax.functional import Params, PureModule
from recipe_jax.huggingface import LoadedModel
from recipe_jax.models import amounts, autoregressive_amounts
from recipe_jax.models.simplex import geometric_mean, member_mask, proportions
from recipe_jax.set_likelihood import completion_log_likelihoods
from recipe_jax.set_probabilities import next_food_probabilities

MIXTURES = ("amounts", "amounts_ensemble")
AMOUNT_MODELS = (*MIXTURES, "autoregressive_amounts", "joint_recipes")
"""Model types that weigh given foods."""

LIKELIHOOD_MODELS = ("ingredient_generator", "encoder_decoder_generator", "joint_recipes")
"""Model types that give a set of foods, food by food, a likelihood."""

SETS_AT_ONCE = 64


def completion_score(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    *,
    num_orders: int,
    num_candidates: int = 0,
    seed: int = 0,
) -> ScoreFn:
    """How well each food completes a set, in two stages.

    All foods are ranked by their probability of being next.  The best of them come first, ranked by
    the likelihood of the whole set that they complete: see `set_likelihood`.

    Args:
        fn: a pure generator.
        params: its parameters.
        molecules: of the foods.
        num_orders: reading orders to average over, where the model reads in an order.
        num_candidates: foods of each set that the second stage ranks; 0 for none, and nothing else
            for a model that has no likelihood of sets.
        seed: of the orders.
    """
    v = molecules.composition.shape[0]

    def score(
        foods: Int32[np.ndarray, "b m"], lengths: Int32[np.ndarray, "b"]
    ) -> Float[np.ndarray, "b v"]:
        found = np.zeros((len(foods), v), np.float32)
        for rows, group, _ in size_groups(foods, lengths, num_foods=v):
            chances = next_food_probabilities(
                fn, params, molecules, group, num_orders=num_orders, seed=seed
            )
            found[rows] = chances[: len(rows)]
            if num_candidates:
                best = _best_candidates(chances, group, num_candidates)
                likelihoods = completion_log_likelihoods(
                    fn, params, molecules, group, best, num_orders=num_orders, seed=seed
                )[: len(rows)]
                # Above every probability.
                raised = 2.0 + likelihoods - likelihoods.min(axis=1, keepdims=True)
                found[rows[:, None], best[: len(rows)]] = raised
        return found

    return score


def _best_candidates(
    chances: Float[np.ndarray, "b v"], foods: Int32[np.ndarray, "b m"], count: int
) -> Int32[np.ndarray, "b k"]:
    """The most probable foods of each set that are not in it."""
    v = chances.shape[1]
    free = v - int((foods < v).sum(axis=1).max(initial=0))
    given = food_bits(foods, num_foods=v)
    ranked = np.argsort(np.where(given, np.inf, -chances), axis=1, kind="stable")
    return ranked[:, : min(count, free)].astype(np.int32)


def amount_functions(
    model: LoadedModel, *, num_samples: int, seed: int
) -> tuple[ProportionsFn, SamplesFn]:
    """A model of amounts as the two functions that the amounts protocol asks for.

    The point estimate is the mean log-ratio: the mixture's own where there is one, else that of the
    samples, which are drawn once for each batch and remembered.

    Raises:
        ValueError: a model that weighs no foods.
    """
    draw = _sampler(model, num_samples)
    v, drawn = len(model.foods), {}

    def sample(
        foods: Int32[np.ndarray, "b m"], lengths: Int32[np.ndarray, "b"]
    ) -> Float[np.ndarray, "samples b m"]:
        asked = foods.tobytes()
        if asked not in drawn:
            found = np.zeros((num_samples, *foods.shape), np.float32)
            groups = size_groups(foods, lengths, num_foods=v)
            for i, (rows, group, counts) in enumerate(groups):
                samples = np.asarray(draw(group, counts, jax.random.key(seed + 1000 * i)))
                width = min(group.shape[1], foods.shape[1])
                found[:, rows, :width] = samples[:, : len(rows), :width]
            drawn[asked] = found
        return drawn[asked]

    def predict(
        foods: Int32[np.ndarray, "b m"], lengths: Int32[np.ndarray, "b"]
    ) -> Float[np.ndarray, "b m"]:
        members = member_mask(jnp.asarray(lengths), foods.shape[1])
        if model.model_type in MIXTURES:
            found = _mixture(model.fn, model.params, model.molecules, foods, lengths)
            return np.asarray(proportions(amounts.mean_log_ratios(found), members))
        return np.asarray(geometric_mean(jnp.asarray(sample(foods, lengths)), members))

    return predict, sample


def _sampler(model: LoadedModel, num_samples: int) -> Callable[..., Any]:
    """Padded sets, their lengths and a key to `[samples, b, m]` proportions."""
    parts = model.fn, model.params, model.molecules
    if model.model_type == "joint_recipes":
        return lambda foods, lengths, key: joint_decoding.sample_proportions(
            *parts, jnp.asarray(foods), jnp.asarray(lengths), key, num_samples=num_samples
        )
    if model.model_type == "autoregressive_amounts":
        return lambda foods, lengths, key: autoregressive_amounts.sample_proportions(
            *parts, jnp.asarray(foods), jnp.asarray(lengths), key, num_samples=num_samples
        )
    if model.model_type not in MIXTURES:
        raise ValueError(f"model_type={model.model_type!r} must be one of {AMOUNT_MODELS}")
    return lambda foods, lengths, key: amounts.sample_proportions(
        _mixture(*parts, foods, lengths), jnp.asarray(lengths), key, num_samples=num_samples
    )


@functools.partial(jax.jit, static_argnums=0)
def _mixture(
    fn: PureModule[Any], params: Params, molecules: Molecules, foods: Any, lengths: Any
) -> amounts.Mixture:
    return fn.bind(params)(molecules, foods, lengths)


def size_groups(
    foods: Int32[np.ndarray, "b m"], lengths: Int32[np.ndarray, "b"], *, num_foods: int
) -> Iterator[tuple[Int64[np.ndarray, "rows"], Int32[np.ndarray, "k n"], Int32[np.ndarray, "k"]]]:
    """Sets of similar size, each group padded no further than a training batch would be.

    Groups have a few shapes only, so that little is compiled: the last is filled with empty sets.

    Yields:
        The rows of a group, then its foods and lengths, of which the first `len(rows)` are theirs.
    """
    order = np.argsort(lengths, kind="stable")
    at_once = min(SETS_AT_ONCE, len(order))
    for start in range(0, len(order), max(at_once, 1)):
        rows = order[start : start + at_once]
        longest = int(lengths[rows].max(initial=0))
        size = next((size for size in BUCKETS if size >= longest), longest)
        group = np.full((at_once, size), num_foods, np.int32)
        width = min(size, foods.shape[1])
        group[: len(rows), :width] = foods[rows, :width]
        yield rows, group, np.pad(lengths[rows], (0, at_once - len(rows)))
