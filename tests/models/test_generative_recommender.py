"""The generative recommender: what its logits depend on, its cache, its loss, items by beams."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from tolerances import assert_close

from recipe_jax.batches import NextItemBatch
from recipe_jax.item_beam_search import search_items
from recipe_jax.item_scores import score_items
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.generative_recommender import (
    GenerativeRecommender,
    GenerativeRecommenderConfig,
    History,
    next_code_loss,
)
from recipe_jax.prefix_index import build_prefix_index

SIZES, Q, M = (3, 4, 2), 3, 5
CFG = GenerativeRecommenderConfig(
    sizes=SIZES,
    transformer=TransformerConfig(num_layers=2, embed_dim=8, num_heads=2, dropout_rate=0.1),
    encoder_layers=1,
    max_items=M,
)
FN, PARAMS = draw_parameters(lambda rngs: GenerativeRecommender(CFG, rngs=rngs))
ALL = np.array(list(itertools.product(*map(range, SIZES))), np.int32)
CODES = jnp.asarray(ALL[np.random.default_rng(0).integers(0, len(ALL), (2, M))])

call = jax.jit(
    lambda codes, key=None, **packed: FN.bind(PARAMS)(
        codes[:, :-1], codes[:, 1:], key=key, **packed
    )
)


def test_an_item_is_written_from_those_before_it_and_from_its_own_first_codes():
    logits = call(CODES)
    assert logits.shape == (2, M - 1, Q, sum(SIZES) + 1)
    for item, level in itertools.product(range(M), range(Q)):
        changed = CODES.at[:, item, level].add(1) % jnp.array(SIZES)[None, None]
        moved = (call(changed) != logits).any(axis=(0, 3))
        # Row i writes item i + 1: the levels behind the changed one, and all of later items.
        expected = np.zeros((M - 1, Q), bool)
        expected[item:] = True
        if item > 0:
            expected[item - 1, level + 1 :] = True
        np.testing.assert_array_equal(moved, expected)


def test_the_order_of_a_history_matters():
    swapped = CODES.at[0, :2].set(CODES[0, 1::-1])
    assert (CODES[0, 0] != CODES[0, 1]).any()
    assert np.abs(call(swapped) - call(CODES))[0, 2:].max() > 1e-3


def test_a_history_read_once_continues_as_the_whole_does():
    model, whole = FN.bind(PARAMS), call(CODES)

    @jax.jit
    def written(length, target):
        cache = model.empty_cache(2, Q, History(CODES, jnp.full(2, length)))
        tokens = jnp.concatenate(
            [jnp.full((2, 1), CFG.start_token), model.tokens(target[:, :-1])], axis=1
        )
        states, found = [], None
        for token in tokens.T:
            found, cache = model.decode(token[:, None], jnp.ones(2, jnp.int32), cache)
            states.append(found)
        return model.logits(jnp.concatenate(states, axis=1))

    for length in range(1, M):
        assert_close(written(length, CODES[:, length]), whole[:, length - 1])


def test_beams_find_the_items_that_the_plain_forward_pass_prefers():
    history, prompt = History(CODES[:, :3], jnp.array([3, 2])), jnp.full((2, 1), CFG.start_token)
    catalogue = ALL[::2]
    options = {"level_tokens": CFG.level_tokens, "context": history}
    found = search_items(
        FN,
        PARAMS,
        prompt,
        jnp.ones(2, jnp.int32),
        indexes=[build_prefix_index(catalogue, SIZES)],
        num_beams=len(catalogue),
        **options,
    )
    scores = score_items(
        FN, PARAMS, prompt, jnp.ones(2, jnp.int32), codes=catalogue, items_at_a_time=5, **options
    )
    tokens = jnp.asarray(catalogue) + jnp.array(CFG.level_tokens)[None]
    for row, length in enumerate((3, 2)):
        n = len(catalogue)
        read = jnp.broadcast_to(CODES[row, :length], (n, length, Q))
        logits = call(jnp.concatenate([read, jnp.asarray(catalogue)[:, None]], axis=1))[:, -1]
        steps = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=2)
        assert_close(scores[row], steps.sum(axis=(1, 2)))
        assert_close(found.log_probability[row], jnp.sort(steps.sum(axis=(1, 2)))[::-1])


def test_packed_histories_do_not_see_each_other():
    one, other = CODES[:1, :3], CODES[1:, :4]
    segments = jnp.array([[1, 1, 2, 2, 2]])
    items = jnp.concatenate([one[:, :-1], other[:, :-1]], axis=1)
    targets = jnp.concatenate([one[:, 1:], other[:, 1:]], axis=1)
    indices = jnp.array([[0, 1, 0, 1, 2]])
    packed = FN.bind(PARAMS)(items, targets, segments=segments, indices=indices)
    assert_close(packed[:, :2], call(one))
    assert_close(packed[:, 2:], call(other))


def test_the_loss_counts_the_codes_of_real_items():
    rng = np.random.default_rng(1)
    table = jnp.asarray(ALL)
    items, targets = rng.integers(0, len(ALL), (2, 2, 4)).astype(np.int32)
    segments = np.array([[1, 1, 2, 2], [1, 1, 0, 0]], np.int32)
    positions = np.array([[0, 1, 0, 1], [0, 1, 0, 0]], np.int32)
    loss = jax.jit(lambda batch: next_code_loss(FN.bind(PARAMS), batch, table))
    batch = NextItemBatch(items, targets, segments, positions)
    terms = loss(batch)
    logits = FN.bind(PARAMS)(
        table[items],
        table[targets],
        segments=jnp.asarray(segments),
        indices=jnp.asarray(positions),
    )
    shares = jax.nn.log_softmax(logits)
    for row, length in enumerate((4, 2)):
        expected = -sum(
            shares[row, place, level, CFG.level_tokens[level] + ALL[targets[row, place], level]]
            for place in range(length)
            for level in range(Q)
        )
        assert_close(terms.nats[row], expected)
    assert terms.tokens.tolist() == [4 * Q, 2 * Q]
    items[1, 2:] = targets[1, 2:] = 0
    np.testing.assert_array_equal(terms.nats, loss(batch).nats)


def test_dropout_acts_with_a_key_only():
    with_key = call(CODES, jax.random.key(0))
    assert np.abs(with_key - call(CODES)).max() > 1e-2
    np.testing.assert_array_equal(with_key, call(CODES, jax.random.key(0)))


def test_what_cannot_be_is_refused():
    model = FN.bind(PARAMS)
    with pytest.raises(ValueError, match="a history of 6 items must have at most max_items=5"):
        model.encode(jnp.zeros((1, 6, Q), jnp.int32))
    with pytest.raises(ValueError, match="context must be a History of 2 rows"):
        model.empty_cache(2, Q)
    with pytest.raises(ValueError, match=r"sizes=\(3, 0\) must be at least 1"):
        GenerativeRecommenderConfig(sizes=(3, 0), transformer=CFG.transformer, encoder_layers=1)
    with pytest.raises(ValueError, match="max_items=0 must be at least 1"):
        GenerativeRecommenderConfig(
            sizes=(3,), transformer=CFG.transformer, encoder_layers=1, max_items=0
        )
