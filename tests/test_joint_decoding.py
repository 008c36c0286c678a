"""Recipes from the joint model: foods obey the constraints, grams belong to members only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close
from two_cakes import EMBEDDING, MOLECULES, TRANSFORMER, V, build, butter_ratio, fit, padded

from recipe_jax.decoding import Sampling, SetConstraint
from recipe_jax.joint_decoding import sample_proportions, sample_recipes
from recipe_jax.models.joint_recipes import JointRecipes, JointRecipesConfig, joint_loss
from recipe_jax.models.simplex import member_mask

CFG = JointRecipesConfig(embedding=EMBEDDING, transformer=TRANSFORMER, max_foods=5)
ALLOWED = jnp.arange(V) != 3
ANY = SetConstraint(ALLOWED, jnp.array(2), jnp.array(4))


@functools.cache
def model():
    return build(lambda: JointRecipes(CFG, rngs=nnx.Rngs(0)))


@functools.cache
def trained():
    """Food 0 beside food 1 is 100 g of each; beside food 2 it is 10 g in 100."""
    fn, params = build(lambda: JointRecipes(CFG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)

    def batch():
        kinds, order = rng.integers(0, 2, 64), rng.permuted([[0, 1]] * 64, axis=1)
        foods = np.stack([np.zeros(64, int), 1 + kinds], axis=1)
        grams = np.stack([np.where(kinds, 10.0, 100.0), np.full(64, 100.0)], axis=1)
        return padded(np.take_along_axis(foods, order, 1), 2, np.take_along_axis(grams, order, 1))

    def loss(params, batch, key):
        logits = fn.bind(params)(MOLECULES, batch.foods, batch.grams, key=key)
        return joint_loss(logits, batch, bins=CFG.bins).total.mean()

    return fn, fit(params, loss, [batch() for _ in range(250)])


@functools.partial(jax.jit, static_argnums=0)
def food_logits(fn, params, recipes):
    return fn.bind(params)(MOLECULES, recipes.foods, recipes.grams).foods


def draw(prompts, size=5, constraint=ANY, **options):
    prompt = padded(prompts, size)
    return prompt, sample_recipes(
        *model(),
        MOLECULES,
        prompt.foods,
        prompt.lengths,
        jax.random.key(2),
        constraint=constraint,
        **options,
    )


PROMPTS = [[], [1], [6, 0], [2, 5, 4]] * 32


@functools.cache
def drawn():
    return draw(PROMPTS)


def test_foods_obey_the_constraint_and_the_prompt_comes_first():
    _, recipes = drawn()
    rows = zip(PROMPTS, np.asarray(recipes.foods), np.asarray(recipes.lengths), strict=True)
    for prompt, foods, length in rows:
        row = foods[:length].tolist()
        assert row[: len(prompt)] == prompt
        assert len(set(row)) == length and 2 <= length <= 4
        assert 3 not in row and V not in row
        assert (foods[length:] == V).all()


def test_members_have_grams_and_padding_has_none():
    _, recipes = drawn()
    members = np.asarray(member_mask(recipes.lengths, 5))
    grams = np.asarray(recipes.grams)
    assert (grams[members] >= CFG.bins.min_grams).all()
    assert (grams[~members] == 0).all()
    assert np.unique(grams[members]).size > 0.95 * members.sum()


def test_the_log_probability_is_that_of_the_forward_pass():
    prompt, recipes = drawn()
    logits = np.asarray(food_logits(*model(), recipes), np.float64)
    expected = []
    for row, (given, length) in enumerate(zip(prompt.lengths, recipes.lengths, strict=True)):
        total = 0.0
        foods = np.asarray(recipes.foods[row])
        for place in range(int(given), int(length) + 1):
            allowed = np.append(np.asarray(ALLOWED) & (place < 4), place >= 2)
            allowed[foods[:place]] = False
            scores = np.where(allowed, logits[row, place], -np.inf)
            choice = foods[place] if place < length else V
            total += scores[choice] - np.log(np.exp(scores).sum())
        expected.append(total)
    assert_close(recipes.log_probability, np.array(expected))


def test_a_cold_temperature_takes_the_most_probable_food():
    _, recipes = draw([[1]] * 8, sampling=Sampling(temperature=0.0))
    first = np.asarray(recipes.foods[:, 0])
    assert (first == 1).all()
    logits = food_logits(*model(), recipes)[:, 1]
    allowed = np.append(np.asarray(ALLOWED), False)
    allowed[1] = False
    best = np.where(allowed, np.asarray(logits), -np.inf).argmax(axis=-1)
    assert (np.asarray(recipes.foods[:, 1]) == best).all()


def test_proportions_sum_to_one_and_padding_gets_nothing():
    sets = padded([[4, 0, 2, 5], [1, 6], [3]], 5)
    samples = sample_proportions(
        *model(), MOLECULES, sets.foods, sets.lengths, jax.random.key(0), num_samples=4
    )
    members = np.asarray(member_mask(sets.lengths, 5))
    assert_close(samples.sum(axis=-1), jnp.ones((4, 3)))
    assert (np.asarray(samples)[:, members] > 0).all()
    assert (np.asarray(samples)[:, ~members] == 0).all()


def test_particles_bring_the_foods_to_come_into_the_grams():
    sets = padded([[0, 1]], 2)
    shares = {}
    for particles in (1, 16):
        samples = sample_proportions(
            *trained(),
            MOLECULES,
            sets.foods,
            sets.lengths,
            jax.random.key(0),
            num_samples=160,
            num_particles=particles,
        )
        shares[particles] = np.mean(np.abs(butter_ratio(samples)) < 0.5)
    # Drawn before food 1 is read, food 0 is 10 g half of the time: wrong in a quarter of draws.
    assert 0.6 < shares[1] < 0.9
    assert shares[16] > 0.95


def test_a_recipe_longer_than_the_model_allows_is_refused():
    with pytest.raises(ValueError, match=r"7 foods a row must be at most the model's 5"):
        draw([[1]], size=7)


def test_given_sets_are_weighed_whatever_their_size():
    sets = padded([[0, 1, 2, 3, 4, 5, 6], [5, 0]], 7)
    samples = sample_proportions(
        *model(), MOLECULES, sets.foods, sets.lengths, jax.random.key(0), num_samples=2
    )
    assert_close(samples.sum(axis=-1), jnp.ones((2, 2)))
    assert (np.asarray(samples[:, 0]) > 0).all()
