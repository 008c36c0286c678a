"""Intervals of a model of amounts that hold as often as they say, on validation recipes.

A likelihood is best on training recipes, where errors are smaller: intervals come out too narrow.
One factor on all scales, found on validation recipes, widens them (the temperature scaling of Guo
et al. 2017, arXiv:1706.04599, for a density).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.functional import Params, PureModule
from recipe_jax.metrics import central_interval, interval_coverage, mean_over_members
from recipe_jax.models.amounts import sample_proportions
from recipe_jax.models.simplex import member_mask, shares

LEVEL = 0.8
FACTORS = (0.5, 2.0)
HALVINGS = 7
NUM_SAMPLES = 100


def calibrate_scales(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    batches: Sequence[RecipeBatch],
    *,
    seed: int = 0,
) -> Params:
    """Parameters whose central 80 % intervals of proportions hold 80 % of the members.

    Args:
        fn: a pure `AmountsModel` or `AmountsEnsemble`.
        params: its parameters.
        molecules: of the foods.
        batches: fully weighed recipes that it did not learn from.
        seed: of the samples.
    """
    low, high = np.log(FACTORS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        covered = interval_share(fn, _scaled(params, middle), molecules, batches, seed=seed)
        low, high = (middle, high) if covered < LEVEL else (low, middle)
    return _scaled(params, (low + high) / 2)


def interval_share(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    batches: Sequence[RecipeBatch],
    *,
    seed: int = 0,
) -> float:
    """The share of members whose proportion lies in its interval; every recipe counts the same."""
    covered = []
    for i, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(seed), i)
        samples = np.asarray(_sampled(fn, params, molecules, batch, key))
        present = np.asarray(member_mask(jnp.asarray(batch.lengths), batch.foods.shape[1]))
        actual = np.asarray(shares(jnp.asarray(batch.grams)))
        held = interval_coverage(*central_interval(samples, LEVEL), actual)
        covered.append(mean_over_members(held, present))
    return float(np.concatenate(covered).mean())


@functools.partial(jax.jit, static_argnums=0)
def _sampled(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    batch: RecipeBatch,
    key: PRNGKeyArray,
) -> Float32[Array, "samples b m"]:
    mixture = fn.bind(params)(molecules, batch.foods, batch.lengths)
    return sample_proportions(mixture, batch.lengths, key, num_samples=NUM_SAMPLES)


def _scaled(params: Params, log_factor: Float[np.ndarray, ""] | float) -> Params:
    """All scales of a model, or of every model of an ensemble, times a factor."""

    def scaled(path: Any, leaf: Any) -> Any:
        return leaf + float(log_factor) if path[-1].key == "scale_bias" else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)
