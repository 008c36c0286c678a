"""What a mask leaves of queries and keys: who reads or is read at all, and which tiles meet.

All but segments allow a query an interval of keys, and a key an interval of queries; the arithmetic
on their ends costs O(t + s), no matrix.  An interval `low`…`high` is empty where `high < low`.
"""

import dataclasses
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from recipe_kernels.attention.problem import Operands, Problem

Ends: TypeAlias = Int32[Array, "#b n"]


@dataclasses.dataclass(frozen=True)
class Reach:
    """Who may read whom.

    Attributes:
        problem: the static part of the mask.
        operands: its arrays.
    """

    problem: Problem
    operands: Operands

    @property
    def t(self) -> int:
        """Queries."""
        return self.operands.query.shape[1]

    @property
    def s(self) -> int:
        """Keys."""
        return self.operands.key.shape[1]

    def keys_of(self, first: Ends, last: Ends) -> tuple[Ends, Ends]:
        """The keys between the lowest and the highest that any query `first`…`last` may read."""
        problem = self.problem
        last = self._within("query_lengths", last)
        low, high = jnp.zeros_like(first), jnp.full_like(first, self.s - 1)
        if problem.window is not None:
            low = jnp.maximum(low, first - problem.window + 1)
            high = jnp.minimum(high, last + problem.window - 1)
        if problem.causal:
            seen = last
            if self.operands.prefix_lengths is not None:
                seen = jnp.maximum(last, self.operands.prefix_lengths[:, None] - 1)
            high = jnp.minimum(high, seen)
        return low, jnp.where(first <= last, self._within("key_lengths", high), -1)

    def queries_of(self, first: Ends, last: Ends) -> tuple[Ends, Ends]:
        """The queries between the lowest and the highest that may read any key `first`…`last`."""
        problem = self.problem
        last = self._within("key_lengths", last)
        low, high = jnp.zeros_like(first), jnp.full_like(first, self.t - 1)
        if problem.window is not None:
            low = jnp.maximum(low, first - problem.window + 1)
            high = jnp.minimum(high, last + problem.window - 1)
        if problem.causal:
            seen_from = first
            if self.operands.prefix_lengths is not None:
                in_prefix = first < self.operands.prefix_lengths[:, None]
                seen_from = jnp.where(in_prefix, 0, first)
            low = jnp.maximum(low, seen_from)
        return low, jnp.where(first <= last, self._within("query_lengths", high), -1)

    def _within(self, name: str, last: Ends) -> Ends:
        lengths = getattr(self.operands, name)
        return last if lengths is None else jnp.minimum(last, lengths[:, None] - 1)

    def reads(self) -> tuple[Bool[Array, "#b t"], Bool[Array, "#b s"]]:
        """Whether a query may read any key, and a key be read by any query, segments aside."""
        i, j = (jnp.arange(size, dtype=jnp.int32)[None] for size in (self.t, self.s))
        (low_key, high_key), (low_query, high_query) = self.keys_of(i, i), self.queries_of(j, j)
        return low_key <= high_key, low_query <= high_query

    def live_tiles(self, x: int, y: int) -> Bool[Array, "#b queries keys"]:
        """Which tiles of `x` queries and of `y` keys may hold a pair; `b` is 1 if all rows agree.

        Of segments the lowest and the highest of a tile are compared: exact enough for sequences
        that were packed one after the other.
        """
        query_tiles, key_tiles = -(-self.t // x), -(-self.s // y)
        first = jnp.arange(query_tiles, dtype=jnp.int32)[None] * x
        low, high = self.keys_of(first, jnp.minimum(first + x, self.t) - 1)
        begin = jnp.arange(key_tiles).reshape(1, 1, -1) * y
        live = (begin <= high[..., None]) & (begin + y > low[..., None])
        live &= (low <= high)[..., None]
        of_queries, of_keys = self.operands.query_segments, self.operands.key_segments
        if of_queries is not None and of_keys is not None:
            low_query, high_query = (end[:, :, None] for end in _extremes(of_queries, x))
            low_key, high_key = (end[:, None, :] for end in _extremes(of_keys, y))
            live &= (low_query <= high_key) & (low_key <= high_query)
        return live


def _extremes(
    segments: Int32[Array, "b n"], tile: int
) -> tuple[Int32[Array, "b tiles"], Int32[Array, "b tiles"]]:
    """The lowest and the highest segment of each tile."""
    tiles = padded_segments(segments, tile).reshape(segments.shape[0], -1, tile)
    return tiles.min(-1), tiles.max(-1)


def padded_segments(segments: Int32[Array, "b n"], tile: int) -> Int32[Array, "b m"]:
    """Whole tiles, the last token's segment repeated."""
    return jnp.pad(segments, ((0, 0), (0, -segments.shape[1] % tile)), mode="edge")


def ranges(live: Bool[Array, "#b n m"]) -> tuple[Int32[Array, "bn"], Int32[Array, "bn"]]:
    """First and number of the tiles from the first to the last live one, row after row, flat."""
    first = live.argmax(-1)
    end = live.shape[-1] - live[..., ::-1].argmax(-1)
    count = jnp.where(live.any(-1), end - first, 0)
    return first.astype(jnp.int32).reshape(-1), count.astype(jnp.int32).reshape(-1)
