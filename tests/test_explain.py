import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.batches import Molecules
from recipe_jax.explain import (
    _split_by_source,
    attention_maps,
    attribute_choice,
    molecular_similarity,
    pairings,
    replacement_effects,
    substitutes,
)
from recipe_jax.functional import purify
from recipe_jax.integrated_gradients import integrated_gradients
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import GeneratorConfig, IngredientGenerator
from recipe_jax.set_probabilities import (
    log_odds,
    next_food_log_probabilities,
    next_food_probabilities,
    reading_orders,
)

NUM_FOODS, COMPONENTS, COMPOUNDS = 10, 4, 5
FOODS = np.array([7, 2, 4], np.int32)
CHOICE = 5


def make_molecules():
    """Foods 4 and 5 have the same molecules; no flavour compound is known of food 7."""
    rng = np.random.default_rng(0)
    observed = (rng.random((NUM_FOODS, COMPONENTS)) < 0.8).astype(np.float32)
    composition = (rng.normal(size=observed.shape) * observed).astype(np.float32)
    flavour = (rng.random((NUM_FOODS, COMPOUNDS)) < 0.5).astype(np.float32)
    has_flavour = np.ones(NUM_FOODS, np.float32)
    has_flavour[7], flavour[7] = 0, 0
    for array in (composition, observed, flavour):
        array[5] = array[4]
    return Molecules(*map(jnp.asarray, (composition, observed, flavour, has_flavour)))


def make_model(*sources, pairs=False):
    cfg = GeneratorConfig(
        embedding=FoodEmbeddingConfig(
            num_foods=NUM_FOODS,
            num_components=COMPONENTS,
            num_compounds=COMPOUNDS,
            embed_dim=16,
            sources=sources,
        ),
        transformer=TransformerConfig(num_layers=1, embed_dim=16, num_heads=2),
        pairs=pairs,
        max_foods=5,
    )
    fn, params = purify(IngredientGenerator(cfg, rngs=nnx.Rngs(1)))
    if pairs:  # which start at zero
        drawn = np.random.default_rng(2).normal(size=(NUM_FOODS, NUM_FOODS + 1))
        params["embedding"]["pairs"] = jnp.asarray(0.3 * drawn, jnp.float32)
    return fn, params


@pytest.fixture(scope="module")
def molecules():
    return make_molecules()


@pytest.fixture(scope="module")
def pair_model(molecules):
    return *make_model("composition", "flavour", "learned", pairs=True), molecules


@pytest.fixture(scope="module")
def model(molecules):
    return *make_model("composition", "flavour", "learned"), molecules


def source_sums(found):
    parts = (found.composition, found.observed, found.flavour)
    return sum(part.sum(axis=-1) for part in parts) + found.no_flavour + found.learned


# Attribution


@pytest.mark.parametrize(
    ("moves", "moving"),
    [("foods", [1, 1, 1, 0]), ("choice", [0, 0, 0, 1]), ("both", [1, 1, 1, 1])],
)
def test_attributions_of_vectors_and_of_sources_add_up(model, moves, moving):
    found = attribute_choice(*model, FOODS, CHOICE, moves=moves, num_orders=2)
    assert found.error < 1e-3
    change = found.log_odds - found.baseline_log_odds
    assert abs(change) > 0.02
    assert_close(found.vectors.sum(), change, "gradient")
    assert_close(source_sums(found), found.vectors, "gradient")
    assert (found.vectors != 0).astype(int).tolist() == moving
    chance = next_food_probabilities(*model, FOODS[None], num_orders=2)[0, CHOICE]
    assert_close(jax.nn.sigmoid(found.log_odds), jnp.asarray(chance))


def test_remembered_pairs_are_attributed_to_the_foods_that_were_read(pair_model):
    found = attribute_choice(*pair_model, FOODS, CHOICE, num_orders=2)
    assert_close(found.vectors.sum(), found.log_odds - found.baseline_log_odds, "gradient")
    assert_close(source_sums(found), found.vectors, "gradient")
    fn, params, molecules = pair_model
    embedding = {**params["embedding"], "pairs": jnp.zeros((NUM_FOODS, NUM_FOODS + 1))}
    without = attribute_choice(
        fn, {**params, "embedding": embedding}, molecules, FOODS, CHOICE, num_orders=2
    )
    assert (np.abs(found.learned - without.learned)[:-1] > 1e-3).all()


