import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.batches import Molecules
from recipe_jax.functional import abstract
from recipe_jax.huggingface import RECIPE_MODELS
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.encoder_decoder_generator import EncoderDecoderConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import GeneratorConfig
from recipe_jax.models.joint_recipes import JointRecipesConfig
from recipe_jax.models.masked_set_generator import MaskedSetConfig
from recipe_jax.set_probabilities import (
    check_sets,
    log_odds,
    next_food_probabilities,
    reading_orders,
)

NUM_FOODS = 9


def orders_of(*foods, num_orders=5):
    return reading_orders(np.array(foods, np.int32), num_foods=NUM_FOODS, num_orders=num_orders)


def test_orders_depend_on_the_set_and_not_on_how_it_is_written():
    plain = orders_of([4, 1, 7])[0]
    assert plain.tolist() == orders_of([1, 7, 4])[0].tolist()
    among_others = orders_of([2, 3, 5, 6, 0], [9, 7, 1, 9, 4])[1]
    assert among_others[:, :3].tolist() == plain.tolist()
    assert (among_others[:, 3:] == NUM_FOODS).all()


def test_orders_are_permutations_and_differ():
    orders = orders_of([0, 1, 2, 3, 4, 5], num_orders=20)[0]
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    assert len({tuple(order) for order in orders.tolist()}) > 15


RNG = np.random.default_rng(0)
MOLECULES = Molecules(
    composition=jnp.asarray(RNG.normal(size=(NUM_FOODS, 4)), jnp.float32),
    observed=jnp.ones((NUM_FOODS, 4)),
    flavour=jnp.ones((NUM_FOODS, 2)),
    has_flavour=jnp.ones(NUM_FOODS),
)
SHAPE = {
    "embedding": FoodEmbeddingConfig(
        num_foods=NUM_FOODS, num_components=4, num_compounds=2, embed_dim=16
    ),
    "transformer": TransformerConfig(num_layers=1, embed_dim=16, num_heads=2),
    "max_foods": 5,
}
FOODS = np.array([[3, 8, 1], [6, 9, 9], [9, 9, 9]], np.int32)


def model_of(cfg):
    kinds = {kind: module for kind, module in RECIPE_MODELS.values()}
    fn, shapes = abstract(lambda: kinds[type(cfg)](cfg, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    return fn, jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, jnp.float32), shapes
    )


def assert_probabilities(found, foods, logits):
    """`logits` of each row, one row or several to average over."""
    for row, (given, scores) in enumerate(zip(foods, logits, strict=True)):
        free = ~np.isin(np.arange(NUM_FOODS), given)
        expected = jax.nn.softmax(np.where(free, scores, -np.inf), axis=-1)
        assert_close(found[row], np.asarray(expected).reshape(-1, NUM_FOODS).mean(axis=0))
        assert (found[row] == 0).tolist() == (~free).tolist()


@pytest.mark.parametrize("config", [GeneratorConfig, JointRecipesConfig])
def test_probabilities_are_the_mean_over_orders_of_the_models_own(config):
    fn, params = model_of(config(**SHAPE))
    found = next_food_probabilities(fn, params, MOLECULES, FOODS, num_orders=4)
    orders = reading_orders(FOODS, num_foods=NUM_FOODS, num_orders=4)
    model = fn.bind(params)
    read = model.food_logits if config is JointRecipesConfig else model
    lengths = (FOODS < NUM_FOODS).sum(axis=1)
    logits = [
        np.asarray(read(MOLECULES, jnp.asarray(rows))[:, length, :-1])
        for rows, length in zip(orders, lengths, strict=True)
    ]
    assert_probabilities(found, FOODS, logits)


def test_an_encoder_reads_what_is_given_as_a_set():
    fn, params = model_of(EncoderDecoderConfig(**SHAPE, encoder_layers=1))
    lengths = jnp.array([3, 1, 0])
    logits = fn.bind(params)(MOLECULES, jnp.asarray(FOODS), lengths)
    logits = np.take_along_axis(np.asarray(logits), np.array(lengths)[:, None, None], axis=1)
    found = next_food_probabilities(fn, params, MOLECULES, FOODS, num_orders=1)
    assert_probabilities(found, FOODS, logits[:, 0, :-1])
    turned = np.array([[1, 3, 8], [6, 9, 9], [9, 9, 9]], np.int32)
    again = next_food_probabilities(fn, params, MOLECULES, turned, num_orders=3, seed=5)
    assert_close(again, found)


def test_one_food_is_hidden_from_a_masked_set_model():
    fn, params = model_of(MaskedSetConfig(**SHAPE))
    visible = jnp.asarray(FOODS < NUM_FOODS)
    one, two = (
        np.asarray(fn.bind(params)(MOLECULES, jnp.asarray(FOODS), visible, jnp.full(3, k)).foods)
        for k in (1, 2)
    )
    found = next_food_probabilities(fn, params, MOLECULES, FOODS)
    assert_probabilities(found, FOODS, one)
    assert np.abs(one - two).max() > 1e-3


def test_log_odds_keep_their_precision_at_both_ends():
    for probability in (1e-6, 0.3, 1 - 1e-6):
        rest = np.full(4, (1 - probability) / 4)
        logs = jnp.asarray(np.log([*rest[:2], probability, *rest[2:]]), jnp.float32)
        expected = np.log(probability) - np.log1p(-probability)
        np.testing.assert_allclose(log_odds(logs, jnp.array(2)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("foods", "message"),
    [
        ([[1, -1]], "food -1 must be from 0 to 8, or 9: padding"),
        ([[1, 10]], "food 10 must be from 0 to 8, or 9: padding"),
        ([[1, 2], [4, 4]], "food 4 is given twice"),
    ],
)
def test_refuses_what_is_no_set(foods, message):
    check_sets(np.array([[1, 9, 9], [9, 9, 9]], np.int32), NUM_FOODS)
    with pytest.raises(ValueError, match=message):
        check_sets(np.array(foods, np.int32), NUM_FOODS)
