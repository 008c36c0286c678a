"""Any generator as one function: required foods and rules in, sets of foods out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from recipe_jax.beam_search import BeamSearch, beam_search
from recipe_jax.decoding import Sampling, SetConstraint, sample_sets
from recipe_jax.huggingface import LoadedModel
from recipe_jax.joint_decoding import sample_recipes
from recipe_jax.mask_predict import sample_masked_sets

GENERATORS = (
    "ingredient_generator",
    "encoder_decoder_generator",
    "masked_set_generator",
    "joint_recipes",
)
"""Model types that generate foods."""

DEFAULT_PASSES = 8
_PLAIN = Sampling()


class DrawnSets(NamedTuple):
    """Sets of foods, and what else the model said of them.

    Attributes:
        foods: required ones first, then what was chosen, then padding (index `v`).
        lengths: foods per row.
        grams: of each food, where the model drew them together with the foods; else None.
        log_probability: of the choices; None where they have no order and so no closed form.
    """

    foods: Int[np.ndarray, "b m"]
    lengths: Int[np.ndarray, "b"]
    grams: Float[np.ndarray, "b m"] | None
    log_probability: Float[np.ndarray, "b"] | None


def draw_sets(
    model: LoadedModel,
    required: list[int],
    count: int,
    *,
    constraint: SetConstraint,
    seed: int,
    sampling: Sampling = _PLAIN,
    num_passes: int = DEFAULT_PASSES,
    num_beams: int | None = None,
) -> DrawnSets:
    """Draw sets that hold the required foods and obey the rules.

    Args:
        model: one of `GENERATORS`.
        required: distinct foods that every set holds.
        count: sets; fewer come where a search finds fewer.
        constraint: what every set must obey.
        seed: of every draw.
        sampling: how a food is drawn.
        num_passes: of a masked-set generator, which draws all foods at once and then revises.
        num_beams: search for the most probable sets instead, and keep so many at a time.  Where
            grams could be drawn too, the search is over foods of unknown amounts.

    Raises:
        ValueError: no generator, fewer than 1 pass, or a search where there is no order to search.
    """
    if model.model_type not in GENERATORS:
        raise ValueError(f"model_type={model.model_type!r} must be one of {GENERATORS}")
    if num_passes < 1:
        raise ValueError(f"--passes {num_passes} must be at least 1")
    v, size = len(model.foods), model.cfg.max_foods
    parts = model.fn, model.params, model.molecules
    prompt = np.full((count, size), v, np.int32)
    prompt[:, : len(required)] = required
    prompts = jnp.asarray(prompt), jnp.full(count, len(required), jnp.int32)
    key = jax.random.key(seed)
    if num_beams is not None:
        return _search(model, prompts, count, constraint, num_beams)
    if model.model_type == "masked_set_generator":
        masked = sample_masked_sets(
            *parts, *prompts, key, num_passes=num_passes, constraint=constraint, sampling=sampling
        )
        return DrawnSets(np.asarray(masked.foods), np.asarray(masked.lengths), None, None)
    if model.model_type == "joint_recipes":
        recipes = sample_recipes(*parts, *prompts, key, constraint=constraint, sampling=sampling)
        return DrawnSets(
            np.asarray(recipes.foods),
            np.asarray(recipes.lengths),
            np.asarray(recipes.grams),
            np.asarray(recipes.log_probability),
        )
    sets = sample_sets(*parts, *prompts, key, constraint=constraint, sampling=sampling)
    return DrawnSets(
        np.asarray(sets.foods), np.asarray(sets.lengths), None, np.asarray(sets.log_probability)
    )


def _search(
    model: LoadedModel,
    prompts: tuple[jax.Array, jax.Array],
    count: int,
    constraint: SetConstraint,
    num_beams: int,
) -> DrawnSets:
    if model.model_type == "masked_set_generator":
        raise ValueError("--beams: a masked-set generator has no order to search; leave it out")
    if num_beams < count:
        raise ValueError(
            f"--beams {num_beams} must be at least the {count} sets that are asked for"
        )
    found = beam_search(
        model.fn,
        model.params,
        model.molecules,
        *(rows[:1] for rows in prompts),
        constraint=constraint,
        search=BeamSearch(num_beams=num_beams),
    )
    exist = np.isfinite(found.log_probability[0])
    foods, lengths, logs = (
        np.asarray(rows[0])[exist][:count]
        for rows in (found.foods, found.lengths, found.log_probability)
    )
    return DrawnSets(foods, lengths, None, logs)


def make_constraint(
    allowed: Bool[np.ndarray, "v"], *, min_foods: int, max_foods: int
) -> SetConstraint:
    """A constraint from plain numbers."""
    return SetConstraint(
        allowed=jnp.asarray(allowed),
        min_foods=jnp.asarray(min_foods, jnp.int32),
        max_foods=jnp.asarray(max_foods, jnp.int32),
    )


def generate_sets(
    model: LoadedModel,
    count: int,
    *,
    seed: int,
    min_foods: int = 3,
    num_passes: int = DEFAULT_PASSES,
) -> Int[np.ndarray, "n m"]:
    """Recipes from nothing: foods, padded with the vocabulary's size."""
    everything = np.ones(len(model.foods), bool)
    rules = make_constraint(everything, min_foods=min_foods, max_foods=model.cfg.max_foods)
    drawn = draw_sets(model, [], count, constraint=rules, seed=seed, num_passes=num_passes)
    return drawn.foods
