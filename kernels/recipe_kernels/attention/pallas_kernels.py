"""What programs of the TPU kernels do with one tile of queries and one of keys (Mosaic, Pallas).

Logits are kept transposed, `y x` (keys of the tile by queries of the tile): what there is one of
per query (highest logit, sum, log-sum-exp, delta) is then a row along the lanes of a register, and
lies in memory without 127 copies of itself.  Exponents are to the base of 2, which is what the
hardware has.  The grid's last axis walks over the tiles from the first to the last live one, and
carries its sums in scratch memory.
"""

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Float32, Int32

from recipe_kernels.attention.dropout import kept_pairs
from recipe_kernels.attention.pallas_plan import Plan, key_value_step, place_of

LOG2_E = math.log2(math.e)
LOWEST = float(jnp.finfo(jnp.float32).min)

_OVER_WIDTH = (((1,), (1,)), ((), ()))  # y d, x d -> y x
_OVER_QUERIES = (((1,), (0,)), ((), ()))  # y x, x d -> y d
_OVER_KEYS = (((0,), (0,)), ((), ()))  # y x, y d -> x d

Refs: TypeAlias = dict[str, Any]


class _Tile(NamedTuple):
    """Row of the batch, query head, tile of queries, tile of keys."""

    b: Any
    h: Any
    i: Any
    j: Any


def forward_kernel(*refs: Any, names: tuple[str, ...], plan: Plan) -> None:
    """Outputs and log-sum-exps of queries; grid: row, head, tile of queries, n-th tile of keys."""
    ref = dict(zip(names, refs, strict=True))
    tile, n, live = _of_queries(ref, plan)

    @pl.when(n == 0)
    def begin() -> None:
        ref["highest"][...] = jnp.full_like(ref["highest"], LOWEST)
        ref["total"][...] = jnp.zeros_like(ref["total"])
        ref["mean"][...] = jnp.zeros_like(ref["mean"])

    @pl.when(live)
    def attend() -> None:
        logits, _, allowed, keep = _logits(ref, tile, plan)
        value = ref["value"][0, 0]
        if "key_segments" in ref:
            value = _blanked(value, _any_of(allowed, 1))
        before = ref["highest"][...]
        highest = jnp.maximum(before, jnp.max(logits, axis=0, keepdims=True))
        shares = _where(allowed, jnp.exp2(logits - highest))
        shrunk = jnp.exp2(before - highest)
        ref["total"][...] = ref["total"][...] * shrunk + jnp.sum(shares, axis=0, keepdims=True)
        weights = _drop(shares, keep, plan).astype(value.dtype)
        ref["mean"][...] = ref["mean"][...] * shrunk + _dot(value, weights, _OVER_KEYS)
        ref["highest"][...] = highest

    @pl.when(n == pl.num_programs(3) - 1)
    def end() -> None:
        total = ref["total"][...]
        read_nothing = total == 0.0
        divisor = jnp.where(read_nothing, 1.0, total)
        ref["out"][0, 0] = jnp.transpose(ref["mean"][...] / divisor).astype(ref["out"].dtype)
        lse = ref["highest"][...] * (1.0 / LOG2_E) + jnp.log(divisor)
        ref["lse"][0, 0] = jnp.where(read_nothing, -jnp.inf, lse)


def query_grad_kernel(*refs: Any, names: tuple[str, ...], plan: Plan) -> None:
    """Gradient of queries; grid as that of `forward_kernel`."""
    ref = dict(zip(names, refs, strict=True))
    tile, n, live = _of_queries(ref, plan)

    @pl.when(n == 0)
    def begin() -> None:
        ref["query_sum"][...] = jnp.zeros_like(ref["query_sum"])

    @pl.when(live)
    def add() -> None:
        _, logit_grad, allowed = _weights_and_logit_grad(ref, tile, plan)
        key = ref["key"][0, 0]
        if "key_segments" in ref:
            key = _blanked(key, _any_of(allowed, 1))
        ref["query_sum"][...] += _dot(logit_grad.astype(key.dtype), key, _OVER_KEYS)

    @pl.when(n == pl.num_programs(3) - 1)
    def end() -> None:
        grad = ref["query_sum"][...] * plan.problem.scale
        ref["query_grad"][0, 0] = grad.astype(ref["query_grad"].dtype)


def key_value_grad_kernel(*refs: Any, names: tuple[str, ...], plan: Plan) -> None:
    """Gradients of keys and values; grid: row, key head, tile of keys, n-th tile of queries.

    The last axis walks over the query heads of the key head, and over the live tiles of each.
    """
    ref = dict(zip(names, refs, strict=True))
    b, k, j, n = (pl.program_id(axis) for axis in range(4))
    of_head, nth = key_value_step(n, plan)
    place = place_of(b, j, plan.key_tiles, plan)
    tile = _Tile(b, k * plan.group + of_head, ref["first"][place] + nth, j)

    @pl.when(n == 0)
    def begin() -> None:
        ref["key_sum"][...] = jnp.zeros_like(ref["key_sum"])
        ref["value_sum"][...] = jnp.zeros_like(ref["value_sum"])

    @pl.when(nth < ref["count"][place])
    def add() -> None:
        weights, logit_grad, allowed = _weights_and_logit_grad(ref, tile, plan)
        query, out_grad = ref["query"][0, 0], ref["out_grad"][0, 0]
        if "key_segments" in ref:
            reads = _column(_any_of(allowed, 0))
            query, out_grad = _blanked(query, reads), _blanked(out_grad, reads)
        ref["value_sum"][...] += _dot(weights.astype(out_grad.dtype), out_grad, _OVER_QUERIES)
        ref["key_sum"][...] += _dot(logit_grad.astype(query.dtype), query, _OVER_QUERIES)

    @pl.when(n == pl.num_programs(3) - 1)
    def end() -> None:
        key_grad = ref["key_sum"][...] * plan.problem.scale
        ref["key_grad"][0, 0] = key_grad.astype(ref["key_grad"].dtype)
        ref["value_grad"][0, 0] = ref["value_sum"][...].astype(ref["value_grad"].dtype)


