"""SASRec: blind to the future and to its neighbours in a row, its loss the softmax by hand."""

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
    shape = TransformerConfig(num_layers=2, embed_dim=8, num_heads=2, dropout_rate=0.5)
    return SasrecConfig(**{"num_items": NUM_ITEMS, "transformer": shape, **changes})


def tiny(**changes):
    return purify(Sasrec(config(**changes), rngs=nnx.Rngs(0)))


def packed() -> NextItemBatch:
    """One row of 4 + 3 items and two of padding, one row of 9."""
    segments = jnp.asarray([[1] * 4 + [2] * 3 + [0] * 2, [1] * 9], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 0, 0], range(9)], jnp.int32)
    return NextItemBatch(ITEMS, TARGETS, segments, positions)


def test_the_future_changes_nothing_bit_for_bit():
    fn, params = tiny()
    scores = jax.jit(lambda items: fn.bind(params)(items))
    changed = scores(ITEMS.at[:, 5:].add(1) % NUM_ITEMS)
    np.testing.assert_array_equal(changed[:, :5], scores(ITEMS)[:, :5])
    assert not np.array_equal(changed[:, 5:], scores(ITEMS)[:, 5:])


def test_a_packed_history_is_what_it_is_alone():
    fn, params = tiny()
    batch = packed()
    model = fn.bind(params)
    whole = model(ITEMS, segments=batch.segments, indices=batch.positions)
    for start, stop in ((0, 4), (4, 7)):
        assert_close(whole[:1, start:stop], model(ITEMS[:1, start:stop]))


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_loss_is_the_softmax_by_hand_and_padding_adds_nothing(temperature):
    fn, params = tiny(temperature=temperature)
    batch, model = packed(), fn.bind(params)
    scores = model(ITEMS, segments=batch.segments, indices=batch.positions)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(scores), TARGETS[..., None], axis=-1)[..., 0]
    expected = jnp.where(batch.segments > 0, nats, 0.0).sum(axis=1)
    for at_once in (1, 4, 64):
        terms = next_item_loss(model, batch, positions_at_once=at_once)
        assert_close(terms.nats, expected)
        np.testing.assert_array_equal(terms.items, [7.0, 9.0])
    other = batch._replace(
        items=ITEMS.at[0, 7:].set(3), targets=TARGETS.at[0, 7:].set(NUM_ITEMS - 1)
    )
    assert_close(next_item_loss(model, other).nats, terms.nats)


def test_gradients_are_those_of_the_whole_softmax():
    fn, params = tiny()
    batch = packed()

    def in_parts(params):
        return next_item_loss(fn.bind(params), batch, positions_at_once=4).nats.sum()

    def at_once(params):
        model = fn.bind(params)
        scores = model(ITEMS, segments=batch.segments, indices=batch.positions)
        log_p = jax.nn.log_softmax(scores)
        nats = -jnp.take_along_axis(log_p, TARGETS[..., None], axis=-1)[..., 0]
        return jnp.where(batch.segments > 0, nats, 0.0).sum()

    assert_close(jax.grad(in_parts)(params), jax.grad(at_once)(params), "gradient")


def test_items_share_one_table_and_a_cosine_knows_no_lengths():
    fn, params = tiny()
    assert {path[0] for path in map(lambda leaf: leaf.path, fn.leaves)} == {
        "embedding",
        "positions",
        "stack",
    }
    fn, params = tiny(temperature=0.5)
    model = fn.bind(params)
    np.testing.assert_allclose(jnp.linalg.norm(model.item_vectors(), axis=1), 1.0, rtol=1e-6)
    assert float(jnp.abs(model(ITEMS)).max()) <= 2.0 + 1e-5
    assert_close(unit_vectors(jnp.zeros((2, 3))), jnp.zeros((2, 3)))


def test_dropout_needs_a_key_and_reaches_the_embeddings():
    shape = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2, dropout_rate=0.5)
    fn, params = tiny(transformer=shape)
    model, batch = fn.bind(params), packed()
    quiet = next_item_loss(model, batch)
    assert_close(next_item_loss(model, batch), quiet)
    first, second = (next_item_loss(model, batch, jax.random.key(i)).nats for i in (0, 1))
    assert not np.allclose(first, second) and not np.allclose(first, quiet.nats)
    # With the blocks' outputs at zero only the embeddings' dropout is left.
    still = jax.tree.map(lambda leaf: leaf, params)
    still["stack"]["blocks"] = jax.tree.map(jnp.zeros_like, params["stack"]["blocks"])
    model = fn.bind(still)
    assert not np.allclose(model.states(ITEMS, key=jax.random.key(0)), model.states(ITEMS))


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
