"""Which codes may follow which: all IDs of a catalogue as a tree in flat arrays.

Built once with numpy; read on the device, in time that does not depend on the number of items (cf.
Su et al. 2026, arXiv:2602.22647).  The children of a node lie side by side, and so do the leaves
under it, so that a node is two ranges.
"""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int32, Integer

from recipe_jax.semantic_ids import SemanticIdError, order_of_ids

# Numpy arrays when the index is built, JAX arrays or tracers when it is searched.
AnyArray: TypeAlias = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PrefixIndex:
    """A tree of codes; level 0 is its root, and a node of the last level is a leaf: an item.

    It is a pytree: `jax.device_put(index)` brings it to a device.  Programs are compiled for its
    shapes, `sizes` and `branching`; a `capacity` keeps them while items are added.

    Attributes:
        children: of each level but the last: the first child of each node, and the end.
        codes: of each level but the root's: by which code its parent comes to a node.
        leaves: of each level but the last: the first leaf under each node, and the end.
        items: which item a leaf is.
        leaf_of_item: the inverse, of the items from `first_item` on.
        first_item: the lowest item.
        sizes: how many codes each level has.
        branching: of each level but the last, the most children of a node.
    """

    children: tuple[Int32[AnyArray, "_"], ...]
    codes: tuple[Integer[AnyArray, "_"], ...]
    leaves: tuple[Int32[AnyArray, "_"], ...]
    items: Int32[AnyArray, "n"]
    leaf_of_item: Int32[AnyArray, "n"]
    first_item: Int32[AnyArray, ""]
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    branching: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def num_levels(self) -> int:
        """How many codes an ID has."""
        return len(self.sizes)

    @property
    def num_items(self) -> int:
        """How many items it holds, which is read from the device."""
        return int(np.asarray(self.leaves[0])[1])

    @property
    def num_bytes(self) -> int:
        """What its arrays take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def build_prefix_index(
    codes: Int[np.ndarray, "n q"],
    sizes: tuple[int, ...],
    *,
    first_item: int = 0,
    capacity: int | None = None,
) -> PrefixIndex:
    """The tree of these IDs.

    Args:
        codes: an ID of each item, each once, such as `SemanticIds.codes`.
        sizes: how many codes each level has.
        first_item: the item of the first row, where earlier ones have an index of their own.
        capacity: for how many items shapes are made, so that an index of more of them, up to so
            many, runs in the same compiled program; as many as there are if None.

    Raises:
        ValueError: an ID that is there twice, a code that its level has not, or more items than the
            capacity.
    """
    n = len(codes)
    if capacity is not None and n > capacity:
        raise ValueError(f"capacity={capacity} must be at least the number of items, {n}")
    order = order_of_ids(codes, sizes).astype(np.int32)
    ordered = codes[order]
    children, kept, leaves = [], [], []
    begins = np.arange(n) == 0  # of the leaves in order, those that a node begins with
    first = np.array([0, n], np.int32)  # under the root
    for level, size in enumerate(sizes):
        leaves.append(first)
        begins[1:] |= ordered[1:, level] != ordered[:-1, level]
        starts = np.flatnonzero(begins)
        node_of_leaf = np.append(np.cumsum(begins) - 1, len(starts))
        children.append(node_of_leaf[first].astype(np.int32))
        kept.append(ordered[starts, level].astype(np.uint16 if size <= 2**16 else np.int32))
        first = _with_end(starts, n)
    branching = tuple(int(np.diff(ends).max(initial=0)) for ends in children)
    if capacity is not None:
        # The root is one node whatever is added; the ends of nodes that are none are the end.
        children[1:] = [_padded(ends, capacity + 1, int(ends[-1])) for ends in children[1:]]
        leaves[1:] = [_padded(ends, capacity + 1, int(ends[-1])) for ends in leaves[1:]]
        kept = [_padded(of_nodes, capacity, 0) for of_nodes in kept]
        branching = tuple(min(size, capacity) for size in sizes)
    room = n if capacity is None else capacity
    return PrefixIndex(
        children=tuple(children),
        codes=tuple(kept),
        leaves=tuple(leaves),
        items=_padded(order + np.int32(first_item), room, -1),
        leaf_of_item=_padded(np.argsort(order).astype(np.int32), room, room),
        first_item=np.array(first_item, np.int32),
        sizes=tuple(sizes),
        branching=branching,
    )


def count_allowed(
    index: PrefixIndex, allowed: Bool[AnyArray, "#b n"]
) -> Int32[AnyArray, "#b leaves"]:
    """For each leaf, how many before it are allowed; one more entry for the end.

    A filter by category, say, is counted once; then whether a node leads to any item that it allows
    is one subtraction.

    Args:
        index: of the items.
        allowed: whether each item may be named, for all rows or for a row each; items from
            `index.first_item` on, as many as it has room for.
    """
    found = jnp.asarray(allowed)[:, jnp.maximum(index.items - index.first_item, 0)]
    found = jnp.where(index.items >= 0, found, False)
    return jnp.pad(jnp.cumsum(found, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def index_as_bytes(index: PrefixIndex, fingerprint: str) -> bytes:
    """The content of an `.npz` file that holds the index, without a pickle.

    Args:
        index: what is kept.
        fingerprint: of the IDs that it was built of, `SemanticIds.fingerprint`.
    """
    content, arrays = io.BytesIO(), {}
    for name in _LISTS:
        arrays |= {f"{name}_{i}": np.asarray(x) for i, x in enumerate(getattr(index, name))}
    arrays |= {name: np.asarray(getattr(index, name)) for name in _ARRAYS}
    np.savez_compressed(
        content,
        **arrays,
        sizes=np.array(index.sizes),
        branching=np.array(index.branching),
        fingerprint=np.array(fingerprint),
    )
    return content.getvalue()


def read_prefix_index(path: Path, *, fingerprint: str) -> PrefixIndex:
    """An index from a file of `index_as_bytes`.

    Args:
        path: the file.
        fingerprint: of the IDs that the model learned: an index of others is refused.

    Raises:
        SemanticIdError: no such file, none of this kind, or an index of other IDs.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            found = dict(held)
        sizes, branching = (tuple(found[name].tolist()) for name in ("sizes", "branching"))
        lists = {
            name: tuple(found[f"{name}_{level}"] for level in range(len(sizes))) for name in _LISTS
        }
        arrays = {name: found[name] for name in _ARRAYS}
        made_of = str(found["fingerprint"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SemanticIdError(f"{path}: must be an .npz file that holds a prefix index") from error
    if made_of != fingerprint:
        raise SemanticIdError(
            f"{path}: was built of the IDs {made_of[:12]}…, must be of {fingerprint[:12]}…, which "
            "the model learned: build it anew from these"
        )
    return PrefixIndex(**lists, **arrays, sizes=sizes, branching=branching)


_LISTS = ("children", "codes", "leaves")
_ARRAYS = ("items", "leaf_of_item", "first_item")


def _with_end(starts: Int[np.ndarray, "nodes"], n: int) -> Int32[np.ndarray, "ends"]:
    return np.append(starts, n).astype(np.int32)


def _padded(x: np.ndarray, size: int, fill: int) -> np.ndarray:
    return np.concatenate([x, np.full(size - len(x), fill, x.dtype)])
