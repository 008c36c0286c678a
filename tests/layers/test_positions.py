"""Positions: rotary scores depend on distance, ALiBi's slopes are the paper's, tables by numpy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from recipe_jax.layers.positions import (
    Alibi,
    Learned,
    LinearScaling,
    Llama3Scaling,
    NoPositions,
    Rope,
    Sinusoidal,
    alibi_bias,
    alibi_slopes,
    rotary_frequencies,
    sinusoidal_table,
)

HEADS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, 8)), jnp.float32)
EMBEDDINGS = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 6)), jnp.float32)
INDICES = jnp.arange(4)[None]
ROPES = [
    Rope(),
    Rope(interleaved=True),
    Rope(base=500.0, scaling=LinearScaling(4.0)),
    Rope(scaling=Llama3Scaling(original_max_positions=64)),
]


@pytest.mark.parametrize("rope", ROPES)
@settings(max_examples=10, deadline=None, database=None, derandomize=True)
@given(start=st.integers(0, 50), distance=st.integers(0, 20), shift=st.integers(0, 100))
def test_rotary_scores_depend_on_distance_only(rope, start, distance, shift):
    query, key = HEADS[:, :1], HEADS[:, 1:2]

    def score(i, j):
        turned = rope.rotate(query, jnp.array([[i]])), rope.rotate(key, jnp.array([[j]]))
        return jnp.einsum("bthd,bshd->bh", *turned)

    # Angles are float32: at position 170 they are known to 1e-5 radians.
    np.testing.assert_allclose(
        score(start + distance, start),
        score(start + distance + shift, start + shift),
        atol=2e-4,
    )


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_scores_do_depend_on_distance(rope):
    query = jnp.broadcast_to(HEADS[:, :1], HEADS.shape)
    scores = jnp.einsum("bthd,bhd->bth", rope.rotate(query, INDICES), query[:, 0])
    assert (np.abs(np.diff(scores, axis=1)) > 1e-3).all()


@pytest.mark.parametrize("rope", ROPES)
def test_rotation_follows_the_token_axis_and_treats_heads_alike(rope):
    same = jnp.broadcast_to(HEADS[:, :1, :1], HEADS.shape)
    turned = rope.rotate(same, INDICES)
    assert_close(turned, jnp.broadcast_to(turned[:, :, :1], turned.shape), "elementwise")
    assert_close(turned[:, 0], same[:, 0], "elementwise")


@pytest.mark.parametrize("rope", ROPES)
def test_rotation_keeps_lengths(rope):
    turned = rope.rotate(HEADS, INDICES)
    assert_close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(HEADS, axis=-1))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_multiplication_of_complex_numbers(interleaved):
    x = np.asarray(HEADS, np.float64)
    pairs = x.reshape(2, 4, 3, 4, 2) if interleaved else x.reshape(2, 4, 3, 2, 4).swapaxes(-1, -2)
    angles = np.arange(4)[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[None, :, None, :]
    axis = -1 if interleaved else -2
    expected = np.stack([turned.real, turned.imag], axis).reshape(x.shape)
    assert_close(Rope(interleaved=interleaved).rotate(HEADS, INDICES), expected)


def test_indices_may_differ_by_row():
    indices = jnp.array([[0, 1, 2, 3], [7, 5, 3, 1]])
    turned = Rope().rotate(HEADS, indices)
    assert_close(turned[1:], Rope().rotate(HEADS[1:], indices[1:]), "elementwise")


def test_linear_scaling_divides_positions():
    scaled = Rope(scaling=LinearScaling(4.0)).rotate(HEADS, 4 * INDICES)
    assert_close(scaled, Rope().rotate(HEADS, INDICES))


def test_llama3_scaling_keeps_short_waves_and_divides_long_ones():
    frequencies = np.asarray(rotary_frequencies(64, base=500_000.0), np.float64)
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    expected = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            expected.append(frequency / 8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    got = np.asarray(scaling.scale(jnp.asarray(frequencies, jnp.float32)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len(set(np.round(frequencies / expected, 6))) > 2


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, [4, 8, 2]),
        (6, [2, 4, 6, 8, 1, 3]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_alibi_slopes_are_those_of_the_authors(num_heads, exponents):
    assert_close(alibi_slopes(num_heads), 2.0 ** -np.array(exponents), "elementwise")
    assert_close(Alibi().slopes(num_heads), alibi_slopes(num_heads), "elementwise")


def test_alibi_never_rewards_the_future():
    bias = np.asarray(alibi_bias(alibi_slopes(6), INDICES, jnp.arange(6)[None]))
    i, j = np.indices((4, 6))
    for head, slope in enumerate(np.asarray(alibi_slopes(6))):
        assert_close(bias[0, head], -slope * np.abs(i - j), "elementwise")
    assert (bias <= 0).all()


def test_sinusoidal_table_is_the_formula():
    expected = np.zeros((1, 4, 6))
    for position in range(4):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            expected[0, position, 2 * pair : 2 * pair + 2] = math.sin(angle), math.cos(angle)
    assert_close(sinusoidal_table(INDICES, 6), expected)
    assert_close(Sinusoidal().encode(EMBEDDINGS, INDICES) - EMBEDDINGS, np.repeat(expected, 2, 0))


def test_learned_positions_add_the_row_of_the_index():
    table = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6)), jnp.float32)
    got = Learned(4).encode(EMBEDDINGS, jnp.array([[3, 0, 1, 2]]), table)
    assert_close(got, EMBEDDINGS + table[jnp.array([3, 0, 1, 2])][None], "elementwise")


def test_each_value_acts_in_one_place():
    for value in [NoPositions(), Sinusoidal(), Learned(9), Rope(), Alibi()]:
        rotates = isinstance(value, Rope)
        assert (value.rotate(HEADS, INDICES) is HEADS) != rotates
        assert (value.slopes(4) is not None) == isinstance(value, Alibi)
        assert (value.num_embeddings == 9) == isinstance(value, Learned)
        assert hash(value) == hash(type(value)(*([9] if isinstance(value, Learned) else [])))
    for value in [NoPositions(), Rope(), Alibi()]:
        assert value.encode(EMBEDDINGS, INDICES) is EMBEDDINGS


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="head_dim=7 must be even"):
        Rope().rotate(HEADS[..., :7], INDICES)
    with pytest.raises(ValueError, match="embed_dim=5 must be even"):
        Sinusoidal().encode(EMBEDDINGS[..., :5], INDICES)
    with pytest.raises(ValueError, match="max_positions=0 must be at least 1"):
        Learned(0)
    with pytest.raises(ValueError, match="4 tokens exceed max_positions=3"):
        Learned(3).encode(EMBEDDINGS, INDICES, jnp.zeros((3, 6)))
    with pytest.raises(ValueError, match="need their table"):
        Learned(9).encode(EMBEDDINGS, INDICES)
    with pytest.raises(ValueError, match=r"low_freq_factor=4\.0 must be below"):
        Llama3Scaling(low_freq_factor=4.0)
