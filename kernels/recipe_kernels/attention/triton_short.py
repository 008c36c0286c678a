"""Attention for GPUs in many short sets: grids, tiles and calls of `triton_short_kernels`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from recipe_kernels import triton_bridge
from recipe_kernels.attention.dropout import threshold
from recipe_kernels.attention.problem import Operands, Problem
from recipe_kernels.attention.tiles import Kernel, Tile, padded, sets_of_program, tile_of

MOST_TOKENS = 64
"""Queries, and keys, of a short set: more are cut into tiles by `triton_long`."""

MOST_BYTES = 16 * 1024
"""Of the queries, or keys, of a set: four such matrices and sums of three lie in registers."""


def fits(operands: Operands) -> bool:
    """Whether sets are short, and heads narrow, enough for a program to hold a set at once."""
    tokens = max(operands.query.shape[1], operands.key.shape[1])
    row_bytes = padded(operands.query.shape[3]) * operands.query.dtype.itemsize
    return tokens <= MOST_TOKENS and padded(tokens) * row_bytes <= MOST_BYTES


def forward(
    *arrays: jax.Array, problem: Problem
) -> tuple[Float[Array, "b t h d"], Float32[Array, "b h t"]]:
    """Outputs in the dtype of the values, and log-sum-exps in nats.

    Where a query may attend to nothing these are 0 and minus infinity.
    """
    from recipe_kernels.attention import triton_short_kernels as kernels

    operands = problem.operands(arrays)
    b, t, h, d = operands.query.shape
    tile = _tile("short_forward", operands)
    out, log_sums = triton_bridge.launch(
        kernels.forward,
        *operands,
        *_scalars(operands, problem),
        outputs=[
            jax.ShapeDtypeStruct((b, t, h, d), operands.value.dtype),
            jax.ShapeDtypeStruct((b, h, t), jnp.float32),
        ],
        **_how(operands, problem, tile),
    )
    return out, log_sums


def backward(
    *arrays: jax.Array, problem: Problem
) -> tuple[Float[Array, "b t h d"], Float[Array, "b s k d"], Float[Array, "b s k d"]]:
    """Gradients of query, key and value.

    Args:
        arrays: those of `forward`, then its outputs and log-sum-exps, which are not read, and the
            gradients of both.
        problem: as in `forward`.
    """
    from recipe_kernels.attention import triton_short_kernels as kernels

    *given, _, _, out_grad, log_sum_grads = arrays
    operands = problem.operands(tuple(given))
    tile = _tile("short_grads", operands)
    query_grad, key_grad, value_grad = triton_bridge.launch(
        kernels.grads,
        *operands,
        out_grad.astype(operands.value.dtype),
        log_sum_grads,
        *_scalars(operands, problem),
        outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands[:3]],
        **_how(operands, problem, tile),
    )
    return query_grad, key_grad, value_grad


def _tile(kernel: Kernel, operands: Operands) -> Tile:
    (t, d), s = (operands.query.shape[axis] for axis in (1, 3)), operands.key.shape[1]
    itemsize = operands.query.dtype.itemsize
    return tile_of(kernel, triton_bridge.cuda_arch(), itemsize, padded(d), t, s)


def _num_sets(operands: Operands) -> int:
    return operands.key.shape[0] * operands.key.shape[2]


def _scalars(operands: Operands, problem: Problem) -> tuple[int | float | None, ...]:
    """Numbers that a kernel is not compiled anew for."""
    t, s = operands.query.shape[1], operands.key.shape[1]
    window = None if problem.window is None else min(problem.window, t + s)
    keep_rate = 1.0 - problem.dropout_rate
    return t, s, problem.scale, problem.softcap, window, keep_rate, _num_sets(operands)


def _how(operands: Operands, problem: Problem, tile: Tile) -> dict[str, Any]:
    """Further arguments of `launch`."""
    num_sets = _num_sets(operands)
    sets = sets_of_program(num_sets)
    h, d = operands.query.shape[2:]
    return {
        "programs": -(-num_sets // sets),
        "constants": {
            "H": h,
            "GROUP": h // operands.key.shape[2],
            "D": d,
            "WIDTH": padded(d),
            "CAUSAL": problem.causal,
            "THRESHOLD": threshold(problem.dropout_rate),
            "SETS": sets,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
        },
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