def test_pairings_know_nothing_of_remembered_pairs(pair_model):
    fn, params, molecules = pair_model
    shuffled = params["embedding"]["pairs"][::-1]
    other = {**params, "embedding": {**params["embedding"], "pairs": shuffled}}
    before, after = (pairings(fn, p, molecules, 3).lift for p in (params, other))
    assert_close(after, before)


def test_a_gradient_splits_into_each_features_distance_from_its_mean(model):
    fn, params, molecules = model
    rows = np.array([7, 2, 4])
    gradients = np.random.default_rng(3).normal(size=(3, 16)).astype(np.float32)
    found = _split_by_source(
        fn.bind(params).embedding, molecules, jnp.asarray(rows), jnp.asarray(gradients)
    )
    composition, observed, flavour, known = map(np.asarray, molecules)
    count = np.maximum(flavour.sum(axis=1, keepdims=True), 1)
    features = {
        "composition": np.concatenate([composition, observed], axis=1),
        "flavour": 4 * flavour / np.sqrt(count),  # 4 is the root of the width
        "no_flavour": 4 * (1 - known)[:, None],
        "learned": 4 * np.eye(NUM_FOODS),
    }
    for name, table in features.items():
        slopes = np.atleast_2d(params["embedding"][name]) @ gradients.T / np.sqrt(3)  # 3 sources
        expected = (table - table.mean(axis=0))[rows] * slopes.T
        np.testing.assert_allclose(
            np.asarray(found[name]).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5
        )


def test_attributions_follow_the_foods_and_ignore_padding(model):
    plain = attribute_choice(*model, FOODS, CHOICE, num_orders=2)
    order = [2, 0, 1]
    turned = attribute_choice(*model, FOODS[order], CHOICE, num_orders=2)
    assert_close(turned.vectors, plain.vectors[jnp.array([*order, 3])], "gradient")
    assert_close(turned.flavour, plain.flavour[jnp.array([*order, 3])], "gradient")
    wide = np.array([*FOODS, NUM_FOODS, NUM_FOODS], np.int32)
    padded = attribute_choice(*model, wide, CHOICE, num_orders=2)
    assert_close(padded.vectors[jnp.array([0, 1, 2, 5])], plain.vectors, "gradient")
    for part in (padded.vectors, padded.composition, padded.flavour, padded.learned):
        assert (part[3:5] == 0).all()


def test_compounds_get_what_a_path_of_the_features_themselves_gives(molecules):
    fn, params = make_model("composition")
    found = attribute_choice(fn, params, molecules, FOODS, CHOICE, moves="both", num_orders=2)
    rows = jnp.array([*FOODS, CHOICE])
    orders = reading_orders(FOODS[None], num_foods=NUM_FOODS, num_orders=2)[0]

    def scalar(features):
        composition, observed = features
        moved = molecules._replace(
            composition=molecules.composition.at[rows].set(composition),
            observed=molecules.observed.at[rows].set(observed),
        )
        module = fn.bind(params)
        logs = next_food_log_probabilities(module, module.embedding(moved), jnp.asarray(orders))
        return log_odds(logs, rows[-1])

    tables = (molecules.composition, molecules.observed)
    inputs = tuple(table[rows] for table in tables)
    baseline = tuple(jnp.broadcast_to(table.mean(axis=0), (4, COMPONENTS)) for table in tables)
    direct = jax.jit(lambda inputs, baseline: integrated_gradients(scalar, inputs, baseline))
    expected = direct(inputs, baseline)
    assert_close((found.composition, found.observed), expected.values, "gradient")
    assert_close(found.baseline_log_odds, expected.baseline_value)
    assert not found.flavour.any()
    assert not found.learned.any()


@pytest.mark.parametrize(
    ("foods", "choice", "message"),
    [
        ([1, 2], 2, "food 2 is given twice"),
        ([1, 1], 2, "food 1 is given twice"),
        ([1, 11], 2, "food 11 must be from 0 to 9, or 10: padding"),
        ([1, 2], 10, "choice=10 must be below the 10 foods"),
        ([1, 2], -1, "food -1 must be from 0 to 9"),
    ],
)
def test_attribution_refuses_what_is_no_choice(model, foods, choice, message):
    with pytest.raises(ValueError, match=message):
        attribute_choice(*model, np.array(foods, np.int32), choice)


# Attention


