"""Masked sets: only visible foods are read, hidden ones are alike, and their number is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from tolerances import assert_close

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.masked_set_generator import (
    MaskedLogits,
    MaskedSetConfig,
    MaskedSetGenerator,
    masked_set_loss,
    visible_counts,
)

V, M, E = 9, 5, 8
LOSS = jax.jit(masked_set_loss)
LOWEST = np.finfo(np.float32).min
RNG = np.random.default_rng(1)
MOLECULES = Molecules(
    jnp.asarray(RNG.normal(size=(V, 3)), jnp.float32),
    jnp.ones((V, 3)),
    jnp.ones((V, 4)),
    jnp.ones(V),
)
CFG = MaskedSetConfig(
    embedding=FoodEmbeddingConfig(num_foods=V, num_components=3, num_compounds=4, embed_dim=E),
    transformer=TransformerConfig(num_layers=2, embed_dim=E, num_heads=2),
    max_foods=M,
)
FOODS = jnp.array([[3, 1, 7, 0, 5], [2, 8, 4, V, V]], jnp.int32)
LENGTHS = jnp.array([5, 3], jnp.int32)
VISIBLE = jnp.array([[1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], bool)
HIDDEN = jnp.array([2, 1], jnp.int32)


@pytest.fixture(scope="module")
def model():
    fn, params = draw_parameters(lambda rngs: MaskedSetGenerator(CFG, rngs=rngs))

    @jax.jit
    def read(foods, visible, hidden):
        return fn.bind(params)(MOLECULES, foods, visible, hidden)

    return fn, params, read


def batch_of(foods, lengths):
    return RecipeBatch(foods, lengths, jnp.zeros(foods.shape))


def random_logits(b=1):
    foods, sizes = RNG.normal(size=(b, V)), RNG.normal(size=(b, M + 1))
    return MaskedLogits(jnp.asarray(foods, jnp.float32), jnp.asarray(sizes, jnp.float32))


def test_neither_order_nor_place_of_the_visible_foods_matters(model):
    read = model[2]
    order = jnp.array([4, 3, 0, 2, 1])
    assert_close(
        read(FOODS[:, order], VISIBLE[:, order], HIDDEN),
        read(FOODS, VISIBLE, HIDDEN),
    )
    changed = read(FOODS.at[0, 2].set(6), VISIBLE, HIDDEN)
    assert np.abs(changed.foods - read(FOODS, VISIBLE, HIDDEN).foods)[0].max() > 1e-3


def test_what_is_hidden_is_never_read(model):
    read = model[2]
    before = read(FOODS, VISIBLE, HIDDEN)
    after = read(jnp.where(VISIBLE, FOODS, (FOODS + 1) % V), VISIBLE, HIDDEN)
    for got, expected in zip(after, before, strict=True):
        assert (got == expected).all()


def test_hidden_places_and_padding_are_as_if_they_were_not_there(model):
    read = model[2]
    among_hidden = read(FOODS[:1], VISIBLE[:1], HIDDEN[:1])
    alone = read(FOODS[:1, ::2], VISIBLE[:1, ::2], HIDDEN[:1])
    assert_close(among_hidden, alone)


def test_the_number_of_hidden_foods_reaches_the_foods_but_not_its_own_prediction(model):
    read = model[2]
    before, after = read(FOODS, VISIBLE, HIDDEN), read(FOODS, VISIBLE, HIDDEN + 1)
    assert (after.sizes == before.sizes).all()
    assert (np.abs(after.foods - before.foods).max(axis=1) > 1e-3).all()


def test_sizes_for_which_there_is_no_room_are_impossible(model):
    sizes = model[2](FOODS, VISIBLE, HIDDEN).sizes
    possible = np.asarray(sizes) > LOWEST
    assert possible.tolist() == [[True] * 3 + [False] * 3] * 2  # three are visible in each


def test_completion_never_proposes_what_is_given(model):
    fn, params, read = model
    complete = jax.jit(
        lambda foods, lengths: fn.bind(params).completion_logits(MOLECULES, foods, lengths)
    )
    found = np.asarray(complete(FOODS, LENGTHS))
    for row in range(2):
        given = FOODS[row, : LENGTHS[row]].tolist()
        assert set(np.flatnonzero(found[row] == LOWEST)) == set(given)
    one = read(FOODS, jnp.arange(M)[None] < LENGTHS[:, None], jnp.ones(2, jnp.int32)).foods
    kept = found > LOWEST
    assert (found[kept] == np.asarray(one)[kept]).all()


def test_the_loss_is_uniform_over_what_is_hidden_and_counts_it():
    logits = random_logits(b=2)
    given = jnp.array([2, 3], jnp.int32)
    terms = LOSS(logits, batch_of(FOODS, LENGTHS), given)
    for row in range(2):
        n, j = int(LENGTHS[row]), int(given[row])
        foods = FOODS[row, :n].tolist()
        x = np.asarray(logits.foods, np.float64)[row]
        sizes = np.asarray(logits.sizes, np.float64)[row]
        free = [food for food in range(V) if food not in foods[:j]]
        cost = np.logaddexp.reduce(x[free]) - x[foods[j:]].mean() if j < n else 0.0
        size = np.logaddexp.reduce(sizes) - sizes[n - j]
        np.testing.assert_allclose(terms.size[row], size, rtol=1e-5)
        np.testing.assert_allclose(terms.total[row], (n + 1) * cost + size, rtol=1e-5)
        assert terms.choices[row] == n + 1


def test_one_draw_is_an_unbiased_estimate_of_the_cost_of_a_recipe_in_random_order():
    """The mean over all numbers of visible foods is the sum over all numbers of hidden ones."""
    logits = random_logits()
    batch = batch_of(FOODS[1:], LENGTHS[1:])
    draws = [LOSS(logits, batch, jnp.array([j], jnp.int32)) for j in range(4)]
    foods = [float((t.total - t.size)[0]) for t in draws]
    x = np.asarray(logits.foods, np.float64)[0]
    members = FOODS[1, :3].tolist()
    by_hand = 0.0
    for j in range(3):
        free = [food for food in range(V) if food not in members[:j]]
        by_hand += np.logaddexp.reduce(x[free]) - x[members[j:]].mean()
    np.testing.assert_allclose(np.mean(foods), by_hand, rtol=1e-5)


def test_padding_and_visible_foods_are_in_no_loss():
    logits, given = random_logits(), jnp.array([1], jnp.int32)
    padded, short = batch_of(FOODS[1:], LENGTHS[1:]), batch_of(FOODS[1:, :3], LENGTHS[1:])
    for got, expected in zip(LOSS(logits, padded, given), LOSS(logits, short, given), strict=True):
        assert (got == expected).all()
    gradient = jax.grad(lambda x: LOSS(logits._replace(foods=x), padded, given).total.sum())(
        logits.foods
    )
    assert gradient[0, 2] == 0  # visible: it cannot be hidden too
    assert (jnp.delete(gradient[0], 2) != 0).all()


def test_a_complete_recipe_teaches_its_size_only():
    logits = random_logits()
    terms = LOSS(logits, batch_of(FOODS[1:], LENGTHS[1:]), LENGTHS[1:])
    assert (terms.total == terms.size).all()
    gradient = jax.grad(
        lambda x: LOSS(
            logits._replace(foods=x), batch_of(FOODS[1:], LENGTHS[1:]), LENGTHS[1:]
        ).total.sum()
    )(logits.foods)
    assert (gradient == 0).all()


def test_every_number_of_visible_foods_is_drawn_equally_often():
    drawn = np.asarray(visible_counts(jax.random.key(0), jnp.full(8000, 3, jnp.int32)))
    counts = np.bincount(drawn, minlength=4)
    assert len(counts) == 4
    assert np.abs(counts / 8000 - 1 / 4).max() < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_foods": 0}, "max_foods=0"),
        (
            {"transformer": TransformerConfig(num_layers=1, embed_dim=6, num_heads=2)},
            "embed_dim=8 must equal transformer.embed_dim=6",
        ),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    fields = {"embedding": CFG.embedding, "transformer": CFG.transformer}
    with pytest.raises(ValueError, match=message):
        MaskedSetConfig(**fields | change)