def _of_queries(ref: Refs, plan: Plan) -> tuple[_Tile, Any, Any]:
    """The tile of this program, its number in the walk, and whether it is within the live range."""
    b, h, i, n = (pl.program_id(axis) for axis in range(4))
    place = place_of(b, i, plan.query_tiles, plan)
    return _Tile(b, h, i, ref["first"][place] + n), n, n < ref["count"][place]


def _logits(
    ref: Refs, tile: _Tile, plan: Plan
) -> tuple[
    Float32[Array, "y x"],
    Float32[Array, "y x"] | None,
    Bool[Array, "y x"] | None,
    Bool[Array, "y x"] | None,
]:
    """Logits in bits, the slope of their cap, which pairs may meet, which weights are kept."""
    problem, slope, keep = plan.problem, None, None
    logits = _dot(ref["key"][0, 0], ref["query"][0, 0], _OVER_WIDTH)
    if problem.softcap is None:
        logits = logits * (problem.scale * LOG2_E)
    else:
        bent = jnp.tanh(logits * (problem.scale / problem.softcap))
        logits, slope = bent * (problem.softcap * LOG2_E), 1.0 - bent * bent
    i = tile.i * plan.x + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    j = tile.j * plan.y + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    head = tile.b * plan.h + tile.h
    if "slopes" in ref:
        distance = jnp.abs(i - j).astype(jnp.float32)
        logits -= (ref["slopes"][head] * LOG2_E) * distance
    if "seeds" in ref:
        keep = kept_pairs(ref["seeds"][head].astype(jnp.uint32), i, j, problem.dropout_rate)
    allowed = _allowed(ref, tile, plan, i, j)
    return _where(allowed, logits, LOWEST), slope, allowed, keep


def _allowed(
    ref: Refs, tile: _Tile, plan: Plan, i: Int32[Array, "y x"], j: Int32[Array, "y x"]
) -> Bool[Array, "y x"] | None:
    """Which pairs may meet; None if all."""
    problem, conditions = plan.problem, []
    if plan.s % plan.y:
        conditions.append(j < plan.s)
    if problem.causal:
        seen = j <= i
        if "prefix_lengths" in ref:
            seen |= j < ref["prefix_lengths"][tile.b]
        conditions.append(seen)
    if problem.window is not None:
        conditions.append(jnp.abs(i - j) < problem.window)
    if "query_lengths" in ref:
        conditions.append(i < ref["query_lengths"][tile.b])
    if "key_lengths" in ref:
        conditions.append(j < ref["key_lengths"][tile.b])
    if "key_segments" in ref:
        conditions.append(_column(ref["key_segments"][0]) == ref["query_segments"][0])
    return functools.reduce(jnp.logical_and, conditions) if conditions else None


def _weights_and_logit_grad(
    ref: Refs, tile: _Tile, plan: Plan
) -> tuple[Float32[Array, "y x"], Float32[Array, "y x"], Bool[Array, "y x"] | None]:
    """Weights of the values; gradient of the logits, `scale` left out; which pairs may meet."""
    logits, slope, allowed, keep = _logits(ref, tile, plan)
    shares = _where(allowed, jnp.exp2(logits - ref["lse"][0, 0]))
    weight_grad = _dot(ref["value"][0, 0], ref["out_grad"][0, 0], _OVER_WIDTH)
    logit_grad = shares * (_drop(weight_grad, keep, plan) - ref["delta"][0, 0])
    if slope is not None:
        logit_grad *= slope
    return _drop(shares, keep, plan), _where(allowed, logit_grad), allowed


def _dot(left: Float[Array, "..."], right: Float[Array, "..."], over: Any) -> Float32[Array, "..."]:
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        left, right, over, precision=precision, preferred_element_type=jnp.float32
    )


def _where(
    allowed: Bool[Array, "y x"] | None, x: Float32[Array, "y x"], otherwise: float = 0.0
) -> Float32[Array, "y x"]:
    return x if allowed is None else jnp.where(allowed, x, otherwise)


def _drop(
    x: Float32[Array, "y x"], keep: Bool[Array, "y x"] | None, plan: Plan
) -> Float32[Array, "y x"]:
    return _where(keep, x if keep is None else x * (1.0 / (1.0 - plan.problem.dropout_rate)))


def _any_of(allowed: Any, axis: int) -> Float32[Array, "..."]:
    """1 for keys that are read in this tile (axis 1), or queries that read (axis 0), else 0."""
    return jnp.max(jnp.where(allowed, 1.0, 0.0), axis=axis, keepdims=True)


def _column(row: Array) -> Array:
    """`[1, n]` to `[n, 1]`; the hardware transposes full registers."""
    return jnp.transpose(jnp.broadcast_to(row, (128, row.shape[1])))[:, :1]


def _blanked(x: Float[Array, "n d"], real: Float32[Array, "n 1"]) -> Float[Array, "n d"]:
    """Padding between segments may hold NaN, which no product with zero removes."""
    real = jnp.broadcast_to(real, x.shape)
    return jnp.where(real > 0.0, x.astype(jnp.float32), 0.0).astype(x.dtype)
