"""Which keys a query may attend to, as structure that a kernel can read."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

_STATIC = ("causal", "window")
_ARRAYS = (
    "prefix_lengths",
    "query_lengths",
    "key_lengths",
    "query_segments",
    "key_segments",
    "dense",
)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """The conditions a pair of query `i` and key `j` must all meet; `Mask()` allows every pair.

    `causal` and `window` are static, the rest are arrays: a mask goes through jit and vmap, and is
    an argument of a kernel, which reads its structure and never builds a `t` by `s` matrix.

    Attributes:
        causal: `j <= i`.
        prefix_lengths: with `causal`, keys `j < prefix_lengths[b]` are seen by every query, too: a
            prefix that is read in both directions (Raffel et al. 2020, arXiv:1910.10683, fig. 4).
        window: `|i - j| < window`; 1 allows only the token itself.
        query_lengths: `i < query_lengths[b]`; later queries attend to nothing.
        key_lengths: `j < key_lengths[b]`.
        query_segments: `query_segments[b, i] == key_segments[b, j]`, for packed sequences.
        key_segments: see `query_segments`.
        dense: any further condition; true where query and key may meet.
    """

    causal: bool = False
    window: int | None = None
    prefix_lengths: Int[Array, "b"] | None = None
    query_lengths: Int[Array, "b"] | None = None
    key_lengths: Int[Array, "b"] | None = None
    query_segments: Int[Array, "b t"] | None = None
    key_segments: Int[Array, "b s"] | None = None
    dense: Bool[Array, "#b #h t s"] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not isinstance(self.window, int | np.integer):
            raise ValueError(f"window={self.window} must be a whole number of tokens")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1: a query sees itself")
        if self.prefix_lengths is not None and not self.causal:
            raise ValueError("prefix_lengths need causal=True: else every key is seen already")
        if (self.query_segments is None) != (self.key_segments is None):
            given = "key_segments" if self.query_segments is None else "query_segments"
            raise ValueError(f"{given} is given alone: give query_segments and key_segments")

    @property
    def allows_all(self) -> bool:
        """Whether no condition is set."""
        return not self.causal and all(getattr(self, name) is None for name in ("window", *_ARRAYS))

    def to_dense(
        self, t: int, s: int, *, offsets: Int[Array, "b"] | None = None
    ) -> Bool[Array, "#b #h t s"]:
        """The mask as a matrix; true where a query may attend to a key.

        Args:
            t: number of queries.
            s: number of keys.
            offsets: position of the first query among the keys, which `causal` and `window` count
                from; 0 if not given.  The other conditions are about rows and columns.
        """
        rows = jnp.arange(t).reshape(1, 1, t, 1)
        columns = jnp.arange(s).reshape(1, 1, 1, s)
        positions = rows if offsets is None else rows + offsets.reshape(-1, 1, 1, 1)
        allowed = jnp.ones((1, 1, t, s), bool)
        if self.causal:
            seen = columns <= positions
            if self.prefix_lengths is not None:
                seen |= columns < self.prefix_lengths.reshape(-1, 1, 1, 1)
            allowed &= seen
        if self.window is not None:
            allowed &= jnp.abs(positions - columns) < self.window
        if self.query_lengths is not None:
            allowed &= rows < self.query_lengths.reshape(-1, 1, 1, 1)
        if self.key_lengths is not None:
            allowed &= columns < self.key_lengths.reshape(-1, 1, 1, 1)
        if self.query_segments is not None and self.key_segments is not None:
            allowed &= self.query_segments[:, None, :, None] == self.key_segments[:, None, None, :]
        if self.dense is not None:
            allowed &= self.dense
        return allowed

    def __and__(self, other: "Mask") -> "Mask":
        """The pairs that both masks allow."""
        dense = _both(self.dense, other.dense, jnp.logical_and)
        query_segments, key_segments = self.query_segments, self.key_segments
        if query_segments is None:
            query_segments, key_segments = other.query_segments, other.key_segments
        elif other.query_segments is not None and other.key_segments is not None:
            same = other.query_segments[:, None, :, None] == other.key_segments[:, None, None, :]
            dense = same if dense is None else dense & same
        return Mask(
            causal=self.causal or other.causal,
            window=_both(self.window, other.window, min),
            prefix_lengths=_common_prefix(self, other),
            query_lengths=_both(self.query_lengths, other.query_lengths, jnp.minimum),
            key_lengths=_both(self.key_lengths, other.key_lengths, jnp.minimum),
            query_segments=query_segments,
            key_segments=key_segments,
            dense=dense,
        )

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        """Children with their names, and the static fields."""
        children = [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in _ARRAYS]
        return children, tuple(getattr(self, name) for name in _STATIC)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], children: Sequence[Any]) -> "Mask":
        """The inverse of flattening; unchecked, since JAX also unflattens placeholders."""
        mask = object.__new__(cls)
        for name, value in zip((*_STATIC, *_ARRAYS), (*static, *children), strict=True):
            object.__setattr__(mask, name, value)
        return mask


def _both(left: Any, right: Any, combine: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    return combine(left, right)


def _common_prefix(one: Mask, other: Mask) -> Int[Array, "b"] | None:
    """What both see beyond the past; a causal mask without a prefix sees nothing there."""
    either_has_none = one.prefix_lengths is None or other.prefix_lengths is None
    if one.causal and other.causal and either_has_none:
        return None
    return _both(one.prefix_lengths, other.prefix_lengths, jnp.minimum)
