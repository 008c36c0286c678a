"""Encoder-decoder: the pantry is a set, and only what is written after it is scored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from tolerances import assert_close

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.decoding import PromptEncoder, SetConstraint, SetDecoder, sample_sets
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.encoder_decoder_generator import (
    EncoderDecoderConfig,
    EncoderDecoderGenerator,
    encoder_decoder_loss,
    pantry_sizes,
)
from recipe_jax.models.food_embedding import FoodEmbeddingConfig

V, M, E = 9, 5, 8
RNG = np.random.default_rng(1)
MOLECULES = Molecules(
    jnp.asarray(RNG.normal(size=(V, 3)), jnp.float32),
    jnp.ones((V, 3)),
    jnp.ones((V, 4)),
    jnp.ones(V),
)
CFG = EncoderDecoderConfig(
    embedding=FoodEmbeddingConfig(num_foods=V, num_components=3, num_compounds=4, embed_dim=E),
    transformer=TransformerConfig(num_layers=2, embed_dim=E, num_heads=2),
    encoder_layers=1,
    max_foods=M,
)
FN, PARAMS = draw_parameters(lambda rngs: EncoderDecoderGenerator(CFG, rngs=rngs))
FOODS = jnp.array([[3, 1, 7, 0, 5], [2, 8, 4, V, V], [6, V, V, V, V]], jnp.int32)
LOSS = jax.jit(encoder_decoder_loss)
LENGTHS = jnp.array([5, 3, 1], jnp.int32)
GIVEN = jnp.array([2, 0, 0], jnp.int32)


@jax.jit
def logits_of(params, foods, given):
    return FN.bind(params)(MOLECULES, foods, given)


def batch_of(foods, lengths):
    return RecipeBatch(foods, lengths, jnp.zeros(foods.shape))


def random_logits(b):
    return jnp.asarray(RNG.normal(size=(b, M + 1, V + 1)), jnp.float32)


def test_the_order_of_the_pantry_changes_nothing():
    swapped = FOODS.at[0].set(jnp.array([1, 3, 7, 0, 5]))
    before, after = logits_of(PARAMS, FOODS, GIVEN), logits_of(PARAMS, swapped, GIVEN)
    assert_close(after[0, 2:], before[0, 2:])
    other = logits_of(PARAMS, FOODS.at[0, 0].set(8), GIVEN)
    assert np.abs(other - before)[0, 2:].max() > 1e-3  # but the pantry does


def test_a_prefix_sees_neither_later_foods_nor_padding():
    before = logits_of(PARAMS, FOODS, GIVEN)
    later = logits_of(PARAMS, FOODS.at[0, 3].set(8).at[1, 3].set(0), GIVEN)
    assert (later[0, 2:4] == before[0, 2:4]).all()
    assert (later[0, 4] != before[0, 4]).any()
    assert (later[1, :4] == before[1, :4]).all()


def test_decoding_equals_the_full_forward_pass():
    full = logits_of(PARAMS, FOODS, GIVEN)

    @jax.jit
    def first(params):
        model = FN.bind(params)
        table = model.embedding(MOLECULES)
        return table, model.encode_prompt(table, FOODS, GIVEN)

    @jax.jit
    def step(params, table, foods, cache):
        return FN.bind(params).decode(table, foods[:, None], jnp.ones(3, jnp.int32), cache)

    table, cache = first(PARAMS)
    read = jnp.full(3, -1, jnp.int32)
    for i in range(4):
        logits, cache = step(PARAMS, table, read, cache)
        for row in range(3):
            if GIVEN[row] + i <= LENGTHS[row]:
                assert_close(logits[row, 0], full[row, GIVEN[row] + i])
        read = FOODS[jnp.arange(3), jnp.minimum(GIVEN + i, M - 1)]


def test_the_cache_of_an_empty_pantry_needs_no_prompt():
    @jax.jit
    def first_logits(params):
        model = FN.bind(params)
        assert isinstance(model, PromptEncoder)
        assert isinstance(model, SetDecoder)
        start = jnp.full((1, 1), -1, jnp.int32), jnp.ones(1, jnp.int32)
        return model.decode(model.embedding(MOLECULES), *start, model.empty_cache(1))[0][0, 0]

    assert_close(first_logits(PARAMS), logits_of(PARAMS, FOODS, GIVEN)[1, 0])


def test_the_loss_is_that_of_the_choices_after_the_pantry():
    logits = random_logits(3)
    terms = LOSS(logits, batch_of(FOODS, LENGTHS), GIVEN)
    for row in range(3):
        n, j = int(LENGTHS[row]), int(GIVEN[row])
        foods = np.asarray(FOODS)[row, :n].tolist()
        costs = []
        for prefix in range(j, n + 1):
            x = np.asarray(logits, np.float64)[row, prefix]
            free = [food for food in range(V + 1) if food not in foods[:prefix]]
            targets = foods[prefix:] or [V]
            costs.append(np.log(np.exp(x[free]).sum()) - x[targets].mean())
        np.testing.assert_allclose(terms.total[row], sum(costs), rtol=1e-5)
        np.testing.assert_allclose(terms.end[row], costs[-1], rtol=1e-5)
        assert terms.choices[row] == n - j + 1


def test_padding_and_pantry_are_in_no_loss():
    logits = random_logits(1)
    short = batch_of(FOODS[1:2, :3], LENGTHS[1:2])
    padded = batch_of(FOODS[1:2], LENGTHS[1:2])
    given = jnp.array([1], jnp.int32)
    unpadded = LOSS(logits[:, :4], short, given)
    for term, expected in zip(LOSS(logits, padded, given), unpadded, strict=True):
        assert (term == expected).all()
    gradient = jax.jit(jax.grad(lambda x: LOSS(x, padded, given).total.sum()))(logits)
    assert (gradient[0, 0] == 0).all() and (gradient[0, 4:] == 0).all()
    assert (gradient[0, 1:, 2] == 0).all()  # food 2 is in the pantry: it cannot come again
    assert (gradient[0, 1:4] != 0).any(axis=-1).all()


def test_pantries_have_every_size_below_the_recipe_equally_often():
    sizes = pantry_sizes(jax.random.key(0), jnp.full(6000, 3, jnp.int32))
    counts = np.bincount(sizes, minlength=3)
    assert len(counts) == 3
    assert np.abs(counts / 6000 - 1 / 3).max() < 0.03


def test_sampling_puts_the_prompt_into_the_encoder():
    prompt = jnp.array([[3, 1], [2, V]], jnp.int32)
    lengths = jnp.array([2, 1], jnp.int32)
    rules = SetConstraint(jnp.arange(V) != 4, jnp.int32(4), jnp.int32(M))
    found = sample_sets(FN, PARAMS, MOLECULES, prompt, lengths, jax.random.key(0), constraint=rules)
    terms = LOSS(
        logits_of(PARAMS, found.foods, lengths), batch_of(found.foods, found.lengths), lengths
    )
    assert np.isfinite(terms.total).all()
    for row, (k, n) in enumerate(zip(lengths, found.lengths, strict=True)):
        foods = found.foods[row, :n].tolist()
        assert foods[:k] == prompt[row, :k].tolist()
        assert len(set(foods)) == n and 4 not in foods and 4 <= n <= M


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_layers": 0}, "encoder_layers=0"),
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
        EncoderDecoderConfig(**fields | change)
