"""k-means, and k-means of what k-means leaves over: codebooks for residual quantization.

Both are steps of a fit, called once with all of its rows; nothing calls them in a forward pass.
The same key gives the same result on the same device.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray

from recipe_jax.layers.residual_quantizer import nearest_codes

SEEDING_ROWS_PER_CODE = 64
"""Seeds are chosen among at most this many random rows for each of them."""


class KMeans(NamedTuple):
    """Centroids and what they leave over.

    Attributes:
        centroids: the means.
        codes: the nearest centroid of each row.
        inertia: sum over rows of the squared distance to it.
        num_iterations: how many times the centroids moved.
    """

    centroids: Float32[Array, "c z"]
    codes: Int32[Array, "n"]
    inertia: Float32[Array, ""]
    num_iterations: Int32[Array, ""]


def kmeans(
    vectors: Float[Array, "n z"] | Float[np.ndarray, "n z"],
    num_codes: int,
    key: PRNGKeyArray,
    *,
    num_iterations: int = 50,
    rows_at_once: int = 2048,
) -> KMeans:
    """Lloyd's algorithm from greedy k-means++ seeds (Lloyd 1982; Arthur & Vassilvitskii 2007).

    It ends when no centroid moves.  A centroid that no row is nearest to takes the row farthest
    from its own centroid (of several, the next one each), so that codes go unused only where there
    are fewer distinct rows than codes.  Seeds come from a random sample of at most
    `SEEDING_ROWS_PER_CODE` rows for each.  Memory grows with `n z`: distances of `rows_at_once`
    rows exist at a time.

    Args:
        vectors: rows to cluster.
        num_codes: how many centroids.
        key: random key.
        num_iterations: most moves of the centroids.
        rows_at_once: rows whose distances are computed together.

    Raises:
        ValueError: fewer rows than codes, or a row that is not finite.
    """
    for name, value in (("num_codes", num_codes), ("num_iterations", num_iterations)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    check_rows(vectors, num_codes)
    rows_at_once = min(rows_at_once, len(vectors))
    rows = jnp.asarray(vectors, jnp.float32)
    return _kmeans(rows, key, num_codes, num_iterations, rows_at_once)


def residual_kmeans_codebooks(
    vectors: Float[Array, "n z"] | Float[np.ndarray, "n z"],
    *,
    num_levels: int,
    num_codes: int,
    key: PRNGKeyArray,
    num_iterations: int = 50,
    rows_at_once: int = 2048,
) -> Float32[Array, "q c z"]:
    """Codebooks of residual k-means: each level clusters what the levels before it left over.

    Residual vector quantization (Juang & Gray 1982; Chen et al. 2010, doi:10.3390/s101211259):
    a quantizer of its own, and where the codebooks of an RQ-VAE start.

    Args:
        vectors: rows to quantize.
        num_levels: how many codebooks.
        num_codes: codewords of each.
        key: random key.
        num_iterations: most iterations of each k-means.
        rows_at_once: rows whose distances are computed together.

    Raises:
        ValueError: no level, fewer rows than codes, or a row that is not finite.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels={num_levels} must be at least 1")
    check_rows(vectors, num_codes)
    residuals, codebooks = jnp.asarray(vectors, jnp.float32), []
    for level_key in jax.random.split(key, num_levels):
        found = kmeans(
            residuals,
            num_codes,
            level_key,
            num_iterations=num_iterations,
            rows_at_once=rows_at_once,
        )
        codebooks.append(found.centroids)
        residuals = residuals - found.centroids[found.codes]
    return jnp.stack(codebooks)


