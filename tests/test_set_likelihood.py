import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    IngredientGenerator,
    next_food_loss,
)
from recipe_jax.set_likelihood import (
    completion_log_likelihoods,
    completion_orders,
    sequence_log_likelihoods,
)

V, M = 7, 4
RNG = np.random.default_rng(0)
MOLECULES = Molecules(
    jnp.asarray(RNG.normal(size=(V, 3)), jnp.float32),
    jnp.ones((V, 3)),
    jnp.ones((V, 2)),
    jnp.ones(V),
)
SEQUENCES = np.array([[3, 1, 6, V], [2, V, V, V], [V, V, V, V], [6, 5, 4, 0]], np.int32)


@pytest.fixture(scope="module")
def model():
    cfg = GeneratorConfig(
        embedding=FoodEmbeddingConfig(num_foods=V, num_components=3, num_compounds=2, embed_dim=8),
        transformer=TransformerConfig(num_layers=2, embed_dim=8, num_heads=2),
        pairs=True,
        max_foods=M,
    )
    return *draw_parameters(lambda rngs: IngredientGenerator(cfg, rngs=rngs)), MOLECULES


def test_a_sequences_likelihood_is_the_loss_it_is_trained_on(model):
    fn, params, molecules = model
    foods = jnp.asarray(SEQUENCES)
    batch = RecipeBatch(foods, (foods < V).sum(axis=1), jnp.zeros(foods.shape))
    loss = next_food_loss(fn.bind(params)(molecules, foods), batch).total
    found = sequence_log_likelihoods(*model, SEQUENCES)
    np.testing.assert_allclose(found, -np.asarray(loss), rtol=1e-5)


def test_likelihoods_of_all_sequences_up_to_the_longest_sum_to_one(model):
    """Those that reach `max_foods` leave the end's probability to longer ones: count it in."""
    total = 0.0
    for size in range(M):
        padding = (V,) * (M - size)
        rows = np.array([p + padding for p in itertools.permutations(range(V), size)], np.int32)
        total += np.exp(sequence_log_likelihoods(*model, rows).astype(np.float64)).sum()
    assert 0.3 < total < 1.0
    fn, params, molecules = model
    longest = np.array(list(itertools.permutations(range(V), M)), np.int32)
    ended = np.exp(sequence_log_likelihoods(*model, longest).astype(np.float64))
    logits = np.asarray(fn.bind(params)(molecules, jnp.asarray(longest)), np.float64)[:, M]
    logits[np.arange(len(longest))[:, None], longest] = -np.inf
    end = np.exp(logits[:, V] - np.logaddexp.reduce(logits, axis=1))
    np.testing.assert_allclose(total + (ended / end).sum(), 1.0, rtol=1e-4)


def test_a_completions_likelihood_is_the_mean_over_orders_of_the_whole_set(model):
    foods = np.array([[5, 2, V], [1, V, V], [V, V, V]], np.int32)
    candidates = np.array([[0, 6], [3, 2], [4, 5]], np.int32)
    found = completion_log_likelihoods(*model, foods, candidates, num_orders=3, seed=1)
    orders = completion_orders((foods < V).sum(axis=1), num_orders=3, seed=1)
    for row, place in itertools.product(range(3), range(2)):
        whole = [candidates[row, place], *np.sort(foods[row])]
        sequences = np.array([[whole[i] for i in order] for order in orders[row]], np.int32)
        expected = sequence_log_likelihoods(*model, sequences).mean()
        np.testing.assert_allclose(found[row, place], expected, rtol=1e-5)


def test_how_a_set_is_written_and_padded_does_not_matter(model):
    candidates = np.array([[0, 6]], np.int32)
    plain = completion_log_likelihoods(*model, np.array([[5, 2]]), candidates, num_orders=4)
    other = completion_log_likelihoods(*model, np.array([[2, 5, V]]), candidates, num_orders=4)
    np.testing.assert_array_equal(plain, other)


def test_orders_hold_every_place_once_and_spread_the_candidate_evenly():
    lengths = np.array([5, 2, 0])
    orders = completion_orders(lengths, num_orders=12)
    for row, length in zip(orders, lengths, strict=True):
        assert (np.sort(row[:, : length + 1], axis=1) == np.arange(length + 1)).all()
        turn = np.argmax(row == 0, axis=1)
        assert np.bincount(turn, minlength=length + 1).tolist() == [12 // (length + 1)] * (
            length + 1
        )
    assert len({tuple(order) for order in orders[0].tolist()}) == 12


def test_bad_sets_are_refused(model):
    with pytest.raises(ValueError, match="food 2 is given twice"):
        sequence_log_likelihoods(*model, np.array([[2, 2]]))
    with pytest.raises(ValueError, match="5 places, the model holds max_foods=4"):
        sequence_log_likelihoods(*model, np.arange(5)[None])
    with pytest.raises(ValueError, match="food 1 is given twice"):
        completion_log_likelihoods(*model, np.array([[1, 3]]), np.array([[1]]))
