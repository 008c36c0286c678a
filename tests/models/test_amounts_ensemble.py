"""Models trained apart, as one mixture."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tolerances import assert_close
from two_cakes import EMBEDDING, MOLECULES, TRANSFORMER, padded

from recipe_jax.functional import purify
from recipe_jax.models.amounts import (
    AmountsConfig,
    AmountsModel,
    amounts_loss,
    mean_log_ratios,
)
from recipe_jax.models.amounts_ensemble import AmountsEnsemble, AmountsEnsembleConfig

CFG = AmountsConfig(embedding=EMBEDDING, transformer=TRANSFORMER, num_components=3)
BATCH = padded([[4, 0, 2, 5], [1, 6], [3]], 5, [[10.0, 200.0, 5.0, 80.0], [3.0, 400.0], [250.0]])


def noisy(seed):
    fn, params = purify(AmountsModel(CFG, rngs=nnx.Rngs(seed)))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + jax.random.normal(k, x.shape) / 4 for x, k in zip(leaves, keys, strict=True)]
    return fn, structure.unflatten(moved)


def test_an_ensemble_is_the_mean_of_its_models_densities_and_of_their_means():
    models = [noisy(seed) for seed in (1, 2)]
    apart = [fn.bind(params)(MOLECULES, BATCH.foods, BATCH.lengths) for fn, params in models]
    fn, shapes = purify(
        AmountsEnsemble(AmountsEnsembleConfig(model=CFG, num_models=2), rngs=nnx.Rngs(0))
    )
    params = {"models": jax.tree.map(lambda *x: jnp.stack(x), *(params for _, params in models))}
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    together = fn.bind(params)(MOLECULES, BATCH.foods, BATCH.lengths)
    assert together.means.shape == (3, 6, 5)
    means = jnp.stack([mean_log_ratios(mixture) for mixture in apart])
    assert jnp.abs(means[0] - means[1]).max() > 0.1
    assert_close(mean_log_ratios(together), means.mean(axis=0))
    nats = [amounts_loss(mixture, BATCH, mean_weight=0.0).nats for mixture in (*apart, together)]
    free = jnp.maximum(BATCH.lengths - 1, 1)
    densities = jnp.exp(-jnp.stack(nats) * free[None])
    assert_close(densities[2, :2], densities[:2, :2].mean(axis=0))


def test_its_models_begin_apart():
    _, params = purify(
        AmountsEnsemble(AmountsEnsembleConfig(model=CFG, num_models=2), rngs=nnx.Rngs(0))
    )
    first, second = params["models"]["mean_weight"]
    assert jnp.abs(first - second).max() > 0.1


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(ValueError, match="num_models=0 must be at least 1"):
        AmountsEnsembleConfig(model=CFG, num_models=0)
