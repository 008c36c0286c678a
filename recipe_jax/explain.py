"""Why a model chose: attribution to ingredients and compounds, attention, substitutes, pairings.

Functions of a pure set model (`decoding.SetDecoder`) and its parameters; names of foods, components
and compounds are the caller's.  Probabilities are averaged over reading orders that depend on the
set alone, so that an answer does not change when the same foods are named in another order.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from recipe_jax.batches import Molecules
from recipe_jax.functional import Params, PureModule, purify
from recipe_jax.integrated_gradients import integrated_gradients
from recipe_jax.layers.attention import attention_entropy
from recipe_jax.layers.masks import Mask
from recipe_jax.set_probabilities import (
    check_sets,
    log_odds,
    next_food_log_probabilities,
    next_food_probabilities,
    reading_orders,
)

ProportionsFn: TypeAlias = Callable[[Int32[np.ndarray, "b m"], Int32[np.ndarray, "b"]], Any]
"""Foods (padded with the vocabulary's size) and their counts to proportions `b m`."""


_LEARNED = frozenset({"learned", "pairs"})
"""Parameters of an embedding that know a food by its name alone, a row each."""


class ChoiceAttribution(NamedTuple):
    """What moved the log-odds of a choice away from those among average foods.

    Rows are the given foods, then the choice.  `vectors` sums to `log_odds - baseline_log_odds`,
    and each row of it is the sum of that row of the other arrays.  A source that the model lacks
    has zeros, and so have the rows that do not move.

    Attributes:
        log_odds: of the choice against all other foods that are not given, in nats.
        baseline_log_odds: the same where the rows that move have the mean vector of all foods.
        vectors: attribution of each food's vector.
        composition: to the concentration of each component.
        observed: to its being known at all.
        flavour: to each flavour compound.
        no_flavour: to the flavour compounds' being unknown.
        learned: to what recipes taught about the food, and about its pairs with others.
        error: completeness error, see `Attributions`.
        num_steps: gradients in the integral.
    """

    log_odds: Float32[Array, ""]
    baseline_log_odds: Float32[Array, ""]
    vectors: Float32[Array, "m_plus_one"]
    composition: Float32[Array, "m_plus_one c"]
    observed: Float32[Array, "m_plus_one c"]
    flavour: Float32[Array, "m_plus_one a"]
    no_flavour: Float32[Array, "m_plus_one"]
    learned: Float32[Array, "m_plus_one"]
    error: Float32[Array, ""]
    num_steps: Int32[Array, ""]


def attribute_choice(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[np.ndarray, "m"],
    choice: int,
    *,
    moves: Literal["foods", "choice", "both"] = "foods",
    num_orders: int = 8,
    tolerance: float = 1e-3,
    max_steps: int = 512,
) -> ChoiceAttribution:
    """Integrated gradients of the log-odds of `choice` after `foods`, to foods and to molecules.

    The path runs over food vectors, from the mean vector of all foods.  Where the given foods move,
    the baseline is to read as many average foods; where the choice moves, to compare what was read
    with an average food.  (Reading no food is no end of a straight path: a number of foods is
    discrete.)  The bias of the choice is no vector and stays in the baseline.

    A vector is linear in its sources, so its attribution splits exactly into theirs without another
    integral: a straight path of vectors is a straight path of the projected features, from the mean
    of each.  A compound that a food lacks is below that mean and has an attribution, too.

    Args:
        fn: a pure `SetDecoder` whose `embedding` is a `FoodEmbedding`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: given, distinct; index `v` is padding, whose rows are zero.
        choice: the food to be explained, not among them.
        moves: whose vectors come from the mean: the given foods', the choice's own, or both.
        num_orders: reading orders that the probability is averaged over.
        tolerance: completeness error to be reached if `max_steps` gradients suffice.
        max_steps: see `integrated_gradients`.

    Raises:
        ValueError: a food outside the vocabulary, given twice, or chosen and given.
    """
    num_foods = molecules.composition.shape[0]
    foods = np.asarray(foods, np.int32)
    check_sets(np.append(foods, np.int32(choice))[None], num_foods)
    if choice == num_foods:
        raise ValueError(f"choice={choice} must be below the {num_foods} foods")
    orders = reading_orders(foods[None], num_foods=num_foods, num_orders=num_orders)[0]
    moving = np.append(np.full(len(foods), moves != "choice"), moves != "foods")
    return _attribute_choice(
        fn,
        params,
        molecules,
        np.append(foods, np.int32(choice)),
        moving & (np.append(foods, np.int32(choice)) < num_foods),
        orders,
        tolerance,
        max_steps=max_steps,
    )


@functools.partial(jax.jit, static_argnames=("fn", "max_steps"))
def _attribute_choice(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    rows: Int[Array, "m_plus_one"],
    moving: Bool[Array, "m_plus_one"],
    orders: Int[Array, "o m"],
    tolerance: Float[Array, ""],
    *,
    max_steps: int,
) -> ChoiceAttribution:
    model = fn.bind(params)
    table = model.embedding(molecules)
    vectors = table.at[rows].get(mode="clip")
    baseline = jnp.where(moving[:, None], table.mean(axis=0)[None], vectors)

    def choice_log_odds(vectors: jax.Array) -> jax.Array:
        moved = table.at[rows].set(vectors, mode="drop")
        return log_odds(next_food_log_probabilities(model, moved, orders), rows[-1])

    found = integrated_gradients(
        choice_log_odds, vectors, baseline, tolerance=tolerance, max_steps=max_steps
    )
    sources = _split_by_source(
        model.embedding, molecules, rows, jnp.where(moving[:, None], found.gradients, 0.0)
    )
    c, none = molecules.composition.shape[1], jnp.zeros(len(rows))
    both = sources.get("composition", jnp.zeros((len(rows), 2 * c)))
    return ChoiceAttribution(
        log_odds=found.value,
        baseline_log_odds=found.baseline_value,
        vectors=found.values.sum(axis=-1),
        composition=both[:, :c],
        observed=both[:, c:],
        flavour=sources.get("flavour", jnp.zeros((len(rows), molecules.flavour.shape[1]))),
        no_flavour=sources.get("no_flavour", none),
        learned=sum((sources[name].sum(axis=-1) for name in _LEARNED if name in sources), none),
        error=found.error,
        num_steps=found.num_steps,
    )


def _split_by_source(
    embedding: Any,
    molecules: Molecules,
    rows: Int[Array, "n"],
    gradients: Float[Array, "n e"],
) -> dict[str, Array]:
    """What each row of each parameter adds to `gradients[i] · (vector of rows[i] - mean vector)`.

    The vectors are linear in the embedding's parameters, one row of which belongs to one feature:
    by Euler's theorem a linear function is the sum of its parameters times its gradients.
    """
    fn, params = purify(embedding)
    _, pullback = jax.vjp(lambda params: fn.bind(params)(molecules), params)
    v = molecules.composition.shape[0]

    def split(row: jax.Array, gradient: jax.Array) -> dict[str, Array]:
        from_mean = (jnp.arange(v) == row) - 1 / v
        (slopes,) = pullback(from_mean[:, None] * gradient[None])
        return jax.tree.map(lambda x, slope: (x * slope).sum(axis=-1), params, slopes)

    return jax.vmap(split)(rows, gradients)


class AttentionMaps(NamedTuple):
    """Which tokens a decoder's self-attention reads; token 0 is the start.

    Attributes:
        weights: of every reading order; tokens are the start, then the foods in that order.
        entropy: of each row of `weights`, in nats.
        read: what the last token, from which the next food is told, reads of the start and then of
            each food in the order given; averaged over reading orders.
    """

    weights: Float32[Array, "layers o h t t"]
    entropy: Float32[Array, "layers o h t"]
    read: Float32[Array, "layers h t"]


def attention_maps(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[np.ndarray, "m"],
    *,
    num_orders: int = 8,
) -> AttentionMaps:
    """Attention weights of a decoder-only model while it reads `foods`.

    Args:
        fn: a pure `IngredientGenerator`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: distinct, without padding.
        num_orders: reading orders.

    Raises:
        ValueError: a food outside the vocabulary, or given twice.
    """
    num_foods = molecules.composition.shape[0]
    foods = np.asarray(foods, np.int32)
    check_sets(foods[None], num_foods)
    orders = reading_orders(foods[None], num_foods=num_foods, num_orders=num_orders)[0]
    return _attention_maps(fn, params, molecules, foods, orders)


@functools.partial(jax.jit, static_argnames="fn")
def _attention_maps(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[Array, "m"],
    orders: Int[Array, "o m"],
) -> AttentionMaps:
    model = fn.bind(params)
    read = model.embed(model.embedding(molecules), orders)
    weights = model.stack.weights(read, mask=Mask(causal=True))
    last = weights[:, :, :, -1]
    place = (orders[:, :, None] == foods[None, None]).astype(jnp.float32)
    members = jnp.einsum("loht,otm->lhm", last[..., 1:], place) / len(orders)
    return AttentionMaps(
        weights=weights,
        entropy=jax.vmap(attention_entropy)(weights),
        read=jnp.concatenate([last[..., 0].mean(axis=1)[..., None], members], axis=-1),
    )


class MolecularSimilarity(NamedTuple):
    """What one food has in common with every food.

    Attributes:
        cosine: of standardised composition, over the components known of both; 0 without any.
        shared_compounds: flavour compounds of both; 0 where either food's are unknown.
    """

    cosine: Float32[Array, "v"]
    shared_compounds: Int32[Array, "v"]


def molecular_similarity(molecules: Molecules, food: int) -> MolecularSimilarity:
    """Compare the molecules of `food` with those of all foods."""
    values, observed = jnp.asarray(molecules.composition), jnp.asarray(molecules.observed)
    dot = (values * observed) @ (values[food] * observed[food])
    squares = ((values**2 * observed) @ observed[food]) * (observed @ (values**2 * observed)[food])
    shared = jnp.asarray(molecules.flavour) @ molecules.flavour[food]
    return MolecularSimilarity(
        cosine=dot * jax.lax.rsqrt(jnp.maximum(squares, 1e-12)),
        shared_compounds=jnp.round(shared).astype(jnp.int32),
    )


class Substitutes(NamedTuple):
    """Every food of the vocabulary in place of one food of a set.

    Attributes:
        score: `probability * max(cosine, 0)**2`: fits the rest and is made of similar molecules,
            which counts twice; zero for the food itself and for the rest.
        probability: of the next food after the rest; that of the replaced food is the yardstick.
        similarity: to the replaced food.
    """

    score: Float32[np.ndarray, "v"]
    probability: Float32[np.ndarray, "v"]
    similarity: MolecularSimilarity


def substitutes(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[np.ndarray, "m"],
    replaced: int,
    *,
    num_orders: int = 8,
) -> Substitutes:
    """What could stand in `foods` in place of `replaced`.

    The probability alone proposes what goes with the rest, whatever its role; the similarity alone
    what is alike, wanted or not.

    Args:
        fn: a pure `SetDecoder`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: the set, `replaced` among them.
        replaced: the food to do without.
        num_orders: reading orders to average over.

    Raises:
        ValueError: `replaced` is not in the set, or a food outside the vocabulary or given twice.
    """
    rest = _without(foods, replaced)
    probability = next_food_probabilities(fn, params, molecules, rest[None], num_orders=num_orders)[
        0
    ]
    similarity = molecular_similarity(molecules, replaced)
    score = probability * np.maximum(np.asarray(similarity.cosine), 0.0) ** 2
    score[replaced] = 0.0
    return Substitutes(score, probability, similarity)


class ReplacementEffects(NamedTuple):
    """What changes when a food of a set is replaced; row `i` is about candidate `i`.

    Attributes:
        foods: the sets with the candidate in the place of the replaced food.
        next_before: probabilities of the next food after the set as it was.
        next_after: the same after each new set.
        proportions_before: each member's share of the weight; None without a model of amounts.
        proportions_after: the same of each new set.
    """

    foods: Int32[np.ndarray, "n m"]
    next_before: Float32[np.ndarray, "v"]
    next_after: Float32[np.ndarray, "n v"]
    proportions_before: Float32[np.ndarray, "m"] | None
    proportions_after: Float32[np.ndarray, "n m"] | None


def replacement_effects(
    fn: PureModule[Any],
    params: Params,
    molecules: Molecules,
    foods: Int[np.ndarray, "m"],
    replaced: int,
    candidates: Int[np.ndarray, "n"],
    *,
    proportions: ProportionsFn | None = None,
    num_orders: int = 8,
) -> ReplacementEffects:
    """How other proposals and the amounts move when `replaced` gives way to each candidate.

    Args:
        fn: a pure `SetDecoder`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: the set, `replaced` among them.
        replaced: the food to do without.
        candidates: foods that are not in the set.
        proportions: a model of amounts, as a function of foods and their counts.
        num_orders: reading orders to average over.

    Raises:
        ValueError: see `substitutes`; or a candidate that is in the set.
    """
    _without(foods, replaced)
    before = np.asarray(foods, np.int32)[None]
    after = np.where(before == replaced, np.asarray(candidates, np.int32)[:, None], before)
    sets = np.concatenate([before, after])
    probabilities = next_food_probabilities(fn, params, molecules, sets, num_orders=num_orders)
    shares: Any = None
    if proportions is not None:
        shares = np.asarray(proportions(sets, np.full(len(sets), sets.shape[1], np.int32)))
    return ReplacementEffects(
        foods=after,
        next_before=probabilities[0],
        next_after=probabilities[1:],
        proportions_before=None if shares is None else shares[0],
        proportions_after=None if shares is None else shares[1:],
    )


class Pairings(NamedTuple):
    """Which foods the molecules of one food favour.

    Attributes:
        lift: log-odds of each food after this food less those after the mean food vector, in nats;
            0 for the food itself.
        probability: of each food after this food.
        similarity: to this food.
    """

    lift: Float32[np.ndarray, "v"]
    probability: Float32[np.ndarray, "v"]
    similarity: MolecularSimilarity


def pairings(fn: PureModule[Any], params: Params, molecules: Molecules, food: int) -> Pairings:
    """What the model would add to `food` alone, knowing nothing of it but its molecules.

    Every food's learned residual, and its pairs, are replaced by the mean of them all, where foods
    are read and where they are chosen.  Popularity is in both terms of the lift and cancels.

    Args:
        fn: a pure `SetDecoder` whose `embedding` is a `FoodEmbedding`.
        params: its parameters.
        molecules: of the `v` foods.
        food: the food given.

    Raises:
        ValueError: a food outside the vocabulary, or a model without molecular sources.
    """
    check_sets(np.array([[food]], np.int32), molecules.composition.shape[0])
    if params["embedding"].keys() <= _LEARNED:
        raise ValueError("pairings need a model with molecular sources; its only one is 'learned'")
    lift, log_probabilities = _pairings(fn, params, molecules, np.int32(food))
    probability = np.exp(np.asarray(log_probabilities))
    return Pairings(np.asarray(lift), probability, molecular_similarity(molecules, food))


@functools.partial(jax.jit, static_argnames="fn")
def _pairings(
    fn: PureModule[Any], params: Params, molecules: Molecules, food: Int[Array, ""]
) -> tuple[Float32[Array, "v"], Float32[Array, "v"]]:
    embedding = dict(params["embedding"])
    for name in _LEARNED & embedding.keys():
        mean = embedding[name].mean(axis=0)
        embedding[name] = jnp.broadcast_to(mean, embedding[name].shape)
    model = fn.bind({**params, "embedding": embedding})
    table = model.embedding(molecules)
    given = next_food_log_probabilities(model, table, food[None, None])
    neutral = table.at[food].set(table.mean(axis=0))
    average = next_food_log_probabilities(model, neutral, food[None, None])
    choices = jnp.arange(len(table))
    odds = jax.vmap(log_odds, in_axes=(None, 0))
    lift = odds(given, choices) - odds(average, choices)
    return jnp.where(choices == food, 0.0, lift), given


def _without(foods: Int[np.ndarray, "m"], replaced: int) -> Int32[np.ndarray, "m_less_one"]:
    if replaced not in foods:
        raise ValueError(f"replaced={replaced} must be one of the given foods {foods.tolist()}")
    return foods[foods != replaced].astype(np.int32)
