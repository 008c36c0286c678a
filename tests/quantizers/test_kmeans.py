"""k-means: its objective beside scikit-learn's, its seeds, and what becomes of empty clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans as SklearnKMeans

from recipe_jax.layers.residual_quantizer import residual_quantize
from recipe_jax.quantizers import kmeans as module
from recipe_jax.quantizers.kmeans import kmeans, residual_kmeans_codebooks

RNG = np.random.default_rng(0)
CENTRES = 6 * RNG.normal(size=(12, 4))
BLOBS = (CENTRES[RNG.integers(0, 12, 600)] + RNG.normal(size=(600, 4))).astype(np.float32)


def test_its_objective_is_that_of_scikit_learn_within_a_hundredth():
    best = min(
        float(kmeans(BLOBS, 12, jax.random.key(seed), rows_at_once=256).inertia)
        for seed in range(3)
    )
    theirs = SklearnKMeans(12, n_init=3, random_state=0).fit(BLOBS).inertia_
    assert best <= 1.01 * theirs


def test_codes_are_the_nearest_centroids_and_centroids_the_means_of_their_rows():
    found = kmeans(BLOBS, 12, jax.random.key(0), rows_at_once=256)
    assert found.num_iterations < 50  # so that no centroid moved any more
    centroids, codes = np.asarray(found.centroids, np.float64), np.asarray(found.codes)
    distances = np.square(BLOBS[:, None] - centroids[None]).sum(axis=-1)
    np.testing.assert_array_equal(codes, distances.argmin(axis=1))
    assert float(found.inertia) == pytest.approx(distances.min(axis=1).sum(), rel=1e-5)
    for code in range(12):
        np.testing.assert_allclose(centroids[code], BLOBS[codes == code].mean(axis=0), atol=1e-4)


def test_the_same_key_gives_the_same_bits_and_another_key_others():
    first, again, other = (
        kmeans(BLOBS, 12, jax.random.key(seed), rows_at_once=256) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert np.any(first.centroids != other.centroids)


def test_a_centroid_without_rows_moves_to_the_row_farthest_from_its_own():
    rows = np.array([[0.0, 0], [1, 0], [0, 1], [50, 50]], np.float32)
    parts = module._Parts(jnp.asarray(rows), 3)
    # The third and fourth are nearest to nothing.
    centroids = jnp.array([[0.0, 0], [0.9, 0.9], [90, -90], [-90, 90]])
    moved = np.asarray(module._moved(parts, centroids))
    np.testing.assert_array_equal(moved[2], rows[3])
    assert moved[3].tolist() in rows[:3].tolist()


def test_every_code_is_used_where_there_are_enough_distinct_rows():
    rows = np.repeat(BLOBS[:12], 50, axis=0)
    found = kmeans(rows, 12, jax.random.key(0), rows_at_once=256)
    assert len(np.unique(found.codes)) == 12
    assert float(found.inertia) == pytest.approx(0.0, abs=1e-3)


def test_memory_grows_with_the_rows_and_not_with_rows_by_codes():
    def temporary_bytes(rows, num_codes):
        arguments = jax.ShapeDtypeStruct((rows, 4), jnp.float32), jax.random.key(0)
        lowered = module._kmeans.lower(*arguments, num_codes, 5, 512)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(2**12, 64), temporary_bytes(2**15, 64)
    assert many < 8.5 * few
    assert many < 2**15 * 64 * 4  # an array of rows by codes alone would be this large


def test_each_level_clusters_what_the_levels_before_it_left_over():
    codebooks = residual_kmeans_codebooks(
        BLOBS, num_levels=3, num_codes=12, key=jax.random.key(0), rows_at_once=256
    )
    assert codebooks.shape == (3, 12, 4)
    residuals = np.asarray(residual_quantize(jnp.asarray(BLOBS), codebooks).residuals)
    left = np.square(residuals).sum(axis=(0, 2))
    assert left[0] > 5 * left[1] > 5 * left[2]
    for level in range(3):
        theirs = SklearnKMeans(12, n_init=3, random_state=0).fit(residuals[:, level]).inertia_
        distances = np.square(residuals[:, level, None] - codebooks[level][None]).sum(axis=-1)
        assert distances.min(axis=1).sum() < 1.1 * theirs


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (BLOBS[:11], {}, "11 rows are too few for 12 codes"),
        (BLOBS[:0], {}, "0 rows are too few"),
        (np.where(np.arange(600)[:, None] == 7, np.nan, BLOBS), {}, "row 7 .* not finite"),
        (BLOBS, {"num_levels": 0}, "num_levels=0 must be at least 1"),
        (BLOBS, {"num_iterations": 0}, "num_iterations=0 must be at least 1"),
    ],
)
def test_what_cannot_be_clustered_is_refused(rows, changes, message):
    settings = {"num_levels": 1, "num_codes": 12, "key": jax.random.key(0), **changes}
    with pytest.raises(ValueError, match=message):
        residual_kmeans_codebooks(rows, **settings)
