"""Likelihoods of whole sets under a decoder, and with them: which food completes a set.

A decoder gives the probability of a sequence of foods and its end.  A set has as many sequences as
orders; their mean log-probability is the evidence bound of an order-agnostic model (Uria et al.
2014, arXiv:1310.1757, eq. 8).  Where exactly one food is missing from a set, what is asked for is
not the next food, after which others may follow, but the food with which the set is a whole recipe:
in proportion to that recipe's likelihood, the end and all other foods included.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from recipe_jax.batches import Molecules
from recipe_jax.functional import Params, PureModule
from recipe_jax.set_probabilities import check_sets

SEQUENCES_AT_ONCE = 1024
"""How many sequences are read in one call, in one of few shapes."""


def sequence_log_likelihoods(
    fn: PureModule[Any], params: Params, molecules: Molecules, foods: Int[np.ndarray, "n m"]
) -> Float32[np.ndarray, "n"]:
    """Log-probability, in nats, of choosing these foods one after the other and then the end.

    Args:
        fn: a pure `SetDecoder`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: in the order in which they are chosen, then padding (index `v`).

    Raises:
        ValueError: a food outside the vocabulary or named twice, or more foods than the model's
            `max_foods`.
    """
    v = molecules.composition.shape[0]
    check_sets(foods, v)
    most = fn.bind(params).cfg.max_foods
    if foods.shape[1] > most:
        raise ValueError(f"sets have {foods.shape[1]} places, the model holds max_foods={most}")
    short = -len(foods) % SEQUENCES_AT_ONCE
    rows = np.pad(foods.astype(np.int32), ((0, short), (0, 0)), constant_values=v)
    found = [
        np.asarray(_log_likelihoods(fn, params, molecules, rows[start : start + SEQUENCES_AT_ONCE]))
        for start in range(0, len(rows), SEQUENCES_AT_ONCE)
    ]
    return np.concatenate([*found, np.zeros(0, np.float32)])[: len(foods)]


@functools.partial(jax.jit, static_argnames="fn")
def _log_likelihoods(
    fn: PureModule[Any], params: Params, molecules: Molecules, foods: Int[Array, "n m"]
) -> Float32[Array, "n"]:
    model = fn.bind(params)
    table = model.embedding(molecules)
    (n, m), v = foods.shape, table.shape[0]
    lengths = jnp.sum(foods < v, axis=1)
    read = jnp.pad(foods, ((0, 0), (1, 0)), constant_values=-1)
    logits, _ = model.decode(table, read, lengths + 1, model.empty_cache(n))
    logits = logits.astype(jnp.float32)
    # The turn at which each food is chosen; foods that never are, and the end, come after all.
    turns = jnp.full((n, v + 1), m + 1).at[jnp.arange(n)[:, None], foods].set(jnp.arange(m)[None])
    turns = turns.at[:, v].set(m + 1)
    prefix = jnp.arange(m + 1)
    free = turns[:, None] >= prefix[None, :, None]
    normalizer = jax.nn.logsumexp(logits, axis=-1, where=free)
    choices = jnp.pad(foods, ((0, 0), (0, 1)), constant_values=v)  # padding and the end are one
    picked = jnp.take_along_axis(logits, choices[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(prefix[None] <= lengths[:, None], picked - normalizer, 0.0), axis=1)


def completion_log_likelihoods(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[np.ndarray, "b m"],
    candidates: Int[np.ndarray, "b k"],
    *,
    num_orders: int = 8,
    seed: int = 0,
) -> Float32[np.ndarray, "b k"]:
    """Mean log-likelihood, over orders of reading, of each set with each of its candidates.

    Args:
        fn: a pure `SetDecoder`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: sets padded with `v`.
        candidates: foods that are not in their set.
        num_orders: orders to average over, the same for all candidates of a set.
        seed: of the orders.

    Raises:
        ValueError: as `sequence_log_likelihoods`; also where a candidate is in its set.
    """
    v = molecules.composition.shape[0]
    places = completion_orders(np.sum(foods < v, axis=1), num_orders=num_orders, seed=seed)
    b, k = candidates.shape
    given = np.broadcast_to(np.sort(foods, axis=1)[:, None], (b, k, foods.shape[1]))
    whole = np.concatenate([candidates[..., None], given], axis=-1)[:, :, None]
    sequences = np.take_along_axis(whole, places[:, None], axis=-1)
    width = int(np.sum(foods < v, axis=1).max(initial=0)) + 1
    found = sequence_log_likelihoods(
        fn, params, molecules, sequences[..., :width].reshape(-1, width)
    )
    return found.reshape(b, k, num_orders).mean(axis=-1)


def completion_orders(
    lengths: Int[np.ndarray, "b"], *, num_orders: int, seed: int = 0
) -> Int32[np.ndarray, "b o m_plus_one"]:
    """Orders of a candidate (place 0) and the `lengths` foods of its set (places 1, 2, …).

    The given foods come in random orders.  The candidate's turn is stratified: over the orders it
    is spread evenly from first to last, which a few random turns would not be.

    Returns:
        For each set and order the places in the order of reading; padding keeps its place.
    """
    rng = np.random.default_rng(seed)
    size = int(lengths.max(initial=0))
    turns = (np.arange(num_orders) + rng.random(num_orders)) / num_orders
    draws = np.concatenate([np.zeros((num_orders, 1)), rng.random((num_orders, size))], axis=1)
    given = (np.arange(size + 1) <= lengths[:, None])[:, None]
    rank = np.argsort(np.argsort(np.where(given, draws[None], 2.0), axis=-1), axis=-1) - 1.0
    rank[..., 0] = np.floor(turns[None] * (lengths[:, None] + 1)) - 0.5
    return np.argsort(rank, axis=-1).astype(np.int32)
