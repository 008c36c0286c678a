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
from recipe_jax.decoding import PromptEncoder
from recipe_jax.functional import Params, PureModule
from recipe_jax.models.masked_set_generator import MaskedSetGenerator

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
    seed: int = 0,
) -> Float32[np.ndarray, "b v"]:
    """Probabilities of the next food if it is not the end; zero for the foods given.

    A model that reads its sets as sets, as a pantry or around a mask, needs no orders.

    Args:
        fn: a pure `SetDecoder`, whose encoder, if it has one, reads all that is given; or a pure
            `MaskedSetGenerator`, of which one food is hidden.
        params: its parameters.
        molecules: of the `v` foods.
        foods: sets padded with `v`.
        num_orders: reading orders to average over.
        seed: of the orders.
    """
    v = molecules.composition.shape[0]
    check_sets(foods, v)
    if isinstance(fn.bind(params), PromptEncoder | MaskedSetGenerator):
        return np.asarray(_probabilities_of_prompts(fn, params, molecules, np.sort(foods, axis=1)))
    orders = reading_orders(foods, num_foods=v, num_orders=num_orders, seed=seed)
    return np.asarray(_probabilities_of_orders(fn, params, molecules, orders))


@functools.partial(jax.jit, static_argnames="fn")
def _probabilities_of_prompts(
    fn: PureModule[Any], params: Params, molecules: Molecules, foods: Int[Array, "b m"]
) -> Float32[Array, "b v"]:
    model = fn.bind(params)
    table = model.embedding(molecules)
    lengths = jnp.sum(foods < table.shape[0], axis=1)
    if isinstance(model, MaskedSetGenerator):
        return jax.nn.softmax(model.completion_logits(molecules, foods, lengths), axis=-1)
    start = jnp.full((foods.shape[0], 1), -1, foods.dtype)
    cache = model.encode_prompt(table, foods, lengths)
    logits, _ = model.decode(table, start, jnp.ones_like(lengths), cache)
    return jnp.exp(_of_foods_not_given(logits[:, 0, :-1], foods))


@functools.partial(jax.jit, static_argnames="fn")
def _probabilities_of_orders(
    fn: PureModule[Any], params: Params, molecules: Molecules, orders: Int[Array, "b o m"]
) -> Float32[Array, "b v"]:
    model = fn.bind(params)
    table = model.embedding(molecules)
    b, o, m = orders.shape
    logits = _last_logits(model, table, orders.reshape(b * o, m))
    shares = _of_foods_not_given(logits, orders.reshape(b * o, m)).reshape(b, o, -1)
    return jnp.exp(shares).mean(axis=1)


def _last_logits(
    model: Any, table: Float[Array, "v e"], foods: Int[Array, "b m"]
) -> Float[Array, "b v"]:
    """Logits of the foods after the whole of each sequence."""
    lengths = jnp.sum(foods < table.shape[0], axis=1)
    read = jnp.pad(foods, ((0, 0), (1, 0)), constant_values=-1)
    logits, _ = model.decode(table, read, lengths + 1, model.empty_cache(foods.shape[0]))
    return jnp.take_along_axis(logits, lengths[:, None, None], axis=1)[:, 0, :-1]


def _of_foods_not_given(
    logits: Float[Array, "b v"], foods: Int[Array, "b m"]
) -> Float32[Array, "b v"]:
    """Log-probabilities; the lowest finite numbers for the foods that are given."""
    rows = jnp.arange(foods.shape[0])[:, None]
    given = jnp.zeros(logits.shape, bool).at[rows, foods].set(True, mode="drop")
    return jax.nn.log_softmax(jnp.where(given, _NEVER, logits.astype(jnp.float32)), axis=-1)


def next_food_log_probabilities(
    model: Any, table: Float[Array, "v e"], orders: Int[Array, "o m"]
) -> Float32[Array, "v"]:
    """Log of the next food's probability, averaged over the reading orders of one set."""
    logits = _of_foods_not_given(_last_logits(model, table, orders), orders)
    return jax.nn.logsumexp(logits, axis=0) - np.log(orders.shape[0])


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
