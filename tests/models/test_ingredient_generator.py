"""The generator: no repeats, no padding in its loss, a learned end, no order that leaks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from tolerances import assert_close

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.decoding import SetConstraint, sample_sets
from recipe_jax.layers.positions import Alibi, Learned, Rope, Sinusoidal
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    IngredientGenerator,
    chosen_before,
    next_food_loss,
    remaining_set_loss,
)

V, M, E = 7, 5, 8
RNG = np.random.default_rng(1)
MOLECULES = Molecules(
    jnp.asarray(RNG.normal(size=(V, 3)), jnp.float32),
    jnp.ones((V, 3)),
    jnp.ones((V, 4)),
    jnp.ones(V),
)
FOODS = jnp.array([[3, 1, 6, 0, 5], [2, 4, V, V, V]], jnp.int32)
LENGTHS = jnp.array([5, 2], jnp.int32)
REMAINING, NEXT = jax.jit(remaining_set_loss), jax.jit(next_food_loss)
ANY_POSITIONS = pytest.mark.parametrize(
    "positions", [Alibi(), Rope(), Sinusoidal(), Learned(M + 1)], ids=lambda p: type(p).__name__
)
LOSSES = pytest.mark.parametrize("loss", [REMAINING, NEXT], ids=["remaining-set", "next-food"])


def config(*, num_layers=2, **fields) -> GeneratorConfig:
    return GeneratorConfig(
        embedding=FoodEmbeddingConfig(num_foods=V, num_components=3, num_compounds=4, embed_dim=E),
        transformer=TransformerConfig(num_layers=num_layers, embed_dim=E, num_heads=2),
        max_foods=M,
        **fields,
    )


def generator(**fields):
    cfg = config(**fields)
    fn, params = draw_parameters(lambda rngs: IngredientGenerator(cfg, rngs=rngs))
    return jax.jit(lambda params, foods: fn.bind(params)(MOLECULES, foods)), fn, params


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "pairs"])
def two_layers(request):
    return generator(num_layers=2, pairs=request.param)


def batch_of(foods, lengths):
    return RecipeBatch(foods, lengths, jnp.zeros(foods.shape))


def gradient_of(loss, batch, logits):
    return jax.jit(jax.grad(lambda x: loss(x, batch).total.sum()))(logits)


def random_logits(b=2, prefixes=M + 1):
    return jnp.asarray(3.0 * RNG.normal(size=(b, prefixes, V + 1)), jnp.float32)


def test_each_prefix_knows_what_it_holds():
    chosen = np.asarray(chosen_before(FOODS, V))
    for row, prefix in itertools.product(range(2), range(M + 1)):
        held = {food for food in FOODS[row, :prefix].tolist() if food < V}
        assert set(np.flatnonzero(chosen[row, prefix])) == held


@LOSSES
def test_a_chosen_food_has_no_probability_whatever_its_logit(loss):
    batch, logits = batch_of(FOODS, LENGTHS), random_logits()
    chosen = chosen_before(FOODS, V)
    raised = jnp.where(chosen, logits + 1e4, logits)
    assert (loss(raised, batch).total == loss(logits, batch).total).all()
    gradient = gradient_of(loss, batch, logits)
    assert (jnp.where(chosen, gradient, 0.0) == 0).all()


@LOSSES
def test_padding_is_in_no_loss(loss):
    """Regression: a loss averaged through a misused `reduce` argument counted padding."""
    logits = random_logits(1)
    short, padded = batch_of(FOODS[1:, :2], LENGTHS[1:]), batch_of(FOODS[1:], LENGTHS[1:])
    unpadded = loss(logits[:, :3], short)
    for got, expected in zip(loss(logits, padded), unpadded, strict=True):
        assert (got == expected).all()
    changed = logits.at[:, 3:].add(100.0)
    assert (loss(changed, padded).total == unpadded.total).all()
    gradient = gradient_of(loss, padded, logits)
    assert (gradient[:, 3:] == 0).all()


def test_the_forward_pass_of_a_recipe_does_not_depend_on_its_padding(two_layers):
    forward, _, params = two_layers
    short = forward(params, FOODS[1:, :2])
    padded = forward(params, FOODS[1:])
    assert_close(padded[:, :3], short)


@LOSSES
def test_the_end_is_learned_after_the_last_food_and_nowhere_else(loss):
    logits, batch = random_logits(), batch_of(FOODS, LENGTHS)
    gradient = gradient_of(loss, batch, logits)[..., -1]
    for row in range(2):
        n = int(LENGTHS[row])
        assert gradient[row, n] < 0  # more of the end
        assert (gradient[row, :n] > 0).all()  # less of it before
    terms = loss(logits, batch)
    for row in range(2):
        n = int(LENGTHS[row])
        x = np.asarray(logits, np.float64)[row, n]
        free = [food for food in range(V + 1) if food not in FOODS[row, :n].tolist()]
        np.testing.assert_allclose(terms.end[row], np.log(np.exp(x[free]).sum()) - x[V], rtol=1e-5)
        assert terms.choices[row] == n + 1


def test_the_remaining_set_loss_is_the_mean_next_food_loss_over_all_orders_of_what_remains():
    """With logits that depend on the set read so far, as without positions they should."""
    foods = [4, 0, 6, 2]
    rng = np.random.default_rng(0)
    table = {
        frozenset(held): rng.normal(size=V + 1)
        for size in range(5)
        for held in itertools.combinations(foods, size)
    }

    def terms(order, loss):
        rows = [table[frozenset(order[:j])] for j in range(5)]
        batch = batch_of(jnp.array([order], jnp.int32), jnp.array([4], jnp.int32))
        return loss(jnp.array([rows], jnp.float32), batch)

    for j in range(5):
        orders = [foods[:j] + list(rest) for rest in itertools.permutations(foods[j:])]
        from_j = [_costs(order, table)[j] for order in orders]
        mean_of_next = np.mean(from_j)
        np.testing.assert_allclose(_remaining_cost(foods, j, table), mean_of_next, rtol=1e-12)
    both = [
        np.mean([terms(list(order), loss).total[0] for order in itertools.permutations(foods)])
        for loss in (REMAINING, NEXT)
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)
    expected = sum(_remaining_cost(foods, j, table) for j in range(5))
    np.testing.assert_allclose(terms(foods, REMAINING).total[0], expected, rtol=1e-5)
    np.testing.assert_allclose(terms(foods, NEXT).total[0], sum(_costs(foods, table)), rtol=1e-5)


def _costs(order, table):
    """Nats of each next food, and of the end, in one order."""
    targets = [*order, V]
    return [_nats(order[:j], table)[targets[j]] for j in range(len(order) + 1)]


def _remaining_cost(foods, j, table):
    nats = _nats(foods[:j], table)
    return np.mean([nats[food] for food in foods[j:] or [V]])


def _nats(held, table):
    logits = table[frozenset(held)].copy()
    logits[list(held)] = -np.inf
    return np.logaddexp.reduce(logits) - logits


def test_one_layer_without_positions_knows_no_order():
    """The last food read asks all of them alike: only which food is last can matter."""
    forward, _, params = generator(num_layers=1)
    swapped = FOODS.at[0].set(jnp.array([6, 3, 1, 0, 5]))
    before, after = forward(params, FOODS), forward(params, swapped)
    for prefix in (4, 5):
        assert_close(after[0, prefix], before[0, prefix])
    assert np.abs(after[0, 3] - before[0, 3]).max() > 1e-3  # another food is last here


def test_deeper_layers_see_causal_prefixes_so_orders_are_random_in_training(two_layers):
    forward, _, params = two_layers
    swapped = FOODS.at[0].set(jnp.array([6, 3, 1, 0, 5]))
    before, after = forward(params, FOODS), forward(params, swapped)
    assert np.abs(after[0, 4:] - before[0, 4:]).max() > 1e-4


@ANY_POSITIONS
def test_positions_make_one_layer_see_the_order(positions):
    forward, _, params = generator(num_layers=1, positions=positions)
    swapped = FOODS.at[0].set(jnp.array([6, 3, 1, 0, 5]))
    assert np.abs(forward(params, swapped) - forward(params, FOODS))[0, 4:].max() > 1e-4


def test_a_prefix_does_not_see_the_foods_after_it(two_layers):
    forward, _, params = two_layers
    before = forward(params, FOODS)
    after = forward(params, FOODS.at[0, 3:].set(jnp.array([2, 4])))
    assert (after[0, :4] == before[0, :4]).all()
    assert (after[0, 4:] != before[0, 4:]).any(axis=-1).all()


def test_pairs_add_a_weight_for_every_food_read_to_the_plain_models_logits():
    forward, _, params = generator(pairs=True)
    plain = {**params, "embedding": dict(params["embedding"])}
    weights = np.asarray(plain["embedding"].pop("pairs"))
    expected = np.asarray(generator()[0](plain, FOODS)).copy()
    for row, prefix in itertools.product(range(2), range(M + 1)):
        read = [food for food in FOODS[row, :prefix].tolist() if food < V]
        expected[row, prefix] += weights[read].sum(axis=0)
    assert_close(forward(params, FOODS), expected)


def test_pairs_of_foods_that_were_not_read_and_of_padding_stay_untouched():
    _, fn, params = generator(pairs=True)
    batch = batch_of(FOODS[1:], LENGTHS[1:])

    def loss(params):
        return REMAINING(fn.bind(params)(MOLECULES, batch.foods), batch).total.sum()

    gradient = jax.jit(jax.grad(loss))(params)["embedding"]["pairs"]
    assert set(np.flatnonzero(np.abs(gradient).sum(axis=1))) == {2, 4}


@ANY_POSITIONS
def test_positions_count_from_the_start_in_decoding_too(positions):
    forward, fn, params = generator(positions=positions)
    model = fn.bind(params)
    table, cache = model.embedding(MOLECULES), model.empty_cache(2)
    first = jnp.concatenate([jnp.full((2, 1), -1), FOODS[:, :1]], axis=1)
    start, cache = model.decode(table, first, jnp.full(2, 2), cache)
    rest, _ = model.decode(table, FOODS[:, 1:], jnp.full(2, M - 1), cache)
    assert_close(jnp.concatenate([start, rest], axis=1), forward(params, FOODS))


def test_a_sampled_sets_probability_is_that_of_the_full_forward_pass(two_layers):
    forward, fn, params = two_layers
    prompt = jnp.array([[3, 1], [V, V], [2, V]], jnp.int32)
    lengths = jnp.array([2, 0, 1], jnp.int32)
    free = SetConstraint(jnp.ones(V, bool), jnp.int32(0), jnp.int32(M))
    key = jax.random.key(5)
    found = sample_sets(fn, params, MOLECULES, prompt, lengths, key, constraint=free)
    logits = np.asarray(forward(params, found.foods), np.float64)
    for row in range(3):
        foods = found.foods[row, : found.lengths[row]].tolist()
        total = 0.0
        for prefix in range(int(lengths[row]), min(len(foods), M - 1) + 1):
            x = logits[row, prefix]
            x[foods[:prefix]] = -np.inf
            total += x[[*foods, V][prefix]] - np.logaddexp.reduce(x)
        np.testing.assert_allclose(found.log_probability[row], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_foods": 0}, "max_foods=0"),
        (
            {
                "pairs": True,
                "embedding": FoodEmbeddingConfig(
                    num_foods=V,
                    num_components=3,
                    num_compounds=4,
                    embed_dim=E,
                    sources=("composition",),
                ),
            },
            "pairs=True needs 'learned'",
        ),
        ({"positions": Learned(25)}, "must have max_foods \\+ 1 = 26 rows"),
        (
            {"transformer": TransformerConfig(num_layers=1, embed_dim=6, num_heads=2)},
            "embed_dim=8 must equal transformer.embed_dim=6",
        ),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    fields = {"embedding": config().embedding, "transformer": config().transformer}
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**fields | change)
