"""Probabilities of the next food of a set, whatever order the set is written in.

A decoder reads its set in some order, and the order means nothing: probabilities are averaged over
several reading orders, which are a function of the set alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from recipe_jax.batches import Molecules
from recipe_jax.functional import Params, PureModule

_NEVER = jnp.finfo(jnp.float32).min


def reading_orders(
    foods: Int[np.ndarray, "b m"], *, num_foods: int, num_orders: int, seed: int = 0
) -> Int32[np.ndarray, "b o m"]:
    """The orders in which each set is read: a function of the set, not of how it was written.

    Args:
        foods: padded with `num_foods`.
        num_foods: size of the vocabulary.
        num_orders: orders per set.
        seed: of the orders.
    """
    ascending = np.sort(foods, axis=1).astype(np.int32)
    # One row of draws per member, so that padding changes no order.
    draws = np.random.default_rng(seed).random((foods.shape[1], num_orders)).T
    places = np.argsort(np.where(ascending[:, None] == num_foods, 2.0, draws), axis=-1)
    return np.take_along_axis(np.repeat(ascending[:, None], num_orders, axis=1), places, axis=-1)


def next_food_probabilities(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[np.ndarray, "b m"],
    *,
    num_orders: int = 8,
) -> Float32[np.ndarray, "b v"]:
    """Probabilities of the next food if it is not the end; zero for the foods given.

    Args:
        fn: a pure `SetDecoder`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: sets padded with `v`.
        num_orders: reading orders to average over.
    """
    check_sets(foods, molecules.composition.shape[0])
    orders = reading_orders(foods, num_foods=molecules.composition.shape[0], num_orders=num_orders)
    return np.exp(np.asarray(_log_probabilities_of_sets(fn, params, molecules, orders)))


@functools.partial(jax.jit, static_argnames="fn")
def _log_probabilities_of_sets(
    fn: PureModule[Any], params: Params, molecules: Molecules, orders: Int[Array, "b o m"]
) -> Float32[Array, "b v"]:
    model = fn.bind(params)
    table = model.embedding(molecules)
    return jax.vmap(lambda rows: next_food_log_probabilities(model, table, rows))(orders)


def next_food_log_probabilities(
    model: Any, table: Float[Array, "v e"], orders: Int[Array, "o m"]
) -> Float32[Array, "v"]:
    """Log of the next food's probability, averaged over the reading orders of one set."""
    (o, _), v = orders.shape, table.shape[0]
    length = jnp.sum(orders[0] < v)
    read = jnp.concatenate([jnp.full((o, 1), -1, orders.dtype), orders], axis=1)
    logits, _ = model.decode(table, read, jnp.full(o, length + 1), model.empty_cache(o))
    logits = jax.lax.dynamic_index_in_dim(logits, length, axis=1, keepdims=False)[:, :-1]
    given = jnp.zeros(v, bool).at[orders[0]].set(True, mode="drop")
    logits = jnp.where(given[None], _NEVER, logits.astype(jnp.float32))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1), axis=0) - np.log(o)


def log_odds(log_probabilities: Float[Array, "v"], choice: Int[Array, ""]) -> Float32[Array, ""]:
    """Against all other foods together; keeps its precision where the probability is near 1."""
    others = log_probabilities.at[choice].set(_NEVER)
    return log_probabilities[choice] - jax.nn.logsumexp(others)


def check_sets(foods: Int[np.ndarray, "b m"], num_foods: int) -> None:
    """Refuse foods outside the vocabulary and foods named twice; `num_foods` is padding."""
    if foods.size and not 0 <= foods.min() <= foods.max() <= num_foods:
        worst = foods.min() if foods.min() < 0 else foods.max()
        raise ValueError(f"food {worst} must be from 0 to {num_foods - 1}, or {num_foods}: padding")
    ascending = np.sort(foods, axis=1)
    twice = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] < num_foods)
    if twice.any():
        raise ValueError(f"food {ascending[:, 1:][twice][0]} is given twice: a recipe is a set")
