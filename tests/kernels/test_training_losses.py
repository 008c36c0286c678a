"""Training gives the same losses whichever implementation attends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from recipe_kernels import ShardedAttention, attention
from tiny_language_model import VOCAB_SIZE, tiny_config
from tolerances import assert_close
from two_cakes import EMBEDDING, MOLECULES, TRANSFORMER, V, build, padded

from recipe_jax.batches import TokenBatch
from recipe_jax.functional import purify
from recipe_jax.layers.attention import dot_product_attention
from recipe_jax.models.causal_language_model import CausalLanguageModel, next_token_loss
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    IngredientGenerator,
    remaining_set_loss,
)
from recipe_jax.sharding import make_mesh

STEPS = 5
ATTENDS = {
    "tiled": functools.partial(attention, implementation="tiled"),
    "chosen": attention,
    "sharded": ShardedAttention(make_mesh("data=2,fsdp=2,tensor=2")),
}


def losses_of(objective, params) -> jax.Array:
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, found = optimizer.init(params), []
    for _ in range(STEPS):
        params, state, value = step(params, state)
        found.append(value)
    return jnp.stack(found)


def of_language_model(attend) -> jax.Array:
    fn, params = purify(CausalLanguageModel(tiny_config(), attend=attend, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, VOCAB_SIZE, (8, 24)), jnp.int32)
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (8, 24)), 1), jnp.int32)
    places = jnp.broadcast_to(jnp.arange(24), tokens.shape)
    batch = TokenBatch(tokens, segments, places, jnp.ones(tokens.shape))

    def objective(params):
        terms = next_token_loss(fn.bind(params), batch)
        return terms.nats.sum() / terms.tokens.sum()

    return losses_of(objective, params)


@pytest.mark.parametrize("name", ATTENDS)
def test_a_language_model_learns_alike(name):
    expected = of_language_model(dot_product_attention)
    assert expected[-1] < expected[0] - 0.1
    assert_close(of_language_model(ATTENDS[name]), expected, "gradient")


def of_generator(attend) -> jax.Array:
    cfg = GeneratorConfig(embedding=EMBEDDING, transformer=TRANSFORMER, max_foods=5)
    fn, params = build(lambda: IngredientGenerator(cfg, attend=attend, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    batch = padded([rng.permutation(V)[: rng.integers(2, 6)] for _ in range(8)], 5)

    def objective(params):
        logits = fn.bind(params)(MOLECULES, batch.foods)
        return remaining_set_loss(logits, batch).total.mean()

    return losses_of(objective, params)


@pytest.mark.parametrize("name", ATTENDS)
def test_a_generator_of_sets_learns_alike(name):
    expected = of_generator(dot_product_attention)
    assert expected[-1] < expected[0] - 0.1
    assert_close(of_generator(ATTENDS[name]), expected, "gradient")
