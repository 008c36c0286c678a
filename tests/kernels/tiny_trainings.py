"""Two trainings of a few steps, whichever attends: a language model on packed rows, and sets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tiny_language_model import VOCAB_SIZE, tiny_config
from two_cakes import EMBEDDING, MOLECULES, TRANSFORMER, V, build, padded

from recipe_jax.batches import TokenBatch
from recipe_jax.functional import purify
from recipe_jax.models.causal_language_model import CausalLanguageModel, next_token_loss
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    IngredientGenerator,
    remaining_set_loss,
)

STEPS = 5


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


def of_generator(attend) -> jax.Array:
    cfg = GeneratorConfig(embedding=EMBEDDING, transformer=TRANSFORMER, max_foods=5)
    fn, params = build(lambda: IngredientGenerator(cfg, attend=attend, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    batch = padded([rng.permutation(V)[: rng.integers(2, 6)] for _ in range(8)], 5)

    def objective(params):
        logits = fn.bind(params)(MOLECULES, batch.foods)
        return remaining_set_loss(logits, batch).total.mean()

    return losses_of(objective, params)


TRAININGS = {"a language model": of_language_model, "a generator of sets": of_generator}
