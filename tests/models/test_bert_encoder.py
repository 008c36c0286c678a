"""BERT's encoder: padding is nothing, order and kind of a token are; pooling by its formulas."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from bert_folder import CONFIG, HEADS, HIDDEN, LAYERS, POSITIONS, WIDTH
from drawn_parameters import draw_parameters
from tolerances import assert_close

from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.bert_encoder import (
    BertEncoder,
    BertEncoderConfig,
    pool_states,
    unit_length,
)

CFG = BertEncoderConfig(
    vocab_size=CONFIG["vocab_size"],
    transformer=TransformerConfig(
        num_layers=LAYERS,
        embed_dim=WIDTH,
        num_heads=HEADS,
        mlp_dim=HIDDEN,
        norm="layer",
        norm_order="post",
        bias="all",
        dropout_rate=0.5,
    ),
    max_positions=POSITIONS,
)
FN, PARAMS = draw_parameters(lambda rngs: BertEncoder(CFG, rngs=rngs))
TOKENS = np.array([[2, 5, 9, 4, 3, 0], [2, 7, 3, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 3], np.int32)


@jax.jit
def states_of(tokens, lengths, token_types=None, key=None):
    return FN.bind(PARAMS)(tokens, lengths, token_types=token_types, key=key)


def test_what_stands_in_padding_is_never_read():
    is_real = np.arange(6)[None] < LENGTHS[:, None]
    other = np.where(is_real, TOKENS, 11)
    one, two = states_of(TOKENS, LENGTHS), states_of(other, LENGTHS)
    np.testing.assert_array_equal(one[is_real], two[is_real])
    # With a length that takes them in they are read: the mask is what keeps them out.
    assert np.abs(states_of(other, np.array([6, 6]))[is_real] - two[is_real]).max() > 0.01


def test_every_token_sees_those_after_it_and_where_they_stand():
    swapped = TOKENS[:, [0, 2, 1, 3, 4, 5]]
    one, two = states_of(TOKENS, LENGTHS), states_of(swapped, LENGTHS)
    assert np.abs(one[0, 0] - two[0, 0]).max() > 0.01


def test_tokens_are_of_the_first_text_unless_they_are_of_the_second():
    types = np.zeros_like(TOKENS)
    np.testing.assert_array_equal(states_of(TOKENS, LENGTHS, types), states_of(TOKENS, LENGTHS))
    types[0, 2] = 1
    assert np.abs(states_of(TOKENS, LENGTHS, types) - states_of(TOKENS, LENGTHS))[0].max() > 0.01


def test_dropout_acts_with_a_key_alone():
    one, two = (states_of(TOKENS, LENGTHS, key=jax.random.key(i)) for i in range(2))
    assert np.abs(one - two).max() > 0.1 and np.abs(one - states_of(TOKENS, LENGTHS)).max() > 0.1


def test_lower_precision_errs_by_its_rounding():
    fn, _ = draw_parameters(lambda rngs: BertEncoder(CFG, dtype="bfloat16", rngs=rngs))
    found = jax.jit(fn.bind(PARAMS))(TOKENS, LENGTHS)
    assert found.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(found, np.float32) - states_of(TOKENS, LENGTHS))
    assert 0 < difference[0, :5].max() < 0.1


def test_a_text_longer_than_the_table_is_refused():
    tokens = jnp.zeros((1, POSITIONS + 1), jnp.int32)
    with pytest.raises(ValueError, match="41 tokens exceed max_positions=40"):
        FN.bind(PARAMS)(tokens, jnp.array([1]))


def test_pooling_is_the_mean_of_real_states_or_the_first():
    states = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    states[0, 5:], states[1, 3:] = np.nan, np.inf
    for low in (jnp.asarray(states), jnp.asarray(states, jnp.bfloat16)):
        wide = np.asarray(low, np.float32)
        mean = pool_states(low, jnp.asarray(LENGTHS), "mean")
        assert_close(mean, np.stack([wide[0, :5].mean(axis=0), wide[1, :3].mean(axis=0)]))
        first = pool_states(low, jnp.asarray(LENGTHS), "cls")
        assert mean.dtype == first.dtype == jnp.float32
        np.testing.assert_array_equal(first, wide[:, 0])


def test_unit_length_keeps_the_direction_and_zeros():
    vectors = jnp.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2e-6]])
    assert_close(unit_length(vectors), np.array([[0.6, 0.8], [0, 0], [0, -1]]))


def test_wrong_values_are_refused(monkeypatch):
    for name in ("vocab_size", "max_positions", "num_token_types"):
        given = {"vocab_size": 9, "transformer": CFG.transformer, name: 0}
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            BertEncoderConfig(**given)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="pooling='max' must be one of"):
        pool_states(jnp.zeros((1, 2, 3)), jnp.array([2]), "max")