def test_attention_reads_the_past_and_follows_the_foods(model):
    maps = attention_maps(*model, FOODS, num_orders=3)
    assert maps.weights.shape == (1, 3, 2, 4, 4)
    assert_close(maps.weights.sum(axis=-1), jnp.ones((1, 3, 2, 4)))
    assert not jnp.triu(maps.weights, 1).any()
    assert_close(maps.entropy[..., 0], jnp.zeros((1, 3, 2)))
    last = np.asarray(maps.weights)[0, 1, 1, 3]
    assert_close(maps.entropy[0, 1, 1, 3], -np.sum(last * np.log(last)))
    turned = attention_maps(*model, FOODS[[1, 2, 0]], num_orders=3)
    assert_close(turned.read, maps.read[..., jnp.array([0, 2, 3, 1])])


def test_what_is_read_is_the_last_row_put_back_in_place(model):
    orders = reading_orders(FOODS[None], num_foods=NUM_FOODS, num_orders=3)[0]
    maps = attention_maps(*model, FOODS, num_orders=3)
    expected = np.zeros((1, 2, 4))
    for i, order in enumerate(orders.tolist()):
        places = [0, *(1 + order.index(food) for food in FOODS)]
        expected += np.asarray(maps.weights)[:, i, :, -1, places].transpose(1, 2, 0) / 3
    assert_close(maps.read, expected.astype(np.float32))


# Substitutes and pairings


def test_similarity_compares_what_is_known_of_both(molecules):
    found = molecular_similarity(molecules, 3)
    values, observed = np.asarray(molecules.composition), np.asarray(molecules.observed) > 0
    for food in range(NUM_FOODS):
        both = observed[food] & observed[3]
        a, b = values[food, both], values[3, both]
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        np.testing.assert_allclose(found.cosine[food], a @ b / norms if norms else 0, atol=1e-5)
        shared = set(np.flatnonzero(molecules.flavour[food])) & set(
            np.flatnonzero(molecules.flavour[3])
        )
        assert found.shared_compounds[food] == len(shared)


def test_substitutes_fit_the_rest_and_are_alike(model):
    found = substitutes(*model, FOODS, 4, num_orders=2)
    rest = np.array([[7, 2]], np.int32)
    assert_close(found.probability, next_food_probabilities(*model, rest, num_orders=2)[0])
    cosine = np.asarray(found.similarity.cosine)
    assert found.score[[7, 2, 4]].tolist() == [0, 0, 0]
    alike = [food for food in range(NUM_FOODS) if cosine[food] > 0 and food != 4]
    assert any(0.1 < cosine[food] < 0.9 for food in alike if food not in FOODS)
    assert_close(found.score[alike], (found.probability * cosine**2)[alike])
    assert (found.score[cosine <= 0] == 0).all()
    assert found.probability[4] > 0
    with pytest.raises(ValueError, match="replaced=3 must be one of the given foods"):
        substitutes(*model, FOODS, 3)


def test_an_equal_food_changes_nothing_and_takes_the_place(model):
    fn, params, molecules = model
    learned = params["embedding"]["learned"]
    twins = {**params["embedding"], "learned": learned.at[5].set(learned[4])}
    effects = replacement_effects(
        fn,
        {**params, "embedding": twins},
        molecules,
        FOODS,
        4,
        np.array([5, 8]),
        proportions=lambda foods, lengths: foods / foods.sum(axis=1, keepdims=True),
        num_orders=2,
    )
    assert effects.foods.tolist() == [[7, 2, 5], [7, 2, 8]]
    others = np.array([0, 1, 3, 6, 8, 9])
    assert_close(effects.next_after[0, others], effects.next_before[others])
    assert_close(effects.next_after[0, 4], effects.next_before[5])
    assert np.abs(effects.next_after[1, :2] - effects.next_before[:2]).max() > 1e-3
    assert_close(effects.proportions_before, FOODS / 13)
    assert_close(effects.proportions_after[1], np.array([7, 2, 8]) / 17)
    with pytest.raises(ValueError, match="food 7 is given twice"):
        replacement_effects(*model, FOODS, 4, np.array([7]))


def test_pairings_know_nothing_but_molecules(model):
    first, twin, other = (pairings(*model, food) for food in (4, 5, 3))
    rest = np.array([0, 1, 2, 3, 6, 7, 8, 9])
    # Foods 4 and 5 differ in what was learned alone, which is not looked at.
    assert_close(first.probability[rest], twin.probability[rest])
    assert np.abs(first.lift[rest] - other.lift[rest]).max() > 0.01
    assert first.lift[4] == 0
    assert first.probability[4] == 0
    assert_close(first.probability.sum(), np.float32(1.0))


def test_pairings_need_molecules(molecules):
    with pytest.raises(ValueError, match="model with molecular sources"):
        pairings(*make_model("learned"), molecules, 4)
