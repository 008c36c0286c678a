"""A tiny vocabulary, and recipes of one food set in two clearly different proportions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.functional import abstract
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig

V, C, A, E = 7, 3, 4, 16
_RNG = np.random.default_rng(0)
MOLECULES = Molecules(
    composition=jnp.asarray(_RNG.normal(size=(V, C)), jnp.float32),
    observed=jnp.ones((V, C)),
    flavour=jnp.asarray(_RNG.integers(0, 2, (V, A)), jnp.float32),
    has_flavour=jnp.ones(V),
)
EMBEDDING = FoodEmbeddingConfig(num_foods=V, num_components=C, num_compounds=A, embed_dim=E)
TRANSFORMER = TransformerConfig(num_layers=1, embed_dim=E, num_heads=2)

POUND_CAKE, SPONGE = (200.0, 200.0, 200.0), (300.0, 30.0, 95.0)
"""Grams of foods 0, 1 and 2: the log-ratio of the first two is 0 or 2.3."""


def build(make_module):
    """A pure function and random parameters; drawn by numpy, since compiling their draw is slow."""
    fn, shapes = abstract(make_module)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        is_norm = path[-1].key == "scale"
        values = rng.normal(1.0 if is_norm else 0.0, E**-0.5, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    return fn, jax.tree_util.tree_map_with_path(draw, shapes)


def padded(rows, size, grams=None) -> RecipeBatch:
    """Recipes as a batch; amounts are zero where none are given."""
    foods = np.full((len(rows), size), V, np.int32)
    amounts = np.zeros((len(rows), size), np.float32)
    for i, row in enumerate(rows):
        foods[i, : len(row)] = row
        if grams is not None:
            amounts[i, : len(row)] = grams[i]
    lengths = np.array([len(row) for row in rows], np.int32)
    return RecipeBatch(*map(jnp.asarray, (foods, lengths, amounts)))


def cakes(rng: np.random.Generator, count: int) -> RecipeBatch:
    """Both cakes equally often, of any size, their members in random order."""
    kinds = np.array([POUND_CAKE, SPONGE])[rng.integers(0, 2, count)]
    sizes = np.exp(rng.normal(0.0, 0.4, (count, 1)) + rng.normal(0.0, 0.05, (count, 3)))
    order = rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1)
    return padded(order, 4, np.take_along_axis(kinds * sizes, order, axis=1))


def fit(params, loss, batches, *, learning_rate=1e-2):
    """Minimise `loss(params, batch, key)` over a list of batches; one compilation."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, len(batches)))

    @jax.jit
    def run(params, batches, keys):
        def step(state, given):
            params, opt_state = state
            updates, opt_state = optimizer.update(jax.grad(loss)(params, *given), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), (batches, keys))[0][0]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    return run(params, stacked, jax.random.split(jax.random.key(0), len(batches)))


def butter_ratio(proportions) -> np.ndarray:
    """Log of food 0 over food 1 in compositions of the cakes, foods in the order 0, 1, 2."""
    p = np.asarray(proportions)
    return np.log(p[..., 0]) - np.log(p[..., 1])


def holds_both_cakes(ratios) -> bool:
    """Each kind in about half of the draws, hardly any in between."""
    pound, sponge = (np.abs(ratios - kind).ravel() < 0.6 for kind in (0.0, np.log(10.0)))
    return min(pound.mean(), sponge.mean()) > 0.3 and pound.mean() + sponge.mean() > 0.9
