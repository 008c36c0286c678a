"""Residual quantization: a vector as a sum of one codeword from each of several codebooks.

All functions are pure.  Codebooks, their running averages and random keys are arguments and
results; where they start (k-means, say) is a step of whoever trains.  Levels are counted from the
coarsest.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PRNGKeyArray

GradientRule: TypeAlias = Callable[
    [Float32[Array, "b z"], Float32[Array, "b z"]], Float32[Array, "b z"]
]
"""`(latents, quantized) -> quantized` with a gradient for the latents; quantizing has none."""

_TINY = 1e-12  # squared lengths below are a zero vector, which has no direction to turn from


class Quantized(NamedTuple):
    """What residual quantization makes of each row.

    Attributes:
        codes: index of the codeword of each level.
        residuals: what each level was given; differentiable by the latents alone.
        codewords: the codeword of each level; differentiable by its codebook alone.
    """

    codes: Int32[Array, "b q"]
    residuals: Float32[Array, "b q z"]
    codewords: Float32[Array, "b q z"]

    @property
    def vectors(self) -> Float32[Array, "b z"]:
        """The sum of the codewords, level by level."""
        return sum(
            (self.codewords[:, level] for level in range(1, self.codewords.shape[1])),
            start=self.codewords[:, 0],
        )


def residual_quantize(
    latents: Float[Array, "b z"], codebooks: Float[Array, "q c z"], *, rows_at_once: int = 2048
) -> Quantized:
    """Greedy residual quantization (Lee et al. 2022, arXiv:2203.01941, eq. 3).

    Each level takes the codeword nearest to what the levels before it left over.  Ties take the
    lowest code, and so does a row that is not finite.  Distances are float32.  Those of at most
    `rows_at_once` rows exist at a time, so that memory is the result's and grows with `b`, not with
    `b c`.

    Args:
        latents: what to quantize.
        codebooks: one for each level.
        rows_at_once: rows whose distances are computed together.

    Raises:
        ValueError: if the widths differ, there is no code, or `rows_at_once` is below 1.
    """
    num_levels, num_codes, width = codebooks.shape
    if latents.shape[1] != width:
        raise ValueError(f"latents are {latents.shape[1]} wide, the codewords {width}")
    if num_levels < 1 or num_codes < 1:
        raise ValueError(f"codebooks of shape {codebooks.shape} must have a level and a code")
    if rows_at_once < 1:
        raise ValueError(f"rows_at_once={rows_at_once} must be at least 1")
    latents, codebooks = latents.astype(jnp.float32), codebooks.astype(jnp.float32)
    rows = latents.shape[0]
    if rows <= rows_at_once:
        return _quantize_rows(latents, codebooks)
    parts = -(-rows // rows_at_once)
    padded = jnp.pad(latents, ((0, parts * rows_at_once - rows), (0, 0)))
    found = jax.lax.map(
        lambda part: _quantize_rows(part, codebooks), padded.reshape(parts, rows_at_once, width)
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], found)


def nearest_codes(
    vectors: Float32[Array, "b z"], codebook: Float32[Array, "c z"]
) -> Int32[Array, "b"]:
    """The codeword at the least Euclidean distance; ties take the lowest.

    Distances come from products, `|e|^2 / 2 - v.e`: they order codewords as `|v - e|^2` does.
    """
    products = jnp.matmul(vectors, codebook.T, precision=jax.lax.Precision.HIGHEST)
    scores = 0.5 * jnp.sum(jnp.square(codebook), axis=-1)[None, :] - products
    least = jnp.min(scores, axis=-1, keepdims=True)
    codes = jnp.arange(codebook.shape[0], dtype=jnp.int32)[None, :]
    # Two plain reductions: XLA's argmin is one over pairs and takes two to five times as long on
    # CPU.  Written with ">", a row of NaN takes code 0 and not one that does not exist.
    return jnp.min(jnp.where(scores > least, codebook.shape[0], codes), axis=-1)


def sum_codewords(
    codes: Int[Array, "b q"], codebooks: Float[Array, "q c z"]
) -> Float32[Array, "b z"]:
    """The vectors that codes stand for: what `Quantized.vectors` is.

    Args:
        codes: within the codebooks; one that is not takes the nearest that is.
        codebooks: one for each level.

    Raises:
        ValueError: if there is not one code for each level.
    """
    if codes.shape[1] != codebooks.shape[0]:
        raise ValueError(f"{codes.shape[1]} codes a row for {codebooks.shape[0]} codebooks")
    levels = [codebooks[level][codes[:, level]] for level in range(codebooks.shape[0])]
    return sum(levels[1:], start=levels[0]).astype(jnp.float32)


def straight_through(
    latents: Float32[Array, "b z"], quantized: Float32[Array, "b z"]
) -> Float32[Array, "b z"]:
    """The quantized vectors; the latents get their gradient as it is.

    Bengio et al. 2013, arXiv:1308.3432; van den Oord et al. 2017, arXiv:1711.00937.  The value is
    `quantized` to the last bit.
    """
    # Not `latents + (quantized - latents)`, which rounds.
    return jax.lax.stop_gradient(quantized) + (latents - jax.lax.stop_gradient(latents))


def rotation_trick(
    latents: Float32[Array, "b z"], quantized: Float32[Array, "b z"]
) -> Float32[Array, "b z"]:
    """The quantized vectors as the latents turned and stretched (Fifty et al. 2024, section 4).

    arXiv:2410.06424: `quantized = s R latents` with the rotation `R` in the plane of the two and
    the ratio `s` of their lengths, both constants of the gradient, which is `s R^T` times that of
    the result.  The value is `quantized` to the last bit.  Opposite vectors take the reflection
    that maps one to the other; a vector of length zero has no direction and takes the
    straight-through gradient.
    """
    squares = [jnp.sum(jnp.square(x), axis=-1, keepdims=True) for x in (latents, quantized)]
    has_direction = jnp.minimum(*squares) > _TINY
    lengths = [jnp.sqrt(jnp.where(has_direction, square, 1.0)) for square in squares]
    source, target = latents / lengths[0], quantized / lengths[1]
    middle = source + target
    middle = middle / jnp.sqrt(
        jnp.maximum(jnp.sum(jnp.square(middle), axis=-1, keepdims=True), _TINY)
    )
    source, target, middle, ratio = jax.lax.stop_gradient(
        (source, target, middle, lengths[1] / lengths[0])
    )

    def along(direction: Float32[Array, "b z"]) -> Float32[Array, "b 1"]:
        return jnp.sum(latents * direction, axis=-1, keepdims=True)

    turned = ratio * (latents - 2.0 * along(middle) * middle + 2.0 * along(source) * target)
    return straight_through(jnp.where(has_direction, turned, latents), quantized)


def commitment_loss(
    residuals: Float32[Array, "b q z"], codewords: Float32[Array, "b q z"]
) -> Float32[Array, "b"]:
    """`sum_levels |residual - codeword|^2` per row: draws latents to codewords, not the reverse.

    Van den Oord et al. 2017 (arXiv:1711.00937, eq. 3, third term), summed over levels as Lee et al.
    2022 (arXiv:2203.01941) do.
    """
    return jnp.sum(jnp.square(residuals - jax.lax.stop_gradient(codewords)), axis=(1, 2))


def codebook_loss(
    residuals: Float32[Array, "b q z"], codewords: Float32[Array, "b q z"]
) -> Float32[Array, "b"]:
    """The same sum, which draws codewords to latents (arXiv:1711.00937, eq. 3, second term)."""
    return jnp.sum(jnp.square(jax.lax.stop_gradient(residuals) - codewords), axis=(1, 2))


class CodebookAverages(NamedTuple):
    """Codebooks as running means of what was assigned to them.

    Attributes:
        codebooks: the means.
        counts: running mean of the rows of a batch that took the code: the weight of its mean.
    """

    codebooks: Float32[Array, "q c z"]
    counts: Float32[Array, "q c"]


def update_averages(
    averages: CodebookAverages, quantized: Quantized, *, decay: float
) -> CodebookAverages:
    """Move codebooks towards the residuals of a batch (van den Oord et al. 2017, appendix A.1).

    The paper keeps `N <- d N + (1 - d) n` and `m <- d m + (1 - d) sum(residuals)` and divides.
    Here the quotient is kept and moved by `(1 - d) (sum(residuals) - n e) / N`, which is the same,
    and a code that is never taken stays as it is where the paper's two numbers fade to 0 / 0.

    Args:
        averages: before.
        quantized: a batch, assigned by `averages.codebooks`.
        decay: `d`, within [0, 1).
    """
    # Sums by index: as a product with one-hot rows they were measured to take 35 ms where this
    # takes 0.1 (1,024 rows, 4 x 1,024 codes, one core).
    levels = jnp.arange(averages.codebooks.shape[0])[None, :]
    sums = jnp.zeros_like(averages.codebooks).at[levels, quantized.codes].add(quantized.residuals)
    numbers = jnp.zeros_like(averages.counts).at[levels, quantized.codes].add(1.0)
    counts = decay * averages.counts + (1 - decay) * numbers
    pull = (1 - decay) * (sums - numbers[..., None] * averages.codebooks)
    moved = averages.codebooks + pull / jnp.where(counts > 0, counts, 1.0)[..., None]
    return CodebookAverages(*jax.lax.stop_gradient((moved, counts)))


class CodeReset(NamedTuple):
    """Codebooks after dead codes were given new codewords.

    Attributes:
        codebooks: the new ones; codes that are alive have theirs to the last bit.
        is_reset: which codes have a new codeword.
        num_reset: how many of each level.
    """

    codebooks: Float32[Array, "q c z"]
    is_reset: Bool[Array, "q c"]
    num_reset: Int32[Array, "q"]


def reset_dead_codes(
    codebooks: Float32[Array, "q c z"],
    usage: Float32[Array, "q c"],
    candidates: Float32[Array, "b q z"],
    key: PRNGKeyArray,
    *,
    least_usage: float,
) -> CodeReset:
    """Put codes that hardly anything takes where something is (Dhariwal et al. 2020).

    arXiv:2005.00341, "random restarts": each dead code takes a random row of what its level is
    given, no two the same while there are enough rows.

    Args:
        codebooks: before.
        usage: of each code, such as `CodebookAverages.counts`.
        candidates: rows that each level was given, `Quantized.residuals` of a batch.
        key: random key.
        least_usage: a code whose usage is below is dead.
    """
    is_dead = usage < least_usage

    def drawn(
        key: PRNGKeyArray, is_dead: Bool[Array, "c"], rows: Float32[Array, "b z"]
    ) -> Float32[Array, "c z"]:
        order = jax.random.permutation(key, rows.shape[0])
        place = jnp.maximum(jnp.cumsum(is_dead) - 1, 0)  # of each dead code among the dead
        return rows[order[place % rows.shape[0]]]

    keys = jax.random.split(key, codebooks.shape[0])
    replacements = jax.vmap(drawn, in_axes=(0, 0, 1))(keys, is_dead, candidates)
    moved = jnp.where(is_dead[..., None], replacements, codebooks)
    return CodeReset(moved, is_dead, jnp.sum(is_dead, axis=1, dtype=jnp.int32))


def _quantize_rows(latents: Float32[Array, "b z"], codebooks: Float32[Array, "q c z"]) -> Quantized:
    residual, levels = latents, []
    for level in range(codebooks.shape[0]):
        codes = nearest_codes(*jax.lax.stop_gradient((residual, codebooks[level])))
        codewords = codebooks[level][codes]
        levels.append(Quantized(codes, residual, codewords))
        residual = residual - jax.lax.stop_gradient(codewords)
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *levels)
