"""Our generator and the same model in plain PyTorch: equal losses, equal gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.functional import purify
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    IngredientGenerator,
    remaining_set_loss,
)

pytestmark = pytest.mark.parity

V, C, A, E, M = 23, 6, 11, 16, 7


@pytest.fixture(scope="module")
def torch_generator():
    pytest.importorskip("torch")
    from benchmarks import torch_generator

    return torch_generator


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "pairs"])
def setting(request):
    rng = np.random.default_rng(0)
    observed = (rng.random((V, C)) < 0.7).astype(np.float32)
    has_flavour = (rng.random(V) < 0.6).astype(np.float32)
    flavour = (rng.random((V, A)) < 0.3).astype(np.float32) * has_flavour[:, None]
    molecules = Molecules(
        composition=rng.normal(size=(V, C)).astype(np.float32) * observed,
        observed=observed,
        flavour=flavour,
        has_flavour=has_flavour,
    )
    cfg = GeneratorConfig(
        embedding=FoodEmbeddingConfig(num_foods=V, num_components=C, num_compounds=A, embed_dim=E),
        transformer=TransformerConfig(num_layers=2, embed_dim=E, num_heads=4),
        pairs=request.param,
        max_foods=M,
    )
    lengths = np.array([3, M, 1, 5], np.int32)
    foods = np.full((len(lengths), M), V, np.int32)
    for row, n in zip(foods, lengths, strict=True):
        row[:n] = rng.permutation(V)[:n]
    batch = RecipeBatch(jnp.asarray(foods), jnp.asarray(lengths), jnp.zeros(foods.shape))
    fn, params = purify(IngredientGenerator(cfg, rngs=nnx.Rngs(0)))
    # Zero biases and unit scales would hide a parameter that lands in the wrong place.
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.1 * noise.normal(size=p.shape).astype(np.float32), params)
    return cfg, fn, params, molecules, batch


def objective(fn, molecules, batch):
    def loss(params):
        terms = remaining_set_loss(fn.bind(params)(molecules, batch.foods), batch)
        return terms.total.sum() / terms.choices.sum()

    return loss


def test_losses_and_gradients_agree(setting, torch_generator):
    import torch

    cfg, fn, params, molecules, batch = setting
    loss, grads = jax.jit(jax.value_and_grad(objective(fn, molecules, batch)))(params)
    model = torch_generator.torch_generator(cfg, molecules, params).eval()
    foods, lengths = (
        torch.tensor(np.asarray(batch.foods)).long(),
        torch.tensor(np.asarray(batch.lengths)).long(),
    )
    nats = torch_generator.remaining_set_nats(model(foods), foods, lengths)
    nats.backward()
    np.testing.assert_allclose(float(nats.detach()), float(loss), rtol=1e-6)
    expected = torch_generator.to_torch_layout(grads)
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert theirs.keys() == expected.keys()
    for name, grad in theirs.items():
        scale = np.abs(expected[name]).max()
        assert scale > 0, name
        np.testing.assert_allclose(grad / scale, expected[name] / scale, atol=2e-5, err_msg=name)


def test_logits_agree_on_real_prefixes(setting, torch_generator):
    import torch

    cfg, fn, params, molecules, batch = setting
    ours = fn.bind(params)(molecules, batch.foods)
    model = torch_generator.torch_generator(cfg, molecules, params).eval()
    with torch.no_grad():
        theirs = model(torch.tensor(np.asarray(batch.foods)).long()).numpy()
    real = np.arange(M + 1) <= np.asarray(batch.lengths)[:, None]
    np.testing.assert_allclose(theirs[real], np.asarray(ours)[real], atol=2e-5)
