"""Attention by tiles in plain JAX, forward and backward: the path for CPUs.

A tile of logits lies in the cache while everything is done to it: the online softmax of Milakov and
Gimelshein 2018 (arXiv:1805.02867) forwards, and backwards, from the saved log-sum-exp, the
probabilities once more (Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4; Dao 2023,
arXiv:2307.08691).  Memory is linear in the number of tokens.  Tiles that `causal` or `window`
empties are not in the list of tiles; those that lengths or segments empty in every row are passed
over.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from recipe_kernels.attention.dropout import kept
from recipe_kernels.attention.live_tiles import Reach
from recipe_kernels.attention.problem import Operands, Problem

TILE_TOKENS = 128
"""Queries, and keys, of a tile; fewer where that divides the tokens with less left over."""

TILE_BYTES = 2**21
"""Of the logits of all heads of the rows that are computed together: what a cache holds."""

_ASKING = ("query", "out_grad")

_put = jax.lax.dynamic_update_slice_in_dim
_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_OVER_WIDTH = (((2,), (2,)), ((0,), (0,)))  # c x d, c y d -> c x y
_OVER_KEYS = (((2,), (1,)), ((0,), (0,)))  # c x y, c y d -> c x d
_OVER_QUERIES = (((1,), (1,)), ((0,), (0,)))  # c x y, c x d -> c y d


def forward(*arrays: jax.Array, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Outputs `b t h d` in the dtype of the values, and log-sum-exps `b h t` in nats.

    Where a query may attend to nothing these are 0 and minus infinity.
    """
    return _in_chunks(functools.partial(_forward, problem), arrays, problem)


