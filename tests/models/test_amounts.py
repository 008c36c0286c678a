"""The mixture on the simplex: a set model that can hold two kinds of cake at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import helmert
from scipy.stats import multivariate_normal
from tolerances import assert_close
from two_cakes import (
    EMBEDDING,
    MOLECULES,
    TRANSFORMER,
    E,
    V,
    build,
    butter_ratio,
    cakes,
    fit,
    holds_both_cakes,
    padded,
)

from recipe_jax.models.amounts import (
    AmountsConfig,
    AmountsModel,
    Mixture,
    amounts_loss,
    mean_log_ratios,
    sample_proportions,
)
from recipe_jax.models.simplex import centre, centred_log_ratio, member_mask, proportions

CFG = AmountsConfig(embedding=EMBEDDING, transformer=TRANSFORMER, num_components=3)
BATCH = padded([[4, 0, 2, 5], [1, 6], [3]], 5, [[10.0, 200.0, 5.0, 80.0], [3.0, 400.0], [250.0]])


@functools.cache
def model(cfg=CFG):
    return build(lambda: AmountsModel(cfg, rngs=nnx.Rngs(0)))


@functools.partial(jax.jit, static_argnums=0)
def run(fn, params, batch):
    return fn.bind(params)(MOLECULES, batch.foods, batch.lengths)


@functools.partial(jax.jit, static_argnums=0)
def gradient_and_terms(fn, params, batch):
    def loss(params):
        terms = amounts_loss(run(fn, params, batch), batch, mean_weight=0.5)
        return terms.total.sum(), terms

    return jax.grad(loss, has_aux=True)(params)


def mixture_of(batch):
    return run(*model(), batch)


def test_the_model_commutes_with_permutations_so_positions_mean_nothing():
    turned = padded([[5, 2, 4, 0], [6, 1], [3]], 5)
    plain, moved = mixture_of(BATCH), mixture_of(turned)
    assert_close(moved.log_weights, plain.log_weights)
    for got, wanted in ((moved.means, plain.means), (moved.scales, plain.scales)):
        assert_close(got[0, :, :4], wanted[0][:, jnp.array([3, 2, 0, 1])])
        assert_close(got[1, :, :2], wanted[1][:, jnp.array([1, 0])])


def test_members_do_not_see_padding_or_its_size():
    wide = padded([[4, 0, 2, 5], [1, 6], [3]], 8)
    dirty = wide._replace(foods=jnp.where(wide.foods == V, 1, wide.foods))
    for batch in (wide, dirty):
        got, wanted = mixture_of(batch), mixture_of(BATCH)
        assert_close(got.log_weights, wanted.log_weights)
        for row, length in enumerate(BATCH.lengths):
            assert_close(got.means[row, :, :length], wanted.means[row, :, :length])
            assert_close(got.scales[row, :, :length], wanted.scales[row, :, :length])


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_grams_at_padding_change_neither_loss_nor_gradient(garbage):
    members = member_mask(BATCH.lengths, 5)
    dirty = BATCH._replace(grams=jnp.where(members, BATCH.grams, garbage))
    assert_close(
        gradient_and_terms(*model(), dirty), gradient_and_terms(*model(), BATCH), kind="gradient"
    )


def test_the_loss_is_the_density_of_the_mixture_and_the_error_of_its_mean():
    mixture = mixture_of(BATCH)
    terms = amounts_loss(mixture, BATCH, mean_weight=0.5)
    weights, means, scales = (np.asarray(x, np.float64) for x in mixture)
    for row, length in enumerate([4, 2]):
        y = np.log(np.asarray(BATCH.grams[row, :length], np.float64))
        y -= y.mean()
        basis = helmert(length)
        density = sum(
            np.exp(weights[row, n])
            * multivariate_normal(
                basis @ means[row, n, :length],
                basis @ np.diag(scales[row, n, :length] ** 2) @ basis.T,
            ).pdf(basis @ y)
            for n in range(3)
        )
        error = y - np.exp(weights[row]) @ means[row, :, :length]
        assert_close(terms.nats[row], -np.log(density) / (length - 1))
        assert_close(terms.error[row], np.sqrt(np.mean(error**2)))
        assert_close(terms.total[row], terms.nats[row] + 0.5 * terms.error[row])


def test_recipes_without_weights_or_with_one_food_teach_nothing():
    batch = padded([[4, 0, 2], [3], []], 5, [[0.0, 0.0, 0.0], [250.0], []])
    gradient, terms = gradient_and_terms(*model(), batch)
    for values in terms:
        assert_close(values, jnp.zeros(3))
    assert_close(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_samples_sum_to_one_and_padding_gets_nothing():
    samples = sample_proportions(
        mixture_of(BATCH), BATCH.lengths, jax.random.key(0), num_samples=50
    )
    members = np.asarray(member_mask(BATCH.lengths, 5))
    assert_close(samples.sum(axis=-1), jnp.ones((50, 3)))
    assert (np.asarray(samples)[:, members] > 0).all()
    assert (np.asarray(samples)[:, ~members] == 0).all()
    point = proportions(mean_log_ratios(mixture_of(BATCH)), jnp.asarray(members))
    assert_close(point.sum(axis=-1), jnp.ones(3))


def test_the_moments_of_samples_are_those_of_the_mixture():
    members = member_mask(jnp.array([3]), 4)
    weights = np.array([0.3, 0.7])
    scales = np.array([[0.2, 0.5, 0.3], [0.4, 0.1, 0.6]])
    means = np.array([[1.0, -1.0, 0.0], [-0.5, 0.2, 0.3]])
    pad = ((0, 0), (0, 1))
    mixture = Mixture(
        jnp.log(jnp.asarray(weights, jnp.float32))[None],
        jnp.asarray(np.pad(means, pad), jnp.float32)[None],
        jnp.asarray(np.pad(scales, pad, constant_values=np.nan), jnp.float32)[None],
    )
    count = 40_000
    samples = sample_proportions(mixture, jnp.array([3]), jax.random.key(0), num_samples=count)
    flat = centred_log_ratio(samples[:, 0], jnp.broadcast_to(members, (count, 4)))
    y = np.asarray(flat, np.float64)[:, :3]
    middle = weights @ means
    onto = np.eye(3) - 1 / 3
    covariance = sum(
        w * (onto @ np.diag(s**2) @ onto + np.outer(m - middle, m - middle))
        for w, m, s in zip(weights, means, scales, strict=True)
    )
    # Five standard errors of a mean and of a covariance of this many draws.
    assert np.abs(y.mean(axis=0) - middle).max() < 5 * np.sqrt(covariance.max() / count)
    assert np.abs(np.cov(y.T) - covariance).max() < 5 * covariance.max() * np.sqrt(3 / count)
    assert_close(mean_log_ratios(mixture)[0, :3], middle)


def test_means_are_centred():
    mixture = mixture_of(BATCH)
    members = member_mask(BATCH.lengths, 5)[:, None]
    assert_close(centre(mixture.means, members), mixture.means)
    assert np.unique(np.asarray(mixture.scales)).size > 3


@pytest.mark.parametrize("num_components", [1, 3])
def test_a_mixture_holds_both_cakes_and_the_mean_model_falls_between(num_components):
    plain = num_components == 1
    cfg = dataclasses.replace(CFG, num_components=num_components, shared_scale=plain)
    fn, params = build(lambda: AmountsModel(cfg, rngs=nnx.Rngs(0)))

    def loss(params, batch, key):
        mixture = run(fn, params, batch)
        return amounts_loss(mixture, batch, mean_weight=float(plain)).total.mean()

    rng = np.random.default_rng(0)
    params = fit(params, loss, [cakes(rng, 64) for _ in range(250)])
    asked = padded([[0, 1, 2]], 4)
    mixture = run(fn, params, asked)
    assert (np.unique(np.asarray(mixture.scales)).size == 1) == plain
    samples = sample_proportions(mixture, asked.lengths, jax.random.key(0), num_samples=500)
    assert holds_both_cakes(butter_ratio(samples)) != plain
    middle = mean_log_ratios(mixture)[0]
    # Half-way between 0 and 2.3: a cake that nobody bakes, and the best that a mean can say.
    assert 0.8 < middle[0] - middle[1] < 1.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding": dataclasses.replace(EMBEDDING, embed_dim=8)}, f"embed_dim=8 .*={E}"),
        ({"num_components": 0}, "num_components=0"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **fields)
