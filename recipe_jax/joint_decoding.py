"""Decoding of the joint model: whole recipes with grams, and the grams of a given set.

Required foods come first, their grams drawn like any other; then foods and grams take turns until
the end is chosen.  Foods obey the constraints of `decoding`; grams are drawn as the model says.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules
from recipe_jax.decoding import Sampling, SetConstraint, choose, constrain
from recipe_jax.models.autoregressive_amounts import SAMPLES_AT_ONCE, random_order
from recipe_jax.models.gram_bins import draw_grams
from recipe_jax.models.joint_recipes import JointRecipes
from recipe_jax.models.simplex import member_mask, shares

_PLAIN = Sampling()
_NEVER = jnp.finfo(jnp.float32).min


class DecodedRecipes(NamedTuple):
    """Decoded recipes.

    Attributes:
        foods: prompt first, then what was chosen, then padding (index `v`).
        grams: of each food; zero at padding.
        lengths: foods per row.
        log_probability: of the foods after the prompt, the end included, given the grams drawn
            before them; with repeats and constraints masked, before temperature, top-k and top-p.
    """

    foods: Int[Array, "b m"]
    grams: Float32[Array, "b m"]
    lengths: Int[Array, "b"]
    log_probability: Float32[Array, "b"]


class _State(NamedTuple):
    recipes: DecodedRecipes
    done: Bool[Array, "b"]
    chosen: Bool[Array, "b v"]
    states: Float[Array, "b e"]
    cache: Any
    key: PRNGKeyArray


@functools.partial(jax.jit, static_argnames=("fn", "sampling"))
def sample_recipes(
    fn: Any,
    params: Any,
    molecules: Molecules,
    prompt: Int[Array, "b m"],
    prompt_lengths: Int[Array, "b"],
    key: PRNGKeyArray,
    *,
    constraint: SetConstraint,
    sampling: Sampling = _PLAIN,
) -> DecodedRecipes:
    """Draw recipes, one pair of food and grams at a time, until every row has chosen its end.

    Args:
        fn: a pure `JointRecipes`.
        params: its parameters.
        molecules: of the `v` foods.
        prompt: required foods, then padding (index `v`); `m` is the longest recipe there can be.
        prompt_lengths: foods in each prompt; may be 0.
        key: random key.
        constraint: what every set must obey; `max_foods` above `m` counts as `m`.
        sampling: how a food is drawn.

    Raises:
        ValueError: if `m` is above the model's `max_foods`.
    """
    model = fn.bind(params)
    b, m = prompt.shape
    if m > model.cfg.max_foods:
        raise ValueError(f"{m} foods a row must be at most the model's {model.cfg.max_foods}")
    table = model.embedding(molecules)
    v = table.shape[0]
    limits = constraint._replace(max_foods=jnp.minimum(constraint.max_foods, m))
    states, cache = model.start(table, b, m)
    empty = DecodedRecipes(
        foods=jnp.full_like(prompt, v),
        grams=jnp.zeros((b, m)),
        lengths=jnp.zeros_like(prompt_lengths),
        log_probability=jnp.zeros(b),
    )
    required = prompt[:, :, None] == jnp.arange(v)[None, None]
    state = _State(empty, jnp.zeros(b, bool), required.any(axis=1), states, cache, key)

    def step(state: _State) -> _State:
        lengths = state.recipes.lengths
        key, food_key, gram_key = jax.random.split(state.key, 3)
        logits = model.generator.logits(table, state.states[:, None])[:, 0]
        logits = constrain(logits, state.chosen, lengths, limits)
        choice = choose(logits, sampling, food_key)
        cost = _pick(jax.nn.log_softmax(logits, axis=-1), choice)
        given = lengths < prompt_lengths
        choice = jnp.where(given, _pick(prompt, jnp.minimum(lengths, m - 1)), choice)
        grams = draw_grams(model.gram_logits(table, state.states, choice), gram_key, model.cfg.bins)
        cost = jnp.where(given, 0.0, cost)
        return _append(model, table, state._replace(key=key), choice, grams, cost)

    return jax.lax.while_loop(lambda state: ~state.done.all(), step, state).recipes


def _append(
    model: JointRecipes,
    table: Float[Array, "v e"],
    state: _State,
    choice: Int[Array, "b"],
    grams: Float32[Array, "b"],
    cost: Float32[Array, "b"],
) -> _State:
    """Add a pair to each row, unless the row is done or its choice is the end."""
    v, recipes = table.shape[0], state.recipes
    done = state.done | (choice == v)
    added = jnp.where(done, v, choice)
    states, cache = model.read_pair(table, added, grams, ~done, state.cache)
    rows = jnp.arange(added.shape[0])
    place = jnp.where(done, recipes.foods.shape[1], recipes.lengths)
    return state._replace(
        recipes=DecodedRecipes(
            foods=recipes.foods.at[rows, place].set(added, mode="drop"),
            grams=recipes.grams.at[rows, place].set(grams, mode="drop"),
            lengths=recipes.lengths + ~done,
            log_probability=recipes.log_probability + jnp.where(state.done, 0.0, cost),
        ),
        done=done,
        chosen=state.chosen.at[rows, added].set(True, mode="drop"),
        states=states,
        cache=cache,
    )


@functools.partial(jax.jit, static_argnames=("fn", "num_samples", "num_particles"))
def sample_proportions(
    fn: Any,
    params: Any,
    molecules: Molecules,
    foods: Int[Array, "b m"],
    lengths: Int[Array, "b"],
    key: PRNGKeyArray,
    *,
    num_samples: int,
    num_particles: int = 4,
) -> Float32[Array, "samples b m"]:
    """Draw the compositions of given sets, each sample in a random order of its own.

    When the model draws a food's grams it has not read the foods that follow, but the set is known
    to hold them.  Of `num_particles` draws one is therefore kept with odds of the probability that
    it gives to the foods that followed and to the end: sampling-importance-resampling (Rubin 1988),
    which tends to the model's distribution of grams given the whole set as particles grow.  With
    one particle the foods to come are ignored.

    Args:
        fn: a pure `JointRecipes`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: members first, then padding (index `v`); `m` may be above the model's `max_foods`.
        lengths: members per set.
        key: random key.
        num_samples: draws per set.
        num_particles: draws that each sample is kept from.
    """
    model = fn.bind(params)
    table = model.embedding(molecules)
    members = member_mask(lengths, foods.shape[1])

    def draw(key: PRNGKeyArray) -> jax.Array:
        order_key, keep_key, key = jax.random.split(key, 3)
        order = random_order(members, order_key)
        ordered = jnp.take_along_axis(foods, order, axis=1)
        grams, odds = jax.vmap(lambda key: _weigh(model, table, ordered, lengths, key))(
            jax.random.split(key, num_particles)
        )
        kept = jax.random.categorical(keep_key, odds, axis=0)
        grams = jnp.take_along_axis(grams, kept[None, :, None], axis=0)[0]
        return jnp.where(members, jnp.take_along_axis(grams, jnp.argsort(order, axis=1), axis=1), 0)

    keys = jax.random.split(key, num_samples)
    at_once = max(1, min(SAMPLES_AT_ONCE // num_particles, num_samples))
    return shares(jax.lax.map(draw, keys, batch_size=at_once))


def _weigh(
    model: JointRecipes,
    table: Float[Array, "v e"],
    foods: Int[Array, "b m"],
    lengths: Int[Array, "b"],
    key: PRNGKeyArray,
) -> tuple[Float32[Array, "b m"], Float32[Array, "b"]]:
    """Grams of the foods in this order, and the log probability of the foods and the end."""
    b, v = foods.shape[0], table.shape[0]
    with_end = jnp.concatenate([foods, jnp.full((b, 1), v, foods.dtype)], axis=1)

    def step(carry: Any, place: jax.Array) -> tuple[Any, jax.Array]:
        states, cache, chosen, odds, key = carry
        key, here = jax.random.split(key)
        food, reads = with_end[:, place], place < lengths
        logits = model.generator.logits(table, states[:, None])[:, 0]
        logits = jnp.where(jnp.pad(chosen, ((0, 0), (0, 1))), _NEVER, logits)
        cost = _pick(jax.nn.log_softmax(logits, axis=-1), food)
        grams = draw_grams(model.gram_logits(table, states, food), here, model.cfg.bins)
        states, cache = model.read_pair(table, food, grams, reads, cache)
        chosen = chosen | (food[:, None] == jnp.arange(v)[None])
        odds = odds + jnp.where(place <= lengths, cost, 0.0)
        return (states, cache, chosen, odds, key), grams

    states, cache = model.start(table, b, with_end.shape[1])
    start = (states, cache, jnp.zeros((b, v), bool), jnp.zeros(b), key)
    (_, _, _, odds, _), grams = jax.lax.scan(step, start, jnp.arange(with_end.shape[1]))
    return grams[:-1].T, odds


def _pick(values: jax.Array, index: Int[Array, "b"]) -> jax.Array:
    """One entry a row."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
