"""The joint model: pairs of food and grams, nothing later seen, unknown amounts allowed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close
from two_cakes import EMBEDDING, MOLECULES, TRANSFORMER, E, V, build, padded

from recipe_jax.decoding import SetDecoder
from recipe_jax.functional import abstract
from recipe_jax.models.gram_bins import gram_log_density
from recipe_jax.models.ingredient_generator import remaining_set_loss
from recipe_jax.models.joint_recipes import JointRecipes, JointRecipesConfig, joint_loss
from recipe_jax.models.simplex import member_mask

CFG = JointRecipesConfig(
    embedding=EMBEDDING,
    transformer=dataclasses.replace(TRANSFORMER, num_layers=2),
    max_foods=6,
)
BATCH = padded([[4, 0, 2, 5], [1, 6], [3]], 5, [[10.0, 200.0, 5.0, 80.0], [3.0, 400.0], [250.0]])


@functools.cache
def model(cfg=CFG):
    return build(lambda: JointRecipes(cfg, rngs=nnx.Rngs(0)))


@functools.partial(jax.jit, static_argnums=0)
def run(fn, params, batch, key=None):
    return fn.bind(params)(MOLECULES, batch.foods, batch.grams, key=key)


@functools.partial(jax.jit, static_argnums=0)
def gradient_and_terms(fn, params, batch):
    def loss(params):
        terms = joint_loss(run(fn, params, batch), batch, bins=CFG.bins)
        return terms.total.sum(), terms

    return jax.grad(loss, has_aux=True)(params)


def logits_of(batch, key=None):
    return jax.tree.map(np.asarray, run(*model(), batch, key))


@pytest.mark.parametrize("place", range(4))
def test_grams_are_seen_from_the_next_pair_on_bit_for_bit(place):
    changed = BATCH._replace(grams=BATCH.grams.at[0, place].multiply(7.0))
    before, after = logits_of(BATCH), logits_of(changed)
    np.testing.assert_array_equal(after.grams[0, : place + 1], before.grams[0, : place + 1])
    np.testing.assert_array_equal(after.foods[0, : place + 1], before.foods[0, : place + 1])
    assert np.abs(after.foods[0, place + 1] - before.foods[0, place + 1]).max() > 1e-3
    assert (np.abs(after.grams - before.grams)[0, place + 1 : 4].max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("place", range(4))
def test_a_food_is_seen_by_its_own_grams_and_all_that_follows(place):
    changed = BATCH._replace(foods=BATCH.foods.at[0, place].set(6))
    before, after = logits_of(BATCH), logits_of(changed)
    np.testing.assert_array_equal(after.grams[0, :place], before.grams[0, :place])
    np.testing.assert_array_equal(after.foods[0, : place + 1], before.foods[0, : place + 1])
    assert (np.abs(after.grams - before.grams)[0, place:4].max(axis=-1) > 1e-3).all()


def test_what_is_hidden_in_training_is_what_is_unknown_in_use():
    fn, params = model()
    always = dataclasses.replace(CFG, hidden_rate=0.999999)
    hidden = run(model(always)[0], params, BATCH, jax.random.key(0))
    unknown = jax.jit(lambda p: fn.bind(p).food_logits(MOLECULES, BATCH.foods))(params)
    assert_close(hidden.foods, unknown)
    assert np.abs(np.asarray(unknown) - logits_of(BATCH).foods)[0, 1:].max() > 1e-3
    never = dataclasses.replace(CFG, hidden_rate=0.0)
    assert_close(run(model(never)[0], params, BATCH, jax.random.key(0)), run(fn, params, BATCH))


def test_the_loss_is_that_of_its_parts():
    logits = run(*model(), BATCH)
    terms = joint_loss(logits, BATCH, bins=CFG.bins)
    foods = remaining_set_loss(logits.foods, BATCH)
    assert_close(terms.foods, foods.total)
    densities = np.asarray(gram_log_density(logits.grams, jnp.maximum(BATCH.grams, 1e-3), CFG.bins))
    expected = [-densities[row, :length].sum() for row, length in enumerate([4, 2, 1])]
    assert_close(terms.grams, np.array(expected))
    assert_close(terms.total, terms.foods + terms.grams)
    assert_close(terms.choices, jnp.array([5.0, 3.0, 2.0]))
    assert_close(terms.weighed, jnp.array([4.0, 2.0, 1.0]))


def test_a_recipe_without_amounts_teaches_foods_and_no_histogram():
    unweighed = BATCH._replace(grams=jnp.zeros_like(BATCH.grams))
    gradient, terms = gradient_and_terms(*model(), unweighed)
    assert_close(terms.grams, jnp.zeros(3))
    assert_close(terms.weighed, jnp.zeros(3))
    assert_close(gradient["head"], jax.tree.map(jnp.zeros_like, gradient["head"]))
    assert_close(gradient["amounts"], jax.tree.map(jnp.zeros_like, gradient["amounts"]))
    for part in (gradient["unknown"], gradient["generator"]["output"]):
        assert np.isfinite(part).all() and np.abs(part).max() > 0


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_padding_may_hold_anything(garbage):
    members = member_mask(BATCH.lengths, 5)
    dirty = BATCH._replace(grams=jnp.where(members, BATCH.grams, garbage))
    gradients, terms = zip(
        *(gradient_and_terms(*model(), batch) for batch in (dirty, BATCH)), strict=True
    )
    assert_close(*terms)
    assert_close(*gradients, kind="gradient")


def test_reading_pair_by_pair_gives_the_logits_of_the_forward_pass():
    fn, params = model()

    @jax.jit
    def decode(params):
        bound = fn.bind(params)
        table = bound.embedding(MOLECULES)
        states, cache = bound.start(table, 3, 4)
        foods, grams = [bound.generator.logits(table, states[:, None])], []
        for place in range(4):
            pair = BATCH.foods[:, place], BATCH.grams[:, place]
            grams.append(bound.gram_logits(table, states, pair[0]))
            reads = place < BATCH.lengths
            states, cache = bound.read_pair(table, *pair, reads, cache)
            foods.append(bound.generator.logits(table, states[:, None]))
        return jnp.concatenate(foods, axis=1), jnp.stack(grams, axis=1)

    foods, grams = map(np.asarray, decode(params))
    whole = logits_of(BATCH)
    for row, length in enumerate([4, 2, 1]):
        assert_close(foods[row, : length + 1], whole.foods[row, : length + 1])
        assert_close(grams[row, :length], whole.grams[row, :length])


def test_a_set_decoder_reads_foods_of_unknown_amounts():
    fn, params = model()

    @jax.jit
    def decode(params):
        bound = fn.bind(params)
        table, cache = bound.embedding(MOLECULES), bound.empty_cache(3)
        start = jnp.full((3, 1), -1)
        first, cache = bound.decode(table, start, jnp.ones(3, jnp.int32), cache)
        rest, _ = bound.decode(table, BATCH.foods, BATCH.lengths, cache)
        return jnp.concatenate([first, rest], axis=1)

    assert isinstance(fn.bind(params), SetDecoder)
    found = np.asarray(decode(params))
    expected = logits_of(BATCH._replace(grams=jnp.zeros_like(BATCH.grams))).foods
    for row, length in enumerate([4, 2, 1]):
        assert_close(found[row, : length + 1], expected[row, : length + 1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding": dataclasses.replace(EMBEDDING, embed_dim=8)}, f"embed_dim=8 .*={E}"),
        ({"hidden_rate": 1.0}, "hidden_rate=1.0"),
        ({"max_foods": 0}, "max_foods=0"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **fields)


def test_foods_are_told_apart_by_molecules_alone_where_nothing_else_is_learned():
    cfg = dataclasses.replace(
        CFG, embedding=dataclasses.replace(EMBEDDING, sources=("composition", "flavour"))
    )
    _, shapes = abstract(lambda: JointRecipes(cfg, rngs=nnx.Rngs(0)))
    assert shapes["head"]["histograms"].shape[0] == 1
    assert model()[1]["head"]["histograms"].shape[0] == V + 1
