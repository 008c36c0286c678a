"""The language model: causal, packed sequences apart, cached decoding, losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_language_model import VOCAB_SIZE, tiny_config, tiny_model
from tolerances import assert_close

from recipe_jax.batches import TokenBatch
from recipe_jax.layers.positions import Alibi, Learned, NoPositions, Rope, Sinusoidal
from recipe_jax.models.causal_language_model import next_token_loss, token_terms

RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, VOCAB_SIZE, (2, 9)), jnp.int32)


def packed() -> TokenBatch:
    """One row of 4 + 3 tokens and two of padding, one row of 9."""
    segments = jnp.asarray([[1] * 4 + [2] * 3 + [0] * 2, [1] * 9], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 0, 0], range(9)], jnp.int32)
    weights = (positions > 0).astype(jnp.float32) * (segments > 0)
    return TokenBatch(TOKENS, segments, positions, weights)


@pytest.mark.parametrize("tied", [False, True])
def test_the_future_changes_nothing_bit_for_bit(tied):
    fn, params = tiny_model(tiny_config(tied=tied))
    logits = jax.jit(lambda tokens: fn.bind(params)(tokens))
    changed = logits(TOKENS.at[:, 5:].add(1) % VOCAB_SIZE)
    np.testing.assert_array_equal(changed[:, :5], logits(TOKENS)[:, :5])
    assert not np.array_equal(changed[:, 5:], logits(TOKENS)[:, 5:])


def test_a_packed_sequence_is_what_it_is_alone():
    fn, params = tiny_model()
    batch = packed()
    whole = fn.bind(params)(TOKENS, segments=batch.segments, indices=batch.positions)
    for start, stop in ((0, 4), (4, 7)):
        alone = fn.bind(params)(TOKENS[:1, start:stop])
        assert_close(whole[:1, start:stop], alone)


@pytest.mark.parametrize(
    "positions", [NoPositions(), Sinusoidal(), Rope(), Rope(interleaved=True), Alibi()]
)
def test_cached_decoding_gives_the_same_logits(positions):
    fn, params = tiny_model(tiny_config(positions=positions))
    model = fn.bind(params)

    @jax.jit
    def decode(tokens):
        cache = model.empty_cache(2, 12)
        states, cache = model.decode(tokens[:, :4], jnp.array([4, 4]), cache)
        found = [model.logits(states)]
        for place in range(4, 9):
            states, cache = model.decode(tokens[:, place : place + 1], jnp.array([1, 1]), cache)
            found.append(model.logits(states))
        return jnp.concatenate(found, axis=1)

    assert_close(decode(TOKENS), model(TOKENS))


@pytest.mark.parametrize("chunk_tokens", [1, 4, 9, 32])
def test_the_loss_is_the_mean_by_hand_whatever_the_chunks(chunk_tokens):
    fn, params = tiny_model()
    batch = packed()
    logits = fn.bind(params)(TOKENS, segments=batch.segments, indices=batch.positions)
    logits = np.asarray(logits, np.float64)
    shares = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    nats, correct = np.zeros(2), np.zeros(2)
    for row, place in zip(*np.nonzero(np.asarray(batch.weights)), strict=True):
        nats[row] -= shares[row, place - 1, TOKENS[row, place]]
        correct[row] += shares[row, place - 1].argmax() == TOKENS[row, place]
    terms = jax.jit(lambda p: next_token_loss(fn.bind(p), batch, chunk_tokens=chunk_tokens))(params)
    assert_close(terms.nats, nats)
    assert terms.tokens.tolist() == [5, 8] and terms.correct.tolist() == correct.tolist()


def test_padding_costs_nothing_and_gets_no_gradient():
    logits = jnp.asarray(RNG.normal(size=(1, 3, 5)), jnp.float32).at[0, 2].set(jnp.nan)
    targets, weights = jnp.array([[1, 4, 0]]), jnp.array([[1.0, 0.5, 0.0]])

    def total(logits):
        return token_terms(logits, targets, weights).nats.sum()

    value, grad = jax.value_and_grad(total)(logits)
    assert np.isfinite(value) and np.isfinite(grad[0, :2]).all()
    expected = jax.nn.softmax(logits[0, 1]) - jax.nn.one_hot(4, 5)
    assert_close(grad[0, 1], 0.5 * expected, kind="gradient")


@pytest.mark.parametrize("remat", ["elementwise", "block"])
def test_what_is_computed_again_changes_no_gradient(remat):
    batch = packed()

    def gradient(fn):
        return jax.jit(jax.grad(lambda p: next_token_loss(fn.bind(p), batch).nats.sum()))(params)

    fn, params = tiny_model()
    assert_close(gradient(tiny_model(remat=remat)[0]), gradient(fn), kind="gradient")


def test_bfloat16_is_near_float32_and_gives_float32_logits():
    fn, params = tiny_model()
    logits = tiny_model(dtype="bfloat16")[0].bind(params)(TOKENS)
    assert logits.dtype == jnp.float32
    plain = fn.bind(params)(TOKENS)
    # One rounding in 256 of each of some ten sums, relative to the logits' scale.
    assert np.abs(logits - plain).max() < 0.05 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 4}, "num_heads=6 must be a multiple of num_kv_heads=4"),
        ({"positions": Learned(8)}, "learned table"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_a_cache_beyond_the_models_length_is_refused():
    fn, params = tiny_model()
    with pytest.raises(ValueError, match="capacity=41 must be at most max_positions=40"):
        fn.bind(params).empty_cache(1, 41)
