"""The encoder-decoder: what may change its logits and what may not; cached decoding; the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from tolerances import assert_close

from recipe_jax.batches import SequencePairBatch
from recipe_jax.functional import flat_params
from recipe_jax.layers.positions import Alibi, Learned, NoPositions, Rope, Sinusoidal
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.encoder_decoder_transformer import (
    EncoderDecoderTransformer,
    EncoderDecoderTransformerConfig,
    Source,
    sequence_pair_loss,
)
from recipe_jax.token_decoding import generate

V, S, T = 11, 6, 5
RNG = np.random.default_rng(0)
SOURCE = Source(jnp.asarray(RNG.integers(0, V, (2, S)), jnp.int32), jnp.array([4, 6]))
TARGET = jnp.asarray(RNG.integers(0, V, (2, T)), jnp.int32)


def make(positions=Sinusoidal(), **changes):  # noqa: B008
    transformer = TransformerConfig(
        num_layers=2, embed_dim=8, num_heads=2, norm_order="post", dropout_rate=0.1
    )
    cfg = EncoderDecoderTransformerConfig(
        vocab_size=V,
        transformer=transformer,
        encoder_layers=1,
        positions=positions,
        max_positions=12,
        **changes,
    )
    return draw_parameters(lambda rngs: EncoderDecoderTransformer(cfg, rngs=rngs))


def test_later_targets_and_padding_of_the_source_change_nothing():
    fn, params = make()
    call = jax.jit(lambda source, target: fn.bind(params)(source, target))
    logits = call(SOURCE, TARGET)
    later = call(SOURCE, TARGET.at[:, 3:].set(0))
    np.testing.assert_array_equal(later[:, :3], logits[:, :3])
    padding = call(SOURCE._replace(tokens=SOURCE.tokens.at[0, 4:].set(7)), TARGET)
    np.testing.assert_array_equal(padding, logits)
    read = call(SOURCE._replace(tokens=SOURCE.tokens.at[:, 1].add(1) % V), TARGET)
    assert (np.abs(read - logits).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("positions", [Sinusoidal(), Learned(12), Rope(), Alibi(), NoPositions()])
@pytest.mark.parametrize("changes", [{}, {"tied": False, "source_vocab_size": V + 3}])
def test_cached_decoding_gives_the_same_logits(positions, changes):
    fn, params = make(positions, **changes)
    model = fn.bind(params)

    @jax.jit
    def decode(target):
        cache = model.empty_cache(2, 8, SOURCE)
        states, cache = model.decode(target[:, :2], jnp.array([2, 2]), cache)
        found = [model.logits(states)]
        for place in range(2, T):
            states, cache = model.decode(target[:, place : place + 1], jnp.array([1, 1]), cache)
            found.append(model.logits(states))
        return jnp.concatenate(found, axis=1)

    assert_close(decode(TARGET), model(SOURCE, TARGET))


def test_beams_share_what_was_read_of_their_source():
    fn, params = make()
    model, rows = fn.bind(params), jnp.array([1, 0, 0, 3, 3, 2])
    targets = jnp.tile(TARGET[:, :3], (2, 1))[jnp.array([0, 2, 1, 3])]
    source = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), SOURCE)

    @jax.jit
    def decode(source, targets, rows, last):
        b = len(source.tokens)
        cache = model.empty_cache(b, 8, source)
        cache = model.choose_rows(cache, jnp.repeat(jnp.arange(b), len(targets) // b))
        _, cache = model.decode(targets, jnp.full(len(targets), 3), cache)
        cache = model.choose_rows(cache, rows)
        assert cache.context.values.shape[1] == b
        return model.logits(model.decode(last, jnp.ones(len(last), jnp.int32), cache)[0])

    last = jnp.arange(6, dtype=jnp.int32)[:, None]
    found = decode(SOURCE, targets, rows, last)
    alone = [
        decode(
            jax.tree.map(lambda x, i=i: x[i : i + 1], source),
            targets[row : row + 1],
            jnp.zeros(1, jnp.int32),
            last[place : place + 1],
        )
        for place, (row, i) in enumerate(zip(rows.tolist(), [0, 0, 0, 2, 2, 2], strict=True))
    ]
    assert_close(found, jnp.concatenate(alone))
    with pytest.raises(ValueError, match="3 rows cannot share 2 rows of a context evenly"):
        decode(SOURCE, targets, rows[:3], last[:3])


def test_greedy_generation_reads_the_source_once_and_is_the_plain_argmax():
    fn, params = make()
    begin = jnp.ones((2, 1), jnp.int32)
    found = generate(fn, params, begin, jnp.array([1, 1]), max_new_tokens=6, context=SOURCE)
    tokens = begin
    for _ in range(6):
        logits = fn.bind(params)(SOURCE, tokens)[:, -1]
        tokens = jnp.concatenate([tokens, jnp.argmax(logits, axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(found.tokens, tokens[:, 1:])


def test_tables_are_shared_unless_asked_otherwise():
    shared = flat_params(make()[1])
    assert ("head", "kernel") not in shared and ("source_embedding", "table") not in shared
    apart = flat_params(make(tied=False, source_vocab_size=V + 3)[1])
    assert apart["head", "kernel"].shape == (8, V)
    assert apart["source_embedding", "table"].shape == (V + 3, 8)


def test_the_loss_counts_real_targets_after_the_first():
    fn, params = make()
    batch = SequencePairBatch(*SOURCE, TARGET, jnp.array([3, 5]))
    terms = jax.jit(lambda p: sequence_pair_loss(fn.bind(p), batch))(params)
    shares = jax.nn.log_softmax(fn.bind(params)(SOURCE, TARGET[:, :-1]), axis=-1)
    for row, length in enumerate([3, 5]):
        expected = -sum(shares[row, i - 1, TARGET[row, i]] for i in range(1, length))
        assert_close(terms.nats[row], expected)
    assert terms.tokens.tolist() == [2, 4]


def test_dropout_acts_with_a_key_only():
    fn, params = make()
    model = fn.bind(params)
    with_key = model(SOURCE, TARGET, key=jax.random.key(0))
    assert np.abs(with_key - model(SOURCE, TARGET)).max() > 1e-2
    np.testing.assert_array_equal(with_key, model(SOURCE, TARGET, key=jax.random.key(0)))


def test_what_cannot_be_is_refused():
    fn, params = make()
    with pytest.raises(ValueError, match="context must be a Source of 2 rows"):
        fn.bind(params).empty_cache(2, 4)
    with pytest.raises(ValueError, match="capacity=13 must be at most max_positions=12"):
        fn.bind(params).empty_cache(2, 13, SOURCE)
    with pytest.raises(ValueError, match="source_vocab_size=0 must be at least 1"):
        make(source_vocab_size=0)
