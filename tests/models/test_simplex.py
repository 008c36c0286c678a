"""Log-ratios and proportions are inverse; the density is one, checked by oracle and quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import helmert
from scipy.stats import multivariate_normal
from tolerances import assert_close

from recipe_jax.models.simplex import (
    centre,
    centred_log_ratio,
    geometric_mean,
    logistic_normal_log_density,
    member_mask,
    proportions,
    root_mean_square,
    shares,
)

LENGTHS = jnp.array([4, 2, 1])
MEMBERS = member_mask(LENGTHS, 5)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def grams(rng):
    return jnp.where(MEMBERS, jnp.asarray(rng.exponential(100, (3, 5)), jnp.float32), 0.0)


def density_of(log_ratios, mean, scale, members=None):
    shape = np.broadcast_shapes(np.shape(log_ratios), np.shape(mean), np.shape(scale))
    arrays = [jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape) for x in (log_ratios, mean)]
    scale = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), shape)
    members = jnp.ones(shape, bool) if members is None else jnp.asarray(members)
    return jax.jit(logistic_normal_log_density)(*arrays, scale, members)


def test_log_ratios_lead_to_proportions_and_back(grams):
    log_ratios = centred_log_ratio(grams, MEMBERS)
    assert_close(log_ratios.sum(axis=-1), jnp.zeros(3), kind="forward")
    back = proportions(log_ratios, MEMBERS)
    assert_close(back, grams / grams.sum(axis=-1, keepdims=True))
    assert_close(centred_log_ratio(7.0 * grams, MEMBERS), log_ratios)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_may_hold_anything_and_gets_nothing(grams, garbage):
    dirty = jnp.where(MEMBERS, grams, garbage)
    assert_close(centred_log_ratio(dirty, MEMBERS), centred_log_ratio(grams, MEMBERS))
    for values in (proportions(dirty, MEMBERS), centre(dirty, MEMBERS)):
        assert (np.asarray(values)[~np.asarray(MEMBERS)] == 0).all()
    assert_close(proportions(dirty, MEMBERS).sum(axis=-1), jnp.ones(3))
    assert_close(root_mean_square(dirty, MEMBERS), root_mean_square(grams, MEMBERS))


def test_shares_sum_to_one_and_zeros_stay(grams):
    parts = shares(jnp.concatenate([grams, jnp.zeros((1, 5))]))
    assert_close(parts.sum(axis=-1), jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert_close(parts[:3], proportions(centred_log_ratio(grams, MEMBERS), MEMBERS))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_density_is_that_of_a_projected_normal(rng, size):
    mean, scale = rng.normal(size=size), rng.uniform(0.3, 2.0, size)
    z = rng.normal(size=(20, size))
    log_ratios = z - z.mean(axis=1, keepdims=True)
    basis = helmert(size)  # orthonormal coordinates of the hyperplane
    oracle = multivariate_normal(basis @ mean, basis @ np.diag(scale**2) @ basis.T)
    assert_close(density_of(log_ratios, mean, scale), oracle.logpdf(log_ratios @ basis.T))


@pytest.mark.parametrize("size", [2, 3])
def test_the_density_integrates_to_one(rng, size):
    mean, scale = 0.5 * rng.normal(size=size), rng.uniform(0.4, 1.2, size)
    axis = np.linspace(-8.0, 8.0, 401)
    grid = np.stack(np.meshgrid(*[axis] * (size - 1)), axis=-1).reshape(-1, size - 1)
    density = np.exp(np.asarray(density_of(grid @ helmert(size), mean, scale), np.float64))
    assert density.sum() * (axis[1] - axis[0]) ** (size - 1) == pytest.approx(1.0, abs=1e-4)


def test_the_density_sees_differences_of_means_in_any_order_and_no_padding(rng):
    y, mean = rng.normal(size=(2, 4, 3))
    y -= y.mean(axis=-1, keepdims=True)
    scale = rng.uniform(0.5, 2.0, (4, 3))
    plain = density_of(y, mean, scale)
    assert_close(density_of(y, mean + 3.0, scale), plain)
    turn = [2, 0, 1]
    assert_close(density_of(y[:, turn], mean[:, turn], scale[:, turn]), plain)
    wide = [np.pad(x, ((0, 0), (0, 2)), constant_values=np.nan) for x in (y, mean, scale)]
    members = np.arange(5)[None] < np.full((4, 1), 3)
    assert_close(density_of(*wide, members), plain)


def test_a_set_of_one_has_density_one_and_an_empty_one_is_finite_without_gradients():
    members = member_mask(jnp.array([0, 1]), 3)
    mean, scale = jnp.full((2, 3), 0.7), jnp.full((2, 3), 1.3)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradients_and_density(mean, scale):
        density = logistic_normal_log_density(jnp.zeros((2, 3)), mean, scale, members)
        return density.sum(), density

    gradients, density = gradients_and_density(mean, scale)
    assert_close(density[1], jnp.array(0.0))
    assert np.isfinite(density[0])
    assert_close(gradients, (jnp.zeros((2, 3)),) * 2, kind="gradient")


def test_gradients_stay_finite_where_the_error_is_zero():
    gradient = jax.grad(lambda x: root_mean_square(x, MEMBERS).sum())(jnp.zeros((3, 5)))
    assert_close(gradient, jnp.zeros((3, 5)))


def test_the_geometric_mean_is_the_softmax_of_mean_log_ratios(rng):
    samples = proportions(jnp.asarray(rng.normal(size=(6, 3, 5)), jnp.float32), MEMBERS[None])
    centre_of = geometric_mean(samples, MEMBERS)
    assert_close(centre_of.sum(axis=-1), jnp.ones(3))
    kept = np.asarray(samples, np.float64)[:, 0, :4]
    expected = np.exp(np.log(kept).mean(axis=0))
    assert_close(centre_of[0, :4], expected / expected.sum())
    assert (np.asarray(centre_of)[~np.asarray(MEMBERS)] == 0).all()
