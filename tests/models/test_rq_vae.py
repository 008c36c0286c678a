"""RQ-VAE: its terms against their formulas, and where their gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import purify
from recipe_jax.layers.residual_quantizer import straight_through
from recipe_jax.models.residual_codebooks import ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVae, RqVaeConfig, rq_vae_loss

CFG = RqVaeConfig(in_dim=6, latent_dim=4, hidden_dims=(8,), num_levels=2, num_codes=5)
FN, PARAMS = purify(RqVae(CFG, rngs=nnx.Rngs(0)))
VECTORS = jnp.asarray(np.random.default_rng(0).normal(size=(9, 6)), jnp.float32)


@jax.jit
def terms_of(params):
    return rq_vae_loss(FN.bind(params), VECTORS, gradient=straight_through)


def test_terms_are_squared_lengths_of_what_is_left_over():
    terms, quantized = terms_of(PARAMS)
    model = FN.bind(PARAMS)
    decoded = model.decode(quantized.codes)
    assert_close(terms.reconstruction, np.square(decoded - VECTORS).sum(axis=1))
    left = np.asarray(model.latents(VECTORS))
    expected = np.zeros(9)
    for level in range(2):
        left = left - np.asarray(quantized.codewords[:, level])
        expected += np.square(left).sum(axis=1)
    assert_close(terms.commitment, expected)
    np.testing.assert_array_equal(terms.codebook, terms.commitment)


def test_each_term_teaches_its_own_part():
    def touched(name):
        gradient = jax.grad(lambda params: getattr(terms_of(params)[0], name).sum())(PARAMS)
        parts = {part: jax.tree.leaves(tree) for part, tree in gradient.items()}
        return {part for part, leaves in parts.items() if any(np.any(x) for x in leaves)}

    assert touched("reconstruction") == {"encoder", "decoder"}
    assert touched("commitment") == {"encoder"}
    assert touched("codebook") == {"codebooks"}


def test_straight_through_the_encoder_gets_the_gradient_of_the_quantized_latents_once():
    def of_encoder(params):
        return terms_of(params)[0].reconstruction.sum()

    def written_out(params):
        model, fixed = FN.bind(params), FN.bind(PARAMS)
        latents = model.latents(VECTORS)
        shift = fixed.codebooks.quantize(fixed.latents(VECTORS)).vectors - fixed.latents(VECTORS)
        return jnp.square(model.decoder(latents + shift) - VECTORS).sum()

    got, expected = (jax.grad(f)(PARAMS)["encoder"] for f in (of_encoder, written_out))
    assert_close(got, expected, "gradient")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RqVaeConfig(in_dim=0), "in_dim=0 must be at least 1"),
        (lambda: RqVaeConfig(in_dim=4, latent_dim=0), "latent_dim=0 must be at least 1"),
        (lambda: RqVaeConfig(in_dim=4, num_codes=0), "num_codes=0 must be at least 1"),
        (lambda: RqVaeConfig(in_dim=4, activation="swiglu"), "is a gated unit"),
        (lambda: ResidualCodebooksConfig(in_dim=4, num_levels=0), "num_levels=0 must be"),
    ],
)
def test_what_makes_no_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