def backward(*arrays: jax.Array, problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of query, key and value.

    Args:
        arrays: those of `forward`, then its outputs and log-sum-exps, and the gradients of both.
        problem: as in `forward`.
    """
    return _in_chunks(functools.partial(_backward, problem), arrays, problem)


def _in_chunks(compute: Any, arrays: tuple[jax.Array, ...], problem: Problem) -> Any:
    """As many rows of the batch at a time as fit the cache, in the layout that they come in."""
    operands = problem.operands(arrays[: len(problem.names)])
    b, c = operands.query.shape[0], _rows_of_chunk(operands)
    if c == b:
        return compute(*arrays)
    whole = b // c * c
    chunks = [x[:whole].reshape(whole // c, c, *x.shape[1:]) for x in arrays]
    found = jax.lax.map(lambda chunk: compute(*chunk), chunks)
    found = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), found)
    if whole == b:
        return found
    rest = compute(*(x[whole:] for x in arrays))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), found, rest)


def _rows_of_chunk(operands: Operands) -> int:
    """Of which none is left over, if that costs no more than half a chunk."""
    (b, t, h, _), s = operands.query.shape, operands.key.shape[1]
    most = min(b, max(1, TILE_BYTES // (4 * h * _tile_tokens(t) * _tile_tokens(s))))
    return next((c for c in range(most, most // 2, -1) if b % c == 0), most)


def _forward(problem: Problem, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    operands = problem.operands(arrays)
    plan = _Plan.of(operands, problem)
    out, lse = _forward_tiles(problem, plan, _by_key_head(operands, problem, plan))
    lse = lse.reshape(plan.b, plan.h, -1)[..., : plan.t]
    return _to_tokens(out, plan).astype(operands.value.dtype), lse


def _backward(problem: Problem, *arrays: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    *given, out, lse, out_grad, lse_grad = arrays
    operands = problem.operands(tuple(given))
    plan = _Plan.of(operands, problem)
    rows = _by_key_head(operands, problem, plan)
    out_grad = _blank(out_grad, Reach(problem, operands).reads()[0])
    delta = (out.astype(jnp.float32) * out_grad.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    delta -= lse_grad
    rows |= {
        "out_grad": _queries(out_grad.astype(operands.value.dtype), plan),
        "lse": _statistics(jnp.where(jnp.isneginf(lse), 0.0, lse), plan),
        "delta": _statistics(delta, plan),
    }
    query, key, value = _backward_tiles(problem, plan, rows)
    return (
        _to_tokens(query, plan).astype(operands.query.dtype),
        _keys_to_tokens(key, plan).astype(operands.key.dtype),
        _keys_to_tokens(value, plan).astype(operands.value.dtype),
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Sizes of everything.

    Attributes:
        b: rows of the chunk.
        t: queries.
        s: keys.
        h: query heads.
        k: key heads.
        d: width of a head.
        x: queries of a tile.
        y: keys of a tile.
        tiles: which tiles of queries and of keys meet, by query tile.
    """

    b: int
    t: int
    s: int
    h: int
    k: int
    d: int
    x: int
    y: int
    tiles: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, operands: Operands, problem: Problem) -> "_Plan":
        (b, t, h, d), (s, k) = operands.query.shape, operands.key.shape[1:3]
        x, y = _tile_tokens(t), _tile_tokens(s)
        tiles = tuple(
            (i, j)
            for i in range(-(-t // x))
            for j in range(-(-s // y))
            if _may_meet(problem, i * x, (i + 1) * x - 1, j * y, (j + 1) * y - 1)
        )
        return cls(b, t, s, h, k, d, x, y, tiles)

    @property
    def g(self) -> int:
        """Query heads of a key head."""
        return self.h // self.k


class _Tile(NamedTuple):
    """Where a tile lies."""

    i: Array
    j: Array


def _tile_tokens(tokens: int) -> int:
    """The size, a multiple of 8, that so many tokens are cut into with little left over."""
    num_tiles = -(-tokens // TILE_TOKENS)
    return -(-tokens // (8 * num_tiles)) * 8


def _may_meet(problem: Problem, i0: int, i1: int, j0: int, j1: int) -> bool:
    """Whether `causal` and `window` allow any pair of queries i0…i1 and keys j0…j1."""
    reaches_back = problem.window is None or j1 > i0 - problem.window
    if problem.causal and "prefix_lengths" not in problem.names:
        return j0 <= i1 and reaches_back
    reaches_on = problem.window is None or j0 < i1 + problem.window
    return reaches_back and reaches_on


def _by_key_head(operands: Operands, problem: Problem, plan: _Plan) -> dict[str, jax.Array]:
    """All arrays with one leading axis over batch and key heads, padded to whole tiles."""
    reach = Reach(problem, operands)
    reading, read = reach.reads()
    rows = {
        "query": _queries(_blank(operands.query, reading), plan),
        "key": _keys(_blank(operands.key, read), plan),
        "value": _keys(_blank(operands.value, read), plan),
    }
    for name in ("slopes", "seeds"):
        if (x := getattr(operands, name)) is not None:
            rows[name] = x.reshape(plan.b * plan.k, plan.g)
    for name in ("prefix_lengths", "query_lengths", "key_lengths"):
        if (x := getattr(operands, name)) is not None:
            rows[name] = jnp.repeat(x, plan.k)
    if any(name.endswith(("lengths", "segments")) for name in problem.names):
        live = reach.live_tiles(plan.x, plan.y)
        live = jnp.broadcast_to(live, (plan.b, *live.shape[1:]))
        rows["live"] = jnp.repeat(live, plan.k, axis=0)
    for name, size in (("query_segments", plan.x), ("key_segments", plan.y)):
        if (x := getattr(operands, name)) is not None:
            rows[name] = _padded(jnp.repeat(x, plan.k, axis=0), size, 1)
    return rows


def _blank(x: jax.Array, used: Bool[Array, "#b n"]) -> jax.Array:
    """What no pair uses may hold NaN, which no product with zero removes."""
    return jnp.where(used[:, :, None, None], x, jnp.zeros_like(x))


def _queries(x: Float[Array, "b t h d"], plan: _Plan) -> Float[Array, "c g tx d"]:
    x = x.reshape(plan.b, plan.t, plan.k, plan.g, plan.d).transpose(0, 2, 3, 1, 4)
    return _padded(x.reshape(-1, plan.g, plan.t, plan.d), plan.x, 2)


def _keys(x: Float[Array, "b s k d"], plan: _Plan) -> Float[Array, "c sy d"]:
    return _padded(x.swapaxes(1, 2).reshape(-1, plan.s, plan.d), plan.y, 1)


def _statistics(x: Float32[Array, "b h t"], plan: _Plan) -> Float32[Array, "c g tx"]:
    return _padded(x.reshape(-1, plan.g, plan.t), plan.x, 2)


def _padded(x: jax.Array, multiple: int, axis: int) -> jax.Array:
    more = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, more if a == axis else 0) for a in range(x.ndim)])


def _to_tokens(x: Float[Array, "c g tx d"], plan: _Plan) -> Float[Array, "b t h d"]:
    x = x[:, :, : plan.t].reshape(plan.b, plan.h, plan.t, plan.d)
    return x.swapaxes(1, 2)


def _keys_to_tokens(x: Float[Array, "c sy d"], plan: _Plan) -> Float[Array, "b s k d"]:
    x = x[:, : plan.s].reshape(plan.b, plan.k, plan.s, plan.d)
    return x.swapaxes(1, 2)


def _forward_tiles(
    problem: Problem, plan: _Plan, rows: dict[str, jax.Array]
) -> tuple[Float32[Array, "c g tx d"], Float32[Array, "c g tx"]]:
    query = rows["query"]
    tiles = np.array(plan.tiles, np.int32).reshape(-1, 2)
    begins = np.concatenate([[True], tiles[1:, 0] != tiles[:-1, 0]])[: len(tiles)]

    def step(carry: Any, tile: Any) -> tuple[Any, None]:
        out, lse, highest, total, mean = carry
        at, begins = _Tile(*tile[:2]), tile[2]
        highest = jnp.where(begins, -jnp.inf, highest)
        total, mean = jnp.where(begins, 0.0, total), jnp.where(begins, 0.0, mean)

        def attend(highest: jax.Array, total: jax.Array, mean: jax.Array) -> Any:
            logits, _, _, value = _logits(problem, plan, rows, at)
            new = jnp.maximum(highest, logits.max(-1))
            finite = jnp.where(jnp.isneginf(new), 0.0, new)
            shares = jnp.exp(logits - finite[..., None])
            before = jnp.exp(highest - finite)
            weights = _drop(problem, plan, rows, at, shares)
            added = _dot(_flat(weights.astype(value.dtype)), value, _OVER_KEYS)
            mean = mean * before[..., None] + added.reshape(mean.shape)
            return new, total * before + shares.sum(-1), mean

        state = _if_live(rows, at, attend, highest, total, mean)
        highest, total, mean = state
        divisor = jnp.where(total == 0, 1.0, total)
        out = _put(out, mean / divisor[..., None], at.i * plan.x, 2)
        lse = _put(lse, highest + jnp.log(divisor), at.i * plan.x, 2)
        return (out, lse, *state), None

    of_tile = _zeros(query[:, :, : plan.x])
    carry = (
        _zeros(query),
        _zeros(query[..., 0]) - jnp.inf,
        of_tile[..., 0],
        of_tile[..., 0],
        of_tile,
    )
    (out, lse, *_), _ = jax.lax.scan(step, carry, (tiles[:, 0], tiles[:, 1], begins))
    return out, lse


def _backward_tiles(
    problem: Problem, plan: _Plan, rows: dict[str, jax.Array]
) -> tuple[Float32[Array, "c g tx d"], Float32[Array, "c sy d"], Float32[Array, "c sy d"]]:
    query, key = rows["query"], rows["key"]
    tiles = np.array(plan.tiles, np.int32).reshape(-1, 2)

    def step(carry: Any, tile: Any) -> tuple[Any, None]:
        at = _Tile(*tile)

        def grads_of(query_grad: jax.Array, key_grad: jax.Array, value_grad: jax.Array) -> Any:
            logits, slope, key_tile, value = _logits(problem, plan, rows, at)
            lse, delta = (_query_tile(rows[name], at, plan) for name in ("lse", "delta"))
            query_tile, out_grad = (
                _flat(_used(_query_tile(rows[name], at, plan), logits)) for name in _ASKING
            )
            shares = jnp.exp(logits - lse[..., None])
            weights = _drop(problem, plan, rows, at, shares).astype(value.dtype)
            value_grad += _dot(_flat(weights), out_grad, _OVER_QUERIES)
            weight_grad = _dot(out_grad, value, _OVER_WIDTH).reshape(shares.shape)
            weight_grad = _drop(problem, plan, rows, at, weight_grad)
            logit_grad = shares * (weight_grad - delta[..., None]) * problem.scale
            if slope is not None:
                logit_grad *= slope
            # Not zero times NaN: a query that reads nothing may hold it.
            logit_grad = jnp.where(shares == 0, 0.0, logit_grad)
            logit_grad = _flat(logit_grad).astype(query.dtype)
            added = _dot(logit_grad, key_tile, _OVER_KEYS).reshape(query_grad.shape)
            key_grad += _dot(logit_grad, query_tile, _OVER_QUERIES)
            return query_grad + added, key_grad, value_grad

        query_grad, key_grad, value_grad = carry
        of_query, of_key, of_value = _if_live(
            rows,
            at,
            grads_of,
            _query_tile(query_grad, at, plan),
            _key_tile(key_grad, at, plan),
            _key_tile(value_grad, at, plan),
        )
        return (
            _put(query_grad, of_query, at.i * plan.x, 2),
            _put(key_grad, of_key, at.j * plan.y, 1),
            _put(value_grad, of_value, at.j * plan.y, 1),
        ), None

    carry = (_zeros(query), _zeros(key), _zeros(key))
    return jax.lax.scan(step, carry, (tiles[:, 0], tiles[:, 1]))[0]


def _logits(
    problem: Problem, plan: _Plan, rows: dict[str, jax.Array], at: _Tile
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """Logits of a tile `c g x y`, minus infinity where a pair may not meet.

    With them the derivative of the cap, if there is one, and the tile's keys and values `c y d`.
    """
    query, key = _query_tile(rows["query"], at, plan), _key_tile(rows["key"], at, plan)
    value = _key_tile(rows["value"], at, plan)
    allowed = _allowed(problem, plan, rows, at)
    if "key_segments" in rows:
        # No query of another segment may read a key, and padding may hold NaN.
        read = allowed.any(axis=(1, 2))[..., None]
        key, value = jnp.where(read, key, 0), jnp.where(read, value, 0)
    logits = _dot(_flat(query), key, _OVER_WIDTH).reshape(*query.shape[:3], plan.y)
    logits *= problem.scale
    slope = None
    if problem.softcap is not None:
        bent = jnp.tanh(logits / problem.softcap)
        logits, slope = problem.softcap * bent, 1.0 - bent**2
    if "slopes" in rows:
        i, j = _places(plan, at)
        distance = jnp.abs(i[:, None] - j[None]).astype(jnp.float32)
        logits -= rows["slopes"][..., None, None] * distance[None, None]
    return jnp.where(allowed, logits, -jnp.inf), slope, key, value


def _places(plan: _Plan, at: _Tile) -> tuple[Int32[Array, "x"], Int32[Array, "y"]]:
    """Positions of the queries and of the keys of a tile."""
    x, y = (jnp.arange(size, dtype=jnp.int32) for size in (plan.x, plan.y))
    return at.i * plan.x + x, at.j * plan.y + y


def _allowed(
    problem: Problem, plan: _Plan, rows: dict[str, jax.Array], at: _Tile
) -> Bool[Array, "#c 1 #x y"]:
    i, j = _places(plan, at)
    i, j = i.reshape(1, 1, -1, 1), j.reshape(1, 1, 1, -1)

    def of_row(name: str) -> jax.Array:
        return rows[name].reshape(-1, 1, 1, 1)

    allowed = j < plan.s
    if problem.causal:
        seen = j <= i
        if "prefix_lengths" in rows:
            seen |= j < of_row("prefix_lengths")
        allowed &= seen
    if problem.window is not None:
        allowed &= jnp.abs(i - j) < problem.window
    if "query_lengths" in rows:
        allowed &= i < of_row("query_lengths")
    if "key_lengths" in rows:
        allowed &= j < of_row("key_lengths")
    if "query_segments" in rows:
        of_query = jax.lax.dynamic_slice_in_dim(rows["query_segments"], at.i * plan.x, plan.x, 1)
        of_key = jax.lax.dynamic_slice_in_dim(rows["key_segments"], at.j * plan.y, plan.y, 1)
        allowed &= of_query[:, None, :, None] == of_key[:, None, None, :]
    return allowed


def _if_live(rows: dict[str, jax.Array], at: _Tile, compute: Any, *state: jax.Array) -> Any:
    """What the tile makes of the state; the state itself where no row has a pair in the tile."""
    if "live" not in rows:
        return compute(*state)
    live = rows["live"][:, at.i, at.j].any()
    return jax.lax.cond(live, compute, lambda *state: state, *state)


def _drop(
    problem: Problem, plan: _Plan, rows: dict[str, jax.Array], at: _Tile, x: jax.Array
) -> jax.Array:
    if "seeds" not in rows:
        return x
    keep = kept(rows["seeds"], *_places(plan, at), problem.dropout_rate)
    return jnp.where(keep, x / (1.0 - problem.dropout_rate), 0.0)


def _used(x: Float[Array, "c g x d"], logits: Float32[Array, "c g x y"]) -> jax.Array:
    """Queries that read a key of the tile: of those that segments leave alone all may be NaN."""
    return jnp.where(jnp.isneginf(logits).all(-1)[..., None], jnp.zeros_like(x), x)


def _query_tile(x: jax.Array, at: _Tile, plan: _Plan) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, at.i * plan.x, plan.x, 2)


def _key_tile(x: jax.Array, at: _Tile, plan: _Plan) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, at.j * plan.y, plan.y, 1)


def _zeros(like: jax.Array) -> jax.Array:
    """Of float32; they vary over the axes of a mesh that `like` varies over, as plain ones do not.

    So a loop can start with them within `jax.shard_map(…, check_vma=True)`.
    """
    return jnp.where(like == like, jnp.float32(0), jnp.float32(0))


def _flat(x: Float[Array, "c g x ..."]) -> Float[Array, "c gx ..."]:
    """Query heads and queries as the rows of one matrix."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
