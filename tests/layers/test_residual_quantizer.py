"""Residual quantization: against brute force, written-out matrices and the papers' recursions."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from recipe_jax.layers.residual_quantizer import (
    CodebookAverages,
    codebook_loss,
    commitment_loss,
    nearest_codes,
    reset_dead_codes,
    residual_quantize,
    rotation_trick,
    straight_through,
    sum_codewords,
    update_averages,
)

RNG = np.random.default_rng(0)
LATENTS = jnp.asarray(RNG.normal(size=(37, 5)), jnp.float32)
SCALES = np.array([1.0, 0.5, 0.25])[:, None, None]
CODEBOOKS = jnp.asarray(SCALES * RNG.normal(size=(3, 11, 5)), jnp.float32)

quantize = jax.jit(residual_quantize, static_argnames="rows_at_once")
update = jax.jit(update_averages, static_argnames="decay")
reset_codes = jax.jit(reset_dead_codes, static_argnames="least_usage")


def brute_force(latents, codebooks):
    """One row, one level, one code after the other, in float64."""
    codes = np.zeros((len(latents), len(codebooks)), np.int32)
    for row, residual in enumerate(np.asarray(latents, np.float64)):
        for level, codebook in enumerate(np.asarray(codebooks, np.float64)):
            distances = [np.sum((residual - codeword) ** 2) for codeword in codebook]
            codes[row, level] = int(np.argmin(distances))
            residual = residual - codebook[codes[row, level]]
    return codes


def test_each_level_takes_the_codeword_nearest_to_what_is_left():
    quantized = quantize(LATENTS, CODEBOOKS)
    np.testing.assert_array_equal(quantized.codes, brute_force(LATENTS, CODEBOOKS))
    assert quantized.codes.dtype == jnp.int32


def test_codewords_sum_to_the_vector_and_residuals_are_what_each_level_was_given():
    quantized = quantize(LATENTS, CODEBOOKS)
    codewords = np.stack(
        [np.asarray(CODEBOOKS)[level][quantized.codes[:, level]] for level in range(3)], axis=1
    )
    np.testing.assert_array_equal(quantized.codewords, codewords)
    np.testing.assert_array_equal(quantized.vectors, sum_codewords(quantized.codes, CODEBOOKS))
    assert_close(quantized.vectors, codewords.sum(axis=1), "elementwise")
    before = np.cumsum(codewords, axis=1) - codewords
    assert_close(quantized.residuals, np.asarray(LATENTS)[:, None] - before)


def test_ties_take_the_lowest_code():
    # Whole numbers: every product and sum is exact.
    codebook = jnp.array([[4.0, 0], [0, 2], [2, 0], [0, 2], [2, 0], [0, 0]])
    vectors = jnp.array([[0.0, 2], [2, 0], [1, 1], [3, 0], [0, 0]])
    np.testing.assert_array_equal(nearest_codes(vectors, codebook), [1, 2, 1, 0, 5])


def test_a_row_that_is_not_finite_takes_code_zero_and_leaves_the_others_alone():
    broken = LATENTS.at[3, 1].set(jnp.nan)
    codes = np.asarray(quantize(broken, CODEBOOKS).codes)
    expected = brute_force(LATENTS, CODEBOOKS)
    expected[3] = 0
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("rows_at_once", [1, 8, 37])
def test_part_by_part_it_is_the_same(rows_at_once):
    whole = quantize(LATENTS, CODEBOOKS)
    parts = quantize(LATENTS, CODEBOOKS, rows_at_once=rows_at_once)
    np.testing.assert_array_equal(parts.codes, whole.codes)
    assert_close(parts._asdict(), whole._asdict(), "elementwise")


def test_memory_is_linear_in_the_rows_and_has_no_array_of_rows_by_codes():
    def temporary_bytes(rows, num_codes):
        shapes = (
            jax.ShapeDtypeStruct((rows, 8), jnp.float32),
            jax.ShapeDtypeStruct((2, num_codes, 8), jnp.float32),
        )
        encode = jax.jit(lambda x, codebooks: residual_quantize(x, codebooks).codes)
        analysis = encode.lower(*shapes).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    base = temporary_bytes(2**16, 64)
    assert temporary_bytes(2**18, 64) < 4.2 * base
    assert temporary_bytes(2**16, 1024) < base + 2 * 4 * 4096 * 1024  # of one part, not of all rows


def test_straight_through_gives_the_quantized_vectors_and_the_gradient_as_it_is():
    vectors = quantize(LATENTS, CODEBOOKS).vectors
    weights = jnp.asarray(RNG.normal(size=(37, 5)), jnp.float32)
    result, pull = jax.vjp(straight_through, LATENTS, vectors)
    np.testing.assert_array_equal(result, vectors)
    to_latents, to_vectors = pull(weights)
    np.testing.assert_array_equal(to_latents, weights)
    np.testing.assert_array_equal(to_vectors, np.zeros((37, 5)))


def explicit_rotation(source, target):
    """The rotation in the plane of two vectors by the angle between them, as a matrix."""
    unit, other = source / np.linalg.norm(source), target / np.linalg.norm(target)
    cosine = unit @ other
    across = other - cosine * unit
    sine = np.linalg.norm(across)
    across = across / sine
    turn = np.array([[cosine, -sine], [sine, cosine]])
    plane = np.stack([unit, across], axis=1)
    return np.eye(len(source)) + plane @ (turn - np.eye(2)) @ plane.T


def test_the_rotation_trick_has_the_gradient_of_the_written_out_matrix():
    vectors = quantize(LATENTS, CODEBOOKS).vectors
    weights = jnp.asarray(RNG.normal(size=(37, 5)), jnp.float32)
    result, pull = jax.vjp(rotation_trick, LATENTS, vectors)
    np.testing.assert_array_equal(result, vectors)
    to_latents, to_vectors = pull(weights)
    np.testing.assert_array_equal(to_vectors, np.zeros((37, 5)))
    for row in range(37):
        latent, vector = (np.asarray(x[row], np.float64) for x in (LATENTS, vectors))
        matrix = explicit_rotation(latent, vector)
        scale = np.linalg.norm(vector) / np.linalg.norm(latent)
        assert_close(scale * matrix @ latent, vector, "forward")
        assert_close(to_latents[row], scale * matrix.T @ weights[row], "gradient")


def test_the_rotation_trick_survives_vectors_without_an_angle():
    latents = jnp.array([[1.0, 2, 0], [0, 0, 0], [1, 0, 0], [1, 2, 2]])
    vectors = jnp.array([[-1.0, -2, 0], [1, 0, 0], [0, 0, 0], [2, 4, 4]])
    result, pull = jax.vjp(rotation_trick, latents, vectors)
    np.testing.assert_array_equal(result, vectors)
    gradient = np.asarray(pull(jnp.array([[1.0, 2, 3]] * 4))[0])
    # Opposite: reflected along the line they share.  Zero: straight through.  Parallel: stretched.
    assert_close(gradient, np.array([[-1.0, -2, 3], [1, 2, 3], [1, 2, 3], [2, 4, 6]]), "gradient")


def test_losses_are_one_number_with_gradients_for_one_side_each():
    def terms(latents, codebooks):
        quantized = residual_quantize(latents, codebooks)
        return (
            commitment_loss(quantized.residuals, quantized.codewords),
            codebook_loss(quantized.residuals, quantized.codewords),
        )

    commitment, codebook = terms(LATENTS, CODEBOOKS)
    np.testing.assert_array_equal(commitment, codebook)
    quantized = quantize(LATENTS, CODEBOOKS)
    left = np.asarray(quantized.residuals - quantized.codewords)
    assert_close(commitment, np.square(left).sum(axis=(1, 2)))
    both = [
        jax.grad(lambda x, e, i=i: terms(x, e)[i].sum(), argnums=(0, 1))(LATENTS, CODEBOOKS)
        for i in range(2)
    ]
    assert_close(both[0][0], 2 * left.sum(axis=1), "gradient")
    assert not np.any(both[0][1])
    assert not np.any(both[1][0])
    expected = np.zeros(CODEBOOKS.shape)
    for level in range(3):
        np.add.at(expected[level], np.asarray(quantized.codes)[:, level], -2 * left[:, level])
    assert_close(both[1][1], expected, "gradient")


def test_running_means_are_the_quotient_of_the_papers_two_sums():
    decay, batches = 0.8, jnp.asarray(RNG.normal(size=(6, 20, 5)), jnp.float32)
    counts = np.full((3, 11), 2.0)
    averages = CodebookAverages(CODEBOOKS, jnp.asarray(counts, jnp.float32))
    sums = counts[..., None] * np.asarray(CODEBOOKS, np.float64)
    for batch in batches:
        quantized = quantize(batch, averages.codebooks)
        averages = update(averages, quantized, decay=decay)
        counts, sums = decay * counts, decay * sums
        for row in range(20):
            for level, code in enumerate(np.asarray(quantized.codes)[row]):
                counts[level, code] += 1 - decay
                sums[level, code] += (1 - decay) * np.asarray(quantized.residuals)[row, level]
    assert_close(averages.counts, counts)
    assert_close(averages.codebooks, sums / counts[..., None], "gradient")


def test_a_code_that_is_never_taken_keeps_its_codeword_however_long():
    far = CODEBOOKS.at[:, 4].set(100.0)
    averages = CodebookAverages(far, jnp.ones((3, 11)))
    for _ in range(3):
        quantized = quantize(LATENTS, averages.codebooks)
        averages = update(averages, quantized, decay=1e-30)  # its count fades to zero
    np.testing.assert_array_equal(averages.codebooks[:, 4], far[:, 4])
    assert np.isfinite(averages.codebooks).all()


def test_dead_codes_move_to_rows_of_their_level_and_living_ones_stay():
    residuals = quantize(LATENTS, CODEBOOKS).residuals
    usage = jnp.ones((3, 11)).at[0, jnp.array([2, 7])].set(0.4).at[2, :6].set(0.0)
    is_alive = np.asarray(usage) >= 0.5
    key = jax.random.key(3)
    reset = reset_codes(CODEBOOKS, usage, residuals, key, least_usage=0.5)
    np.testing.assert_array_equal(reset.is_reset, ~is_alive)
    np.testing.assert_array_equal(reset.num_reset, [2, 0, 6])
    np.testing.assert_array_equal(reset.codebooks[is_alive], CODEBOOKS[is_alive])
    for level, code in np.argwhere(~is_alive):
        same = (residuals[:, level] == reset.codebooks[level, code][None]).all(axis=1)
        assert same.sum() == 1
    assert len(np.unique(reset.codebooks[2, :6], axis=0)) == 6  # no two at one row
    again = reset_codes(CODEBOOKS, usage, residuals, key, least_usage=0.5)
    np.testing.assert_array_equal(again.codebooks, reset.codebooks)
    other = reset_codes(CODEBOOKS, usage, residuals, jax.random.key(4), least_usage=0.5)
    assert np.any(other.codebooks != reset.codebooks)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # Without the checks of shapes, which only tests have.
        (lambda: inspect.unwrap(residual_quantize)(LATENTS[:, :4], CODEBOOKS), "4 wide, the code"),
        (lambda: residual_quantize(LATENTS, CODEBOOKS[:0]), "must have a level and a code"),
        (lambda: residual_quantize(LATENTS, CODEBOOKS, rows_at_once=0), "rows_at_once=0"),
        (lambda: inspect.unwrap(sum_codewords)(jnp.zeros((2, 2), int), CODEBOOKS), "2 codes a row"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
