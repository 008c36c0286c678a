import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.recipes.calibration import calibrate_scales, interval_share
from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.functional import abstract
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.amounts import AmountsConfig, AmountsModel
from recipe_jax.models.food_embedding import FoodEmbeddingConfig

V, M, SCALE = 5, 4, 0.5


def zero_model():
    """Every mean log-ratio is 0; only the scale is left."""
    cfg = AmountsConfig(
        embedding=FoodEmbeddingConfig(num_foods=V, num_components=2, num_compounds=2, embed_dim=4),
        transformer=TransformerConfig(num_layers=1, embed_dim=4, num_heads=1),
        num_components=1,
        shared_scale=True,
    )
    fn, shapes = abstract(lambda: AmountsModel(cfg, rngs=nnx.Rngs(0)))
    return fn, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


def test_scales_become_those_of_the_recipes_held_out():
    fn, params = zero_model()
    params["scale_bias"] = jnp.log(jnp.array([0.8]))
    molecules = Molecules(jnp.ones((V, 2)), jnp.ones((V, 2)), jnp.ones((V, 2)), jnp.ones(V))
    rng = np.random.default_rng(0)
    batches = [
        RecipeBatch(
            foods=np.tile(np.arange(M, dtype=np.int32), (400, 1)),
            lengths=np.full(400, M, np.int32),
            grams=np.exp(SCALE * rng.normal(size=(400, M))).astype(np.float32),
        )
        for _ in range(2)
    ]
    before = interval_share(fn, params, molecules, batches)
    found = calibrate_scales(fn, params, molecules, batches)
    assert before > 0.9
    assert abs(interval_share(fn, found, molecules, batches, seed=1) - 0.8) < 0.02
    np.testing.assert_allclose(np.exp(found["scale_bias"]), SCALE, rtol=0.06)
    same = {name: value for name, value in found.items() if name != "scale_bias"}
    expected = {name: value for name, value in params.items() if name != "scale_bias"}
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), same, expected)))
