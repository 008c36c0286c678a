"""The tree of IDs: what it leads to, that it keeps its shapes, its file."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_jax.prefix_index import (
    PrefixIndex,
    build_prefix_index,
    count_allowed,
    index_as_bytes,
    read_prefix_index,
)
from recipe_jax.semantic_ids import SemanticIdError

SIZES = (4, 3, 3)
ALL = np.array([(a, b, c) for a in range(4) for b in range(3) for c in range(3)])


def walk(index: PrefixIndex, level: int = 0, node: int = 0, prefix: tuple[int, ...] = ()):
    """All paths from the root, as (ID, item); and the ranges of leaves are those under a node."""
    if level == index.num_levels:
        yield prefix, int(index.items[node])
        return
    begin, end = index.children[level][node : node + 2]
    found = []
    for child in range(begin, end):
        found += walk(index, level + 1, child, (*prefix, int(index.codes[level][child])))
    first, last = index.leaves[level][node : node + 2]
    assert [item for _, item in found] == index.items[first:last].tolist()
    assert end - begin <= index.branching[level]
    yield from found


rows = st.lists(st.integers(0, len(ALL) - 1), min_size=0, max_size=20, unique=True)


@settings(deadline=None)
@given(rows, st.sampled_from([None, 20]), st.integers(0, 3))
def test_it_leads_to_every_id_and_to_nothing_else(chosen, capacity, first_item):
    codes = ALL[chosen]
    index = build_prefix_index(codes, SIZES, first_item=first_item, capacity=capacity)
    found = dict(walk(index))
    assert found == {tuple(row): first_item + i for i, row in enumerate(codes.tolist())}
    assert list(found) == sorted(found)
    assert index.num_items == len(codes)
    for item, leaf in enumerate(index.leaf_of_item[: len(codes)]):
        assert index.items[leaf] == first_item + item


def test_a_capacity_keeps_all_shapes():
    def shapes(count: int):
        index = build_prefix_index(ALL[:count], SIZES, capacity=20)
        return jax.tree.structure(index), [x.shape for x in jax.tree.leaves(index)]

    assert shapes(0) == shapes(1) == shapes(20)
    with pytest.raises(ValueError, match="capacity=20 must be at least the number of items, 21"):
        build_prefix_index(ALL[:21], SIZES, capacity=20)


def test_an_item_takes_at_most_120_bytes():
    codes = np.random.default_rng(0).integers(0, 2048, (5000, 8))
    index = build_prefix_index(codes, (2048,) * 8)
    assert index.num_bytes <= 120 * 5000


def test_an_id_of_two_items_and_codes_beyond_their_level_are_refused():
    with pytest.raises(SemanticIdError, match="items 1 and 3 have one ID"):
        build_prefix_index(ALL[[4, 5, 6, 5]], SIZES)
    with pytest.raises(SemanticIdError, match="item 1 has code 3 at level 2"):
        build_prefix_index(np.array([[0, 0, 0], [0, 0, 3]]), SIZES)


def test_allowed_leaves_are_counted_in_the_order_of_the_tree():
    codes = ALL[[20, 3, 11, 30]]
    index = build_prefix_index(codes, SIZES, first_item=7, capacity=6)
    allowed = np.array([[True, False, True, True, True, True], [False] * 6])
    found = np.asarray(count_allowed(index, allowed))
    # In the tree: 3, 11, 20, 30, then no items.
    np.testing.assert_array_equal(found, [[0, 0, 1, 2, 3, 3, 3], [0] * 7])


def test_its_file_is_read_for_the_same_ids_alone(tmp_path):
    index = build_prefix_index(ALL[[5, 1, 9]], SIZES, capacity=4)
    path = tmp_path / "index.npz"
    path.write_bytes(index_as_bytes(index, "abcd"))
    found = read_prefix_index(path, fingerprint="abcd")
    assert jax.tree.structure(found) == jax.tree.structure(index)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(index), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(SemanticIdError, match=r"index.npz: was built of the IDs abcd…, must be of"):
        read_prefix_index(path, fingerprint="efgh")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        SemanticIdError, match=re.escape(f"{path}: must be an .npz file that holds")
    ):
        read_prefix_index(path, fingerprint="abcd")
