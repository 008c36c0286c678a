"""Attention for TPUs in Pallas, forward and backward; the programs are in `pallas_kernels`.

Three kernels (Dao 2023, arXiv:2307.08691): outputs and log-sum-exps; the gradient of queries; the
gradients of keys and values, summed over the query heads of a group, without atomics, so that all
results are the same in every run.  Tiles that the mask empties are neither fetched nor computed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Float32

from recipe_kernels.attention.live_tiles import Reach, padded_segments, ranges
from recipe_kernels.attention.pallas_kernels import (
    LOG2_E,
    forward_kernel,
    key_value_grad_kernel,
    query_grad_kernel,
)
from recipe_kernels.attention.pallas_plan import (
    MOST_TILE_TOKENS,
    Plan,
    blocks_by_keys,
    blocks_by_queries,
    make_plan,
)
from recipe_kernels.attention.problem import Operands, Problem

SCALAR_BYTES = 512 * 1024
"""Of scalar memory for lengths, slopes, seeds and ranges of live tiles: cautious, not measured."""

_SCALARS = ("slopes", "prefix_lengths", "query_lengths", "key_lengths", "seeds")


def limits(operands: Any, problem: Problem) -> tuple[str, ...]:
    """What these kernels cannot do of a problem, limit by limit; none if they can do it.

    Args:
        operands: `Operands` of arrays, or of anything else with shapes and dtypes.
        problem: what is asked.
    """
    dtype, (b, _, _, d) = operands.query.dtype.name, operands.query.shape
    dtypes, widths = (set(found) for found in zip(*MOST_TILE_TOKENS, strict=True))
    found = []
    if dtype not in dtypes:
        found.append(f"{dtype} is neither bfloat16 nor float32")
    if d > max(widths):
        found.append(f"head width {d} is above {max(widths)}")
    if found:
        return tuple(found)
    plan = make_plan(operands, problem)
    of_tiles = 2 * max(plan.query_tiles, plan.key_tiles) * (b if plan.rows_differ else 1)
    of_heads = [b * plan.h for name in ("slopes", "seeds") if name in problem.names]
    of_rows = [b for name in problem.names if name.endswith("_lengths")]
    scalar_bytes = 4 * (of_tiles + sum(of_heads) + sum(of_rows))
    if scalar_bytes <= SCALAR_BYTES:
        return ()
    return (
        f"batch {b} with {plan.h} heads makes {scalar_bytes} bytes of lengths, slopes, seeds and "
        f"ranges of tiles, above {SCALAR_BYTES}",
    )


def check_limits(operands: Any, problem: Problem) -> None:
    """Refuse what these kernels cannot do.

    Raises:
        NotImplementedError: names every limit that the problem is beyond.
    """
    if found := limits(operands, problem):
        raise NotImplementedError(f"attention(pallas): {'; '.join(found)}")


def forward(
    *arrays: jax.Array, problem: Problem, interpret: bool = False
) -> tuple[Float[Array, "b t h d"], Float32[Array, "b h t"]]:
    """Outputs in the dtype of the values, and log-sum-exps in nats.

    Where a query may attend to nothing these are 0 and minus infinity.

    Args:
        arrays: as `problem.names` names them.
        problem: what is asked.
        interpret: run on any device, operation by operation, to test.

    Raises:
        NotImplementedError: see `check_limits`.
    """
    operands = problem.operands(arrays)
    check_limits(operands, problem)
    plan = make_plan(operands, problem)
    live = Reach(problem, operands).live_tiles(plan.x, plan.y)
    tokens, statistics = _token_shape(operands, plan), _statistic_shape(operands, plan)
    out, lse = _call(
        forward_kernel,
        plan,
        scalars=_scalars(operands, live),
        inputs=_inputs(operands, plan),
        outputs={"out": tokens, "lse": statistics},
        scratch={"highest": (1, plan.x), "total": (1, plan.x), "mean": (plan.d, plan.x)},
        interpret=interpret,
    )
    return _from_heads(out, operands.query), lse[:, :, 0, : plan.t]


def backward(
    *arrays: jax.Array, problem: Problem, interpret: bool = False
) -> tuple[Float[Array, "b t h d"], Float[Array, "b s k d"], Float[Array, "b s k d"]]:
    """Gradients of query, key and value.

    Args:
        arrays: those of `forward`, then its outputs and log-sum-exps, and the gradients of both.
        problem: as in `forward`.
        interpret: as in `forward`.

    Raises:
        NotImplementedError: see `check_limits`.
    """
    *given, out, lse, out_grad, lse_grad = arrays
    operands = problem.operands(tuple(given))
    check_limits(operands, problem)
    plan = make_plan(operands, problem)
    reach = Reach(problem, operands)
    live = reach.live_tiles(plan.x, plan.y)
    out_grad = _blank(out_grad.astype(out.dtype), reach.reads()[0])
    delta = (out.astype(jnp.float32) * out_grad.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    inputs = _inputs(operands, plan) | {
        "out_grad": _to_heads(out_grad, plan.x, plan),
        "lse": _statistics(jnp.where(jnp.isneginf(lse), 0.0, lse * LOG2_E), plan),
        "delta": _statistics(delta - lse_grad, plan),
    }
    tokens, keys = _token_shape(operands, plan), _key_shape(operands, plan)
    (query_grad,) = _call(
        query_grad_kernel,
        plan,
        scalars=_scalars(operands, live),
        inputs=inputs,
        outputs={"query_grad": tokens},
        scratch={"query_sum": (plan.x, plan.d)},
        interpret=interpret,
    )
    key_grad, value_grad = _call(
        key_value_grad_kernel,
        plan,
        scalars=_scalars(operands, live.swapaxes(1, 2)),
        inputs=inputs,
        outputs={"key_grad": keys, "value_grad": keys},
        scratch={"key_sum": (plan.y, plan.d), "value_sum": (plan.y, plan.d)},
        interpret=interpret,
    )
    return (
        _from_heads(query_grad, operands.query),
        _from_heads(key_grad, operands.key),
        _from_heads(value_grad, operands.value),
    )


def _scalars(operands: Operands, live: Bool[Array, "#b n m"]) -> dict[str, jax.Array]:
    """What index maps and programs read one by one, flat; the ranges of live tiles first."""
    first, count = ranges(live)
    found = {"first": first, "count": count}
    for name in _SCALARS:
        if (x := getattr(operands, name)) is not None:
            found[name] = x.reshape(-1)
    if "seeds" in found:
        found["seeds"] = jax.lax.bitcast_convert_type(found["seeds"], jnp.int32)
    return found


def _inputs(operands: Operands, plan: Plan) -> dict[str, jax.Array]:
    """Heads before tokens, whole tiles, zeros where padding may hold NaN."""
    query_reads, key_is_read = Reach(plan.problem, operands).reads()
    found = {
        "query": _to_heads(_blank(operands.query, query_reads), plan.x, plan),
        "key": _to_heads(_blank(operands.key, key_is_read), plan.y, plan),
        "value": _to_heads(_blank(operands.value, key_is_read), plan.y, plan),
    }
    for name, tile in (("query_segments", plan.x), ("key_segments", plan.y)):
        if (x := getattr(operands, name)) is not None:
            found[name] = padded_segments(x, tile)[:, None]
    return found


def _blank(x: Float[Array, "b n h d"], real: Bool[Array, "#b n"]) -> Float[Array, "b n h d"]:
    """Padding may hold NaN, which no product with zero removes."""
    return jnp.where(real[:, :, None, None], x, jnp.zeros_like(x))


def _to_heads(x: Float[Array, "b n h d"], tile: int, plan: Plan) -> Float[Array, "b h m w"]:
    more = ((0, 0), (0, 0), (0, -x.shape[1] % tile), (0, plan.d - x.shape[3]))
    return jnp.pad(x.swapaxes(1, 2), more)


def _from_heads(x: Float[Array, "b h m w"], like: jax.Array) -> Float[Array, "b n h d"]:
    return x[:, :, : like.shape[1], : like.shape[3]].swapaxes(1, 2)


def _statistics(x: Float32[Array, "b h t"], plan: Plan) -> Float32[Array, "b h 1 m"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -plan.t % plan.x)))[:, :, None]


def _token_shape(operands: Operands, plan: Plan) -> jax.ShapeDtypeStruct:
    shape = (operands.query.shape[0], plan.h, plan.query_tiles * plan.x, plan.d)
    return _shape(shape, operands.query.dtype, operands.query)


def _statistic_shape(operands: Operands, plan: Plan) -> jax.ShapeDtypeStruct:
    shape = (operands.query.shape[0], plan.h, 1, plan.query_tiles * plan.x)
    return _shape(shape, jnp.float32, operands.query)


def _key_shape(operands: Operands, plan: Plan) -> jax.ShapeDtypeStruct:
    shape = (operands.key.shape[0], plan.k, plan.key_tiles * plan.y, plan.d)
    return _shape(shape, operands.key.dtype, operands.key)


def _shape(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.ShapeDtypeStruct:
    """Of a result that varies over the same axes of a mesh as `like`, inside `shard_map`."""
    manual = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=manual)


def _call(
    kernel: Any,
    plan: Plan,
    *,
    scalars: dict[str, jax.Array],
    inputs: dict[str, jax.Array],
    outputs: dict[str, jax.ShapeDtypeStruct],
    scratch: dict[str, tuple[int, int]],
    interpret: bool,
) -> tuple[jax.Array, ...]:
    b = inputs["query"].shape[0]
    if kernel is key_value_grad_kernel:
        grid = (b, plan.k, plan.key_tiles, plan.group * plan.query_steps)
        blocks = blocks_by_keys(plan)
    else:
        grid = (b, plan.h, plan.query_tiles, plan.key_steps)
        blocks = blocks_by_queries(plan)
    names = (*scalars, *inputs, *outputs, *scratch)
    return pl.pallas_call(
        functools.partial(kernel, names=names, plan=plan),
        out_shape=tuple(outputs.values()),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=[blocks[name] for name in inputs],
            out_specs=tuple(blocks[name] for name in outputs),
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name=f"attention_{kernel.__name__.removesuffix('_kernel')}",
    )(*scalars.values(), *inputs.values())
