"""A generator as a score of every food, for the completion protocol."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from experiments.recipes.completion import ScoreFn
from recipe_jax.batches import Molecules
from recipe_jax.functional import Params, PureModule


def completion_score(
    fn: PureModule[Any], params: Params, molecules: Molecules, *, num_orders: int, seed: int = 0
) -> ScoreFn:
    """Probabilities of the next food after the given ones, averaged over reading orders.

    A decoder without positions still reads its set in some order.  The order means nothing, so it
    is marginalised: each query is read in `num_orders` random orders.

    Args:
        fn: a pure `IngredientGenerator`.
        params: its parameters.
        molecules: of the foods.
        num_orders: reading orders to average over.
        seed: of the orders.
    """

    def score(
        foods: Int32[np.ndarray, "b m"], lengths: Int32[np.ndarray, "b"]
    ) -> Float[np.ndarray, "b v"]:
        rng = np.random.default_rng(seed)
        padding = np.arange(foods.shape[1]) >= lengths[:, None]
        total = np.zeros(1)
        for _ in range(num_orders):
            order = np.argsort(np.where(padding, 2.0, rng.random(foods.shape)), axis=1)
            shuffled = np.take_along_axis(foods, order, axis=1)
            total = total + np.asarray(_next_food(fn, params, molecules, shuffled, lengths))
        return total

    return score


@functools.partial(jax.jit, static_argnums=0)
def _next_food(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[Array, "b m"],
    lengths: Int[Array, "b"],
) -> Float32[Array, "b v"]:
    logits = fn.bind(params)(molecules, foods)
    logits = jnp.take_along_axis(logits, lengths[:, None, None], axis=1)[:, 0, :-1]
    rows = jnp.arange(foods.shape[0])[:, None]
    given = jnp.zeros(logits.shape, bool).at[rows, foods].set(True, mode="drop")
    return jax.nn.softmax(jnp.where(given, jnp.finfo(jnp.float32).min, logits), axis=-1)
