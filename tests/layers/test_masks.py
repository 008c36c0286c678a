"""Masks against loops over pairs, as pytrees, and combined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_jax.layers.masks import Mask

T, S, B = 5, 6, 2
LENGTHS = jnp.array([2, 5])
SEGMENTS = jnp.array([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]])
KEY_SEGMENTS = jnp.array([[0, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 3]])
DENSE = jnp.asarray(np.random.default_rng(0).random((B, 3, T, S)) < 0.5)

CONDITIONS = {
    "causal": (Mask(causal=True), lambda b, h, i, j: j <= i),
    "prefix": (
        Mask(causal=True, prefix_lengths=LENGTHS),
        lambda b, h, i, j: j <= i or j < LENGTHS[b],
    ),
    "other prefix": (
        Mask(causal=True, prefix_lengths=LENGTHS[::-1]),
        lambda b, h, i, j: j <= i or j < LENGTHS[1 - b],
    ),
    "window": (Mask(window=2), lambda b, h, i, j: abs(i - j) < 2),
    "queries": (Mask(query_lengths=LENGTHS), lambda b, h, i, j: i < LENGTHS[b]),
    "keys": (Mask(key_lengths=LENGTHS), lambda b, h, i, j: j < LENGTHS[b]),
    "segments": (
        Mask(query_segments=SEGMENTS, key_segments=KEY_SEGMENTS),
        lambda b, h, i, j: SEGMENTS[b, i] == KEY_SEGMENTS[b, j],
    ),
    "other segments": (
        Mask(query_segments=SEGMENTS // 2, key_segments=KEY_SEGMENTS // 2),
        lambda b, h, i, j: SEGMENTS[b, i] // 2 == KEY_SEGMENTS[b, j] // 2,
    ),
    "dense": (Mask(dense=DENSE), lambda b, h, i, j: DENSE[b, h, i, j]),
    "all": (Mask(), lambda b, h, i, j: True),
}


def matrix(mask: Mask) -> np.ndarray:
    return np.broadcast_to(mask.to_dense(T, S), (B, 3, T, S))


def by_loops(*conditions) -> np.ndarray:
    allowed = np.zeros((B, 3, T, S), bool)
    for place in np.ndindex(allowed.shape):
        allowed[place] = all(condition(*place) for condition in conditions)
    return allowed


@pytest.mark.parametrize("name", CONDITIONS)
def test_each_condition_is_its_definition(name):
    mask, condition = CONDITIONS[name]
    assert (matrix(mask) == by_loops(condition)).all()
    assert mask.allows_all == (name == "all")


@pytest.mark.parametrize("left", CONDITIONS)
@pytest.mark.parametrize("right", CONDITIONS)
def test_and_allows_what_both_allow(left, right):
    combined = CONDITIONS[left][0] & CONDITIONS[right][0]
    both = matrix(CONDITIONS[left][0]) & matrix(CONDITIONS[right][0])
    assert (matrix(combined) == both).all()


def test_and_keeps_the_narrower_of_two_alike():
    combined = Mask(window=3, key_lengths=jnp.array([4, 1])) & Mask(
        window=2, key_lengths=jnp.array([2, 3])
    )
    assert combined.window == 2
    assert combined.key_lengths.tolist() == [2, 1]
    assert combined.dense is None


@settings(max_examples=20, deadline=None, database=None, derandomize=True)
@given(
    start=st.integers(0, 4),
    t=st.integers(1, 4),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 5),
)
def test_offsets_cut_rows_out_of_the_whole_matrix(start, t, causal, window):
    mask = Mask(causal=causal, window=window)
    whole = mask.to_dense(8, 8)
    part = mask.to_dense(t, 8, offsets=jnp.array([start, 0]))
    part = np.broadcast_to(part, (2, 1, t, 8))
    assert (part[0, 0] == whole[0, 0, start : start + t]).all()
    assert (part[1, 0] == whole[0, 0, :t]).all()


def test_structure_is_static_and_arrays_are_leaves():
    mask = Mask(causal=True, key_lengths=LENGTHS)
    leaves, structure = jax.tree.flatten(mask)
    assert len(leaves) == 1
    assert structure != jax.tree.structure(Mask(key_lengths=LENGTHS))
    traced = jax.jit(lambda m: m.to_dense(T, S))(mask)
    assert (traced == mask.to_dense(T, S)).all()


def test_vmap_maps_the_arrays():
    masks = jax.tree.map(
        lambda *x: jnp.stack(x), *(Mask(key_lengths=LENGTHS + i) for i in range(3))
    )
    mapped = jax.vmap(lambda mask: mask.to_dense(T, S))(masks)
    for i in range(3):
        assert (mapped[i] == Mask(key_lengths=LENGTHS + i).to_dense(T, S)).all()


def test_impossible_masks_are_refused():
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        Mask(window=0)
    with pytest.raises(ValueError, match="query_segments is given alone"):
        Mask(query_segments=SEGMENTS)
    with pytest.raises(ValueError, match="key_segments is given alone"):
        Mask(key_segments=SEGMENTS)


def test_a_prefix_without_causality_is_refused():
    with pytest.raises(ValueError, match="prefix_lengths need causal=True"):
        Mask(prefix_lengths=LENGTHS)
