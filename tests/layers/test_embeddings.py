"""Embeddings: rows of a table, tied logits, positions that are added."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.layers.embeddings import PositionEmbedding, TokenEmbedding
from recipe_jax.layers.positions import Learned, NoPositions, Rope, Sinusoidal

TOKENS = jnp.array([[3, 0, 3], [1, 4, 2]])


def test_tokens_are_scaled_rows_and_logits_are_unscaled_products():
    fn, params = purify(TokenEmbedding(5, 4, scale=2.0, rngs=nnx.Rngs(0)))
    table = np.asarray(params["table"])
    embedded = fn.bind(params)(TOKENS)
    assert_close(embedded, 2.0 * table[np.asarray(TOKENS)], "elementwise")
    assert_close(fn.bind(params).logits(embedded), np.asarray(embedded) @ table.T)
    assert fn.axes == {"table": ("vocab", "embed")}


def test_both_ends_of_a_tied_table_are_trained():
    fn, params = purify(TokenEmbedding(5, 4, rngs=nnx.Rngs(0)))

    def loss(params):
        logits = fn.bind(params).logits(fn.bind(params)(TOKENS[:1, :1]))
        return jax.nn.logsumexp(logits)

    assert (np.abs(jax.grad(loss)(params)["table"]).sum(1) > 0).all()


def test_initial_tied_logits_have_unit_variance():
    module = TokenEmbedding(400, 256, rngs=nnx.Rngs(0))
    states = jax.random.normal(jax.random.key(0), (50, 256))
    assert np.var(module.logits(states)) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("positions", [NoPositions(), Rope(), Sinusoidal(), Learned(7)])
def test_positions_are_added_where_their_kind_adds(positions):
    embeddings = jnp.ones((2, 3, 4))
    fn, params = purify(PositionEmbedding(positions, 4, rngs=nnx.Rngs(0)))
    table = params.get("table")
    assert (table is not None) == isinstance(positions, Learned)
    if table is not None:
        assert table.shape == (7, 4)
    expected = positions.encode(embeddings, jnp.arange(3)[None], table)
    assert_close(fn.bind(params)(embeddings), expected, "elementwise")
    added = np.abs(expected - embeddings).max() > 0
    assert added == isinstance(positions, Sinusoidal | Learned)
