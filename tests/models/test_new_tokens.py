"""Tokens that come later: what the model knew stays, and its new words can be learned alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_language_model import VOCAB_SIZE, tiny_config, tiny_model
from tolerances import assert_close

from recipe_jax.batches import TokenBatch
from recipe_jax.functional import flat_params
from recipe_jax.models.causal_language_model import next_token_loss
from recipe_jax.models.new_tokens import add_tokens, new_token_mask
from recipe_jax.training.optimizers import hold_fixed, train_only
from recipe_jax.training.state import init_state
from recipe_jax.training.step import make_train_step

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 6)), jnp.int32)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("first", [VOCAB_SIZE, VOCAB_SIZE - 3])
def test_logits_of_known_tokens_stay(tied, first):
    fn, params = tiny_model(tiny_config(tied=tied))
    cfg, grown, more = add_tokens(tiny_config(tied=tied), params, first, 5, seed=1)
    assert cfg.vocab_size == max(VOCAB_SIZE, first + 5)
    known = TOKENS % first
    logits = grown.bind(more)(known)
    assert logits.shape[-1] == cfg.vocab_size
    assert_close(logits[..., :first], fn.bind(params)(known)[..., :first])
    for path, leaf in flat_params(more).items():
        table = {("embedding", "table"): leaf, ("head", "kernel"): leaf.T}.get(path)
        before = flat_params(params)[path]
        if table is None:
            np.testing.assert_array_equal(leaf, before)
            continue
        before = before if path[0] == "embedding" else before.T
        np.testing.assert_array_equal(table[:first], before[:first])
        assert len(np.unique(table[first:], axis=0)) == 5


def test_new_vectors_are_spread_like_the_known():
    params = {
        "embedding": {
            "table": 3.0 + jnp.asarray(np.random.default_rng(0).normal(size=(13, 12)), jnp.float32)
        }
    }
    cfg = tiny_config(tied=True)
    new = add_tokens(cfg, params, VOCAB_SIZE, 4000, seed=0)[2]["embedding"]["table"][VOCAB_SIZE:]
    known = params["embedding"]["table"]
    np.testing.assert_allclose(new.mean(0), known.mean(0), atol=0.1)
    np.testing.assert_allclose(new.std(0), known.std(0), rtol=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_weight_decay_never_moves_what_is_frozen(tied):
    _, fn, params = add_tokens(
        tiny_config(tied=tied), tiny_model(tiny_config(tied=tied))[1], VOCAB_SIZE, 4, seed=1
    )
    before = jax.tree.map(np.asarray, params)
    mask = new_token_mask(params, VOCAB_SIZE, 4)
    optimizer = train_only(optax.adamw(0.1, weight_decay=0.5), mask)

    def objective(params, batch, key):
        terms = next_token_loss(fn.bind(hold_fixed(params, mask)), batch, key)
        return terms.nats.sum() / terms.tokens.sum(), {}

    step = make_train_step(objective, optimizer)
    state = init_state(params, optimizer, jax.random.key(0))
    tokens = jnp.concatenate([TOKENS, VOCAB_SIZE + TOKENS[:, :2] % 4], axis=1)
    ones = jnp.ones(tokens.shape, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    batch = TokenBatch(tokens, ones, places, ones.astype(jnp.float32))
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] - 0.5
    for path, leaf in flat_params(state.params).items():
        after, known = np.asarray(leaf), flat_params(before)[path]
        if path == ("head", "kernel"):
            after, known = after.T, known.T
        if path in (("head", "kernel"), ("embedding", "table")):
            assert (after[VOCAB_SIZE:] != known[VOCAB_SIZE:]).any(axis=1).all()
            after, known = after[:VOCAB_SIZE], known[:VOCAB_SIZE]
        np.testing.assert_array_equal(after.view(np.int32), known.view(np.int32))


@pytest.mark.parametrize(("first", "num"), [(VOCAB_SIZE + 1, 2), (0, 2), (VOCAB_SIZE, 0)])
def test_a_gap_or_no_tokens_are_refused(first, num):
    with pytest.raises(ValueError, match="must be at least one, and the first must follow"):
        add_tokens(tiny_config(), tiny_model()[1], first, num, seed=0)
