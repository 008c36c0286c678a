"""A histogram over log grams: its density is one, its draws follow it, its vectors are smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.models.gram_bins import (
    GramBins,
    GramEmbedding,
    GramHead,
    draw_grams,
    gram_log_density,
)

BINS = GramBins(num_bins=6, min_grams=1.0, max_grams=1000.0)
LOGITS = jax.random.normal(jax.random.key(0), (6,))


def test_places_lead_to_grams_and_back_and_the_far_ends_are_clipped():
    grams = jnp.array([1.0, 5.0, 31.6, 1000.0])
    assert_close(BINS.grams(BINS.place(grams)), grams)
    assert_close(BINS.place(jnp.array([0.2, 1e6])), jnp.array([0.0, 6.0]))


def test_the_density_of_log_grams_integrates_to_one():
    edges = np.linspace(0.0, np.log(1000.0), 6 * 50 + 1)
    middles = jnp.asarray(np.exp((edges[1:] + edges[:-1]) / 2), jnp.float32)
    density = jnp.exp(gram_log_density(jnp.broadcast_to(LOGITS, (300, 6)), middles, BINS))
    assert float(density.sum()) * (edges[1] - edges[0]) == pytest.approx(1.0, abs=1e-5)
    ends = gram_log_density(jnp.broadcast_to(LOGITS, (2, 6)), jnp.array([1e-9, 1e9]), BINS)
    assert_close(jnp.exp(ends), jax.nn.softmax(LOGITS)[jnp.array([0, -1])] / BINS.width)


def test_draws_follow_the_histogram():
    count = 20_000
    grams = draw_grams(jnp.broadcast_to(LOGITS, (count, 6)), jax.random.key(1), BINS)
    found, _ = np.histogram(np.asarray(BINS.place(grams)), bins=np.arange(7))
    expected = count * np.asarray(jax.nn.softmax(LOGITS))
    assert (np.abs(found - expected) < 5 * np.sqrt(expected)).all()
    inside = np.asarray(BINS.place(grams)) % 1.0
    assert np.abs(np.histogram(inside, bins=4)[0] - count / 4).max() < 5 * np.sqrt(count / 4)


def test_vectors_change_with_grams_without_steps():
    embedding = GramEmbedding(BINS, 8, rngs=nnx.Rngs(0))
    vectors = np.asarray(embedding(jnp.exp(jnp.linspace(0.0, np.log(1000.0), 2001))))
    steps = np.linalg.norm(np.diff(vectors, axis=0), axis=1)
    assert steps.max() < 0.05 * np.linalg.norm(vectors[-1] - vectors[0])
    assert steps.min() > 0


def test_a_head_without_learned_foods_cannot_tell_them_apart():
    states, foods = jnp.ones((1, 2, 8)), jnp.array([[0, 3]])
    for num_foods, alike in ((None, True), (3, False)):
        head = GramHead(BINS, 8, num_foods, rngs=nnx.Rngs(0))
        head.histograms.set_value(jax.random.normal(jax.random.key(2), head.histograms.shape))
        first, second = np.asarray(head(states, foods))[0]
        assert (first == second).all() == alike


@pytest.mark.parametrize(
    "fields",
    [{"num_bins": 1}, {"min_grams": 0.0}, {"min_grams": 5.0, "max_grams": 5.0}],
)
def test_bins_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        GramBins(**fields)