def check_rows(vectors: Float[Array, "n z"] | Float[np.ndarray, "n z"], least: int) -> None:
    """Refuse rows that are too few or not finite.

    Raises:
        ValueError: names the first row that is not finite, counted from 0.
    """
    if len(vectors) < least:
        raise ValueError(
            f"{len(vectors)} rows are too few for {least} codes: give at least as many, or ask for "
            "fewer codes"
        )
    is_finite = np.asarray(jnp.isfinite(jnp.asarray(vectors)).all(axis=1))
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        raise ValueError(f"row {row} of the vectors holds a value that is not finite")


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _kmeans(
    rows: Float32[Array, "n z"],
    key: PRNGKeyArray,
    num_codes: int,
    num_iterations: int,
    rows_at_once: int,
) -> KMeans:
    sample_key, seed_key = jax.random.split(key)
    count = min(rows.shape[0], SEEDING_ROWS_PER_CODE * num_codes)
    sample = rows[jax.random.permutation(sample_key, rows.shape[0])[:count]]
    parts = _Parts(rows, rows_at_once)

    def goes_on(state: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        _, moved, iteration = state
        return moved & (iteration < num_iterations)

    def move(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        centroids, _, iteration = state
        new = _moved(parts, centroids)
        return new, jnp.any(new != centroids), iteration + 1

    start = _seeds(sample, seed_key, num_codes), jnp.array(True), jnp.array(0, jnp.int32)
    centroids, _, iterations = jax.lax.while_loop(goes_on, move, start)
    codes, distances, _, _ = parts.assign(centroids)
    return KMeans(centroids, codes, jnp.sum(distances), iterations)


class _Parts:
    """Rows in parts of one size, the last one filled up with rows that do not count."""

    def __init__(self, rows: Float32[Array, "n z"], rows_at_once: int):
        self.rows = rows
        count, width = rows.shape
        num_parts = -(-count // rows_at_once)
        filled = num_parts * rows_at_once
        self._parts = jnp.pad(rows, ((0, filled - count), (0, 0))).reshape(
            num_parts, rows_at_once, width
        )
        self._counts = (jnp.arange(filled) < count).astype(jnp.float32).reshape(num_parts, -1)

    def assign(
        self, centroids: Float32[Array, "c z"]
    ) -> tuple[Int32[Array, "n"], Float32[Array, "n"], Float32[Array, "c z"], Float32[Array, "c"]]:
        """Codes and squared distances of rows; sums and numbers of the rows of each code."""

        def add(totals: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[Any, Any]:
            rows, counts = part
            codes = nearest_codes(rows, centroids)
            distances = jnp.sum(jnp.square(rows - centroids[codes]), axis=-1)
            sums = totals[0].at[codes].add(rows * counts[:, None])
            return (sums, totals[1].at[codes].add(counts)), (codes, distances)

        nothing = jnp.zeros_like(centroids), jnp.zeros(centroids.shape[0])
        (sums, numbers), found = jax.lax.scan(add, nothing, (self._parts, self._counts))
        codes, distances = (x.reshape(-1)[: len(self.rows)] for x in found)
        return codes, distances, sums, numbers


def _moved(parts: _Parts, centroids: Float32[Array, "c z"]) -> Float32[Array, "c z"]:
    """Each centroid at the mean of its rows; those without any at the rows farthest from theirs."""
    _, distances, sums, numbers = parts.assign(centroids)
    means = sums / jnp.maximum(numbers, 1.0)[:, None]

    def reseeded() -> Float32[Array, "c z"]:
        _, farthest = jax.lax.top_k(distances, centroids.shape[0])
        place = jnp.cumsum(numbers == 0) - 1
        return jnp.where((numbers == 0)[:, None], parts.rows[farthest[place]], means)

    return jax.lax.cond(jnp.any(numbers == 0), reseeded, lambda: means)


def _seeds(
    sample: Float32[Array, "n z"], key: PRNGKeyArray, num_codes: int
) -> Float32[Array, "c z"]:
    """Greedy k-means++: of a few rows drawn by squared distance the one that leaves least over."""
    num_trials = 2 + int(math.log(num_codes))
    squares = jnp.sum(jnp.square(sample), axis=-1)

    def distances_to(points: Float32[Array, "p z"]) -> Float32[Array, "p n"]:
        products = jnp.matmul(points, sample.T, precision=jax.lax.Precision.HIGHEST)
        own = jnp.sum(jnp.square(points), axis=-1)
        return jnp.maximum(own[:, None] + squares[None, :] - 2.0 * products, 0.0)

    def choose(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        seeds, least = state
        sums = jnp.cumsum(least)
        uniform = jax.random.uniform(jax.random.fold_in(key, index), (num_trials,))
        trials = sample[jnp.searchsorted(sums, uniform * sums[-1]).clip(0, len(sample) - 1)]
        left = jnp.minimum(distances_to(trials), least[None, :])
        best = jnp.argmin(jnp.sum(left, axis=1))
        return seeds.at[index].set(trials[best]), left[best]

    first = sample[0]  # of a random order
    seeds = jnp.zeros((num_codes, sample.shape[1])).at[0].set(first)
    return jax.lax.fori_loop(1, num_codes, choose, (seeds, distances_to(first[None])[0]))[0]
