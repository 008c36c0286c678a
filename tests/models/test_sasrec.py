"""SASRec: blind to the future and to its neighbours in a row, its loss the softmax by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.batches import NextItemBatch
from recipe_jax.functional import purify
from recipe_jax.layers.positions import Learned, Rope
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.sasrec import Sasrec, SasrecConfig, next_item_loss, unit_vectors

NUM_ITEMS = 23
RNG = np.random.default_rng(0)
ITEMS = jnp.asarray(RNG.integers(0, NUM_ITEMS, (2, 9)), jnp.int32)
TARGETS = jnp.asarray(RNG.integers(0, NUM_ITEMS, (2, 9)), jnp.int32)


def config(**changes) -> SasrecConfig:
    shape = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2, dropout_rate=0.5)
    return SasrecConfig(**{"num_items": NUM_ITEMS, "transformer": shape, **changes})


def tiny(**changes):
    return purify(Sasrec(config(**changes), rngs=nnx.Rngs(0)))


@functools.partial(jax.jit, static_argnums=0)
def scores_of(fn, params, items, segments=None, indices=None):
    return fn.bind(params)(items, segments=segments, indices=indices)


@functools.partial(jax.jit, static_argnums=(0, 4))
def terms_of(fn, params, batch, key=None, at_once=64):
    return next_item_loss(fn.bind(params), batch, key, positions_at_once=at_once)


def by_hand(fn, params, batch):
    """Nats of each row, from the whole softmax."""
    scores = scores_of(fn, params, batch.items, batch.segments, batch.positions)
    log_p = jax.nn.log_softmax(scores)
    nats = -jnp.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
    return jnp.where(batch.segments > 0, nats, 0.0).sum(axis=1)


def packed() -> NextItemBatch:
    """One row of 4 + 3 items and two of padding, one row of 9."""
    segments = jnp.asarray([[1] * 4 + [2] * 3 + [0] * 2, [1] * 9], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 0, 0], range(9)], jnp.int32)
    return NextItemBatch(ITEMS, TARGETS, segments, positions)


def test_the_future_changes_nothing_bit_for_bit():
    fn, params = tiny()
    scores = scores_of(fn, params, ITEMS)
    changed = scores_of(fn, params, ITEMS.at[:, 5:].add(1) % NUM_ITEMS)
    np.testing.assert_array_equal(changed[:, :5], scores[:, :5])
    assert not np.array_equal(changed[:, 5:], scores[:, 5:])


def test_a_packed_history_is_what_it_is_alone():
    fn, params = tiny()
    batch = packed()
    whole = scores_of(fn, params, ITEMS, batch.segments, batch.positions)
    for start, stop in ((0, 4), (4, 7)):
        assert_close(whole[:1, start:stop], scores_of(fn, params, ITEMS[:1, start:stop]))


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_loss_is_the_softmax_by_hand_and_padding_adds_nothing(temperature):
    fn, params = tiny(temperature=temperature)
    batch = packed()
    for at_once in (1, 8):
        terms = terms_of(fn, params, batch, None, at_once)
        assert_close(terms.nats, by_hand(fn, params, batch))
        np.testing.assert_array_equal(terms.items, [7.0, 9.0])
    other = batch._replace(
        items=ITEMS.at[0, 7:].set(3), targets=TARGETS.at[0, 7:].set(NUM_ITEMS - 1)
    )
    assert_close(terms_of(fn, params, other, None, 8).nats, terms.nats)


def test_gradients_are_those_of_the_whole_softmax():
    fn, params = tiny()
    batch = packed()
    in_parts = jax.grad(lambda p: terms_of(fn, p, batch, None, 8).nats.sum())
    at_once = jax.grad(lambda p: by_hand(fn, p, batch).sum())
    assert_close(jax.jit(in_parts)(params), jax.jit(at_once)(params), "gradient")


def test_items_share_one_table_and_a_cosine_knows_no_lengths():
    fn, params = tiny(temperature=0.5)
    assert set(params) == {"embedding", "positions", "stack"}
    scores = scores_of(fn, params, ITEMS)
    assert float(jnp.abs(scores).max()) <= 1 / 0.5 + 1e-5
    table = params["embedding"]["table"]
    longer = params | {"embedding": {"table": table * jnp.asarray([[5.0]])}}
    vectors = fn.bind(longer).item_vectors()
    assert_close(vectors, fn.bind(params).item_vectors())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)
    assert_close(unit_vectors(jnp.zeros((2, 3))), jnp.zeros((2, 3)))


def test_dropout_needs_a_key_and_reaches_the_embeddings():
    fn, params = tiny()
    batch = packed()
    quiet = terms_of(fn, params, batch).nats
    first, second = (terms_of(fn, params, batch, jax.random.key(i)).nats for i in (0, 1))
    assert not np.allclose(first, second) and not np.allclose(first, quiet)
    # With the blocks' outputs at zero only the embeddings' dropout is left.
    blocks = jax.tree.map(jnp.zeros_like, params["stack"]["blocks"])
    still = params | {"stack": params["stack"] | {"blocks": blocks}}
    noisy = terms_of(fn, still, batch, jax.random.key(0)).nats
    assert not np.allclose(noisy, terms_of(fn, still, batch).nats)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_items": 0}, "num_items=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"positions": Learned(10), "max_items": 11}, "must cover max_items=11"),
    ],
)
def test_a_shape_that_breaks_a_rule_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
    config(positions=Rope(), max_items=1000)
