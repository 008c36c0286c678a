"""Sizes, grids and blocks of the TPU kernels: what lies where, and which program reads it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from recipe_kernels.attention.problem import Operands, Problem

MOST_TILE_TOKENS = {
    ("bfloat16", 64): 512,
    ("bfloat16", 128): 512,
    ("bfloat16", 256): 256,
    ("float32", 64): 256,
    ("float32", 128): 256,
    ("float32", 256): 128,
}
"""Queries, and keys, of a tile, by dtype and padded head width; multiples of 128, the lanes."""

LANES = 128
"""Of a vector register: what the last axis of a block is a multiple of."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of everything.

    Attributes:
        problem: what is asked.
        t: queries.
        s: keys.
        h: query heads.
        k: key heads.
        d: width of a head, padded.
        x: queries of a tile.
        y: keys of a tile.
    """

    problem: Problem
    t: int
    s: int
    h: int
    k: int
    d: int
    x: int
    y: int

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.h // self.k

    @property
    def query_tiles(self) -> int:
        """Tiles that the queries are cut into."""
        return -(-self.t // self.x)

    @property
    def key_tiles(self) -> int:
        """Tiles that the keys are cut into."""
        return -(-self.s // self.y)

    @property
    def rows_differ(self) -> bool:
        """Whether rows of the batch have live tiles of their own."""
        per_row = {"prefix_lengths", "query_lengths", "key_lengths", "query_segments"}
        return not per_row.isdisjoint(self.problem.names)

    @property
    def query_steps(self) -> int:
        """How many tiles of queries one tile of keys meets at most."""
        return self._most_tiles(self.y, self.x, self.query_tiles)

    @property
    def key_steps(self) -> int:
        """How many tiles of keys one tile of queries meets at most."""
        return self._most_tiles(self.x, self.y, self.key_tiles)

    def _most_tiles(self, across: int, tile: int, num_tiles: int) -> int:
        if self.problem.window is None:
            return num_tiles
        one_sided = self.problem.causal and "prefix_lengths" not in self.problem.names
        length = across + (self.problem.window - 1) * (1 if one_sided else 2)
        return min(num_tiles, -(-(length - 1) // tile) + 1)


def make_plan(operands: Operands, problem: Problem) -> Plan:
    """Sizes by the table; heads are padded to 64, 128 or 256 numbers."""
    (_, t, h, d), (s, k) = operands.query.shape, operands.key.shape[1:3]
    width = 64 if d <= 64 else -(-d // LANES) * LANES
    most = MOST_TILE_TOKENS[operands.query.dtype.name, width]
    return Plan(problem, t, s, h, k, width, _tile_tokens(t, most), _tile_tokens(s, most))


def _tile_tokens(tokens: int, most: int) -> int:
    """The size, a multiple of 128, that so many tokens are cut into with little left over."""
    num_tiles = -(-tokens // most)
    return -(-tokens // (LANES * num_tiles)) * LANES


def place_of(b: Any, tile: Any, num_tiles: int, plan: Plan) -> Any:
    """Where the live range of a tile stands among the prefetched scalars."""
    return b * num_tiles + tile if plan.rows_differ else tile


def key_value_step(n: Any, plan: Plan) -> tuple[Any, Any]:
    """Query head within the group, and which of its live tiles of queries."""
    return n // plan.query_steps, n % plan.query_steps


def blocks_by_queries(plan: Plan) -> dict[str, pl.BlockSpec]:
    """Blocks of a program of the grid row, head, tile of queries, n-th live tile of keys."""

    def of_queries(b: Any, h: Any, i: Any, n: Any, *scalars: Any) -> Any:
        return b, h, i

    def of_keys(b: Any, h: Any, i: Any, n: Any, first: Any, count: Any, *scalars: Any) -> Any:
        place = place_of(b, i, plan.query_tiles, plan)
        return b, h // plan.group, _nth(n, first[place], count[place])

    return _blocks(plan, of_queries, of_keys)


def blocks_by_keys(plan: Plan) -> dict[str, pl.BlockSpec]:
    """Blocks of a program of the grid row, key head, tile of keys, n-th live tile of queries."""

    def of_queries(b: Any, k: Any, j: Any, n: Any, first: Any, count: Any, *scalars: Any) -> Any:
        place = place_of(b, j, plan.key_tiles, plan)
        of_head, nth = key_value_step(n, plan)
        return b, k * plan.group + of_head, _nth(nth, first[place], count[place])

    def of_keys(b: Any, k: Any, j: Any, n: Any, *scalars: Any) -> Any:
        return b, k, j

    return _blocks(plan, of_queries, of_keys)


def _nth(n: Any, first: Any, count: Any) -> Any:
    """The n-th live tile; after the last the last again, which needs no fetch."""
    return first + jnp.minimum(n, jnp.maximum(count - 1, 0))


def _blocks(plan: Plan, of_queries: Any, of_keys: Any) -> dict[str, pl.BlockSpec]:
    """By name, from functions of the grid that give row, head and tile."""

    def tokens(size: int, place: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, size, plan.d), lambda *at: (*place(*at), 0))

    def segments(size: int, place: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, size), lambda *at: (place(*at)[0], 0, place(*at)[2]))

    def statistic(*at: Any) -> Any:
        b, h, i = of_queries(*at)
        return b, h, 0, i

    queries, keys = tokens(plan.x, of_queries), tokens(plan.y, of_keys)
    statistics = pl.BlockSpec((1, 1, 1, plan.x), statistic)
    return {
        **dict.fromkeys(("query", "out", "out_grad", "query_grad"), queries),
        **dict.fromkeys(("key", "value", "key_grad", "value_grad"), keys),
        **dict.fromkeys(("lse", "delta"), statistics),
        "query_segments": segments(plan.x, of_queries),
        "key_segments": segments(plan.y, of_keys),
    }
