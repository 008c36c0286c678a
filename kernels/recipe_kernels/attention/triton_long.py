"""Attention for GPUs over long sequences: grids, tiles and calls of `triton_long_kernels`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from recipe_kernels import triton_bridge
from recipe_kernels.attention.dropout import threshold
from recipe_kernels.attention.live_tiles import Reach, ranges
from recipe_kernels.attention.problem import Operands, Problem
from recipe_kernels.attention.tiles import Kernel, Tile, padded, tile_of

_STATISTICS_ROWS = 64

_LEAST_FOLDED = 1e-30
"""A scale that a maximum is multiplied by: what vanishes in float32 would make it NaN."""


def forward(
    *arrays: jax.Array, problem: Problem
) -> tuple[Float[Array, "b t h d"], Float32[Array, "b h t"]]:
    """Outputs in the dtype of the values, and log-sum-exps in nats.

    Where a query may attend to nothing these are 0 and minus infinity.
    """
    from recipe_kernels.attention import triton_long_kernels as kernels

    operands = problem.operands(arrays)
    call = _Call.of("forward", operands, problem)
    b, t, h, d = operands.query.shape
    out, log_sums = triton_bridge.launch(
        kernels.forward,
        *call.inputs(by_queries=True),
        *call.scalars(),
        outputs=[
            jax.ShapeDtypeStruct((b, t, h, d), operands.value.dtype),
            jax.ShapeDtypeStruct((b, h, t), jnp.float32),
        ],
        programs=-(-t // call.tile.block_m) * b * h,
        constants=call.constants(ragged=operands.key.shape[1] % call.tile.block_n != 0),
        num_warps=call.tile.num_warps,
        num_stages=call.tile.num_stages,
        max_registers=call.tile.max_registers,
    )
    return out, log_sums


def backward(
    *arrays: jax.Array, problem: Problem
) -> tuple[Float[Array, "b t h d"], Float[Array, "b s k d"], Float[Array, "b s k d"]]:
    """Gradients of query, key and value.

    Args:
        arrays: those of `forward`, then its outputs and log-sum-exps, and the gradients of both.
        problem: as in `forward`.
    """
    from recipe_kernels.attention import triton_long_backward as kernels

    *given, out, log_sums, out_grad, log_sum_grads = arrays
    operands = problem.operands(tuple(given))
    out_grad = out_grad.astype(operands.value.dtype)
    of_queries = _statistics(out, out_grad, log_sums, log_sum_grads)
    (b, t, h, d), (s, k) = operands.query.shape, operands.key.shape[1:3]
    call = _Call.of("key_grads", operands, problem)
    key_grad, value_grad = triton_bridge.launch(
        kernels.key_grads,
        *call.inputs(by_queries=False),
        out_grad,
        *of_queries,
        *call.scalars(),
        outputs=[jax.ShapeDtypeStruct((b, s, k, d), operands.key.dtype)] * 2,
        programs=-(-s // call.tile.block_n) * b * k,
        constants=call.constants(ragged=t % call.tile.block_m != 0),
        num_warps=call.tile.num_warps,
        num_stages=call.tile.num_stages,
        max_registers=call.tile.max_registers,
    )
    call = _Call.of("query_grads", operands, problem)
    (query_grad,) = triton_bridge.launch(
        kernels.query_grads,
        *call.inputs(by_queries=True),
        out_grad,
        *of_queries,
        *call.scalars(),
        outputs=[jax.ShapeDtypeStruct((b, t, h, d), operands.query.dtype)],
        programs=-(-t // call.tile.block_m) * b * h,
        constants=call.constants(ragged=s % call.tile.block_n != 0),
        num_warps=call.tile.num_warps,
        num_stages=call.tile.num_stages,
        max_registers=call.tile.max_registers,
    )
    return query_grad, key_grad, value_grad


def _statistics(
    out: jax.Array, out_grad: jax.Array, log_sums: jax.Array, log_sum_grads: jax.Array
) -> tuple[Float32[Array, "b h t"], Float32[Array, "b h t"]]:
    from recipe_kernels.attention import triton_long_backward as kernels

    b, t, h, d = out.shape
    log2_sums, deltas = triton_bridge.launch(
        kernels.statistics,
        out,
        out_grad,
        log_sums,
        log_sum_grads,
        t,
        outputs=[jax.ShapeDtypeStruct((b, h, t), jnp.float32)] * 2,
        programs=-(-t // _STATISTICS_ROWS) * b * h,
        constants={"H": h, "D": d, "WIDTH": padded(d), "BLOCK_M": _STATISTICS_ROWS},
        num_warps=4,
        num_stages=1,
    )
    return log2_sums, deltas


def _is_needy(kernel: Kernel, problem: Problem) -> bool:
    """Whether what the mask asks for beside `causal` and ALiBi takes many registers."""
    if problem.softcap is not None or {"key_segments", "seeds"} & set(problem.names):
        return True
    ends = {"query_lengths", "key_lengths", "prefix_lengths"} & set(problem.names)
    return kernel == "key_grads" and (problem.window is not None or bool(ends))


class _Call(NamedTuple):
    """What the kernels have in common.

    Attributes:
        operands: arrays.
        problem: what is static.
        tile: how the kernel cuts its work.
    """

    operands: Operands
    problem: Problem
    tile: Tile

    @classmethod
    def of(cls, kernel: Kernel, operands: Operands, problem: Problem) -> "_Call":
        tile = tile_of(
            kernel,
            triton_bridge.cuda_arch(),
            operands.query.dtype.itemsize,
            padded(operands.query.shape[3]),
            operands.query.shape[1],
            operands.key.shape[1],
            needy=_is_needy(kernel, problem),
        )
        return cls(operands, problem, tile)

    def inputs(self, *, by_queries: bool) -> tuple[jax.Array | None, ...]:
        """Every operand, and which tiles share a segment, in the order of a kernel's parameters."""
        return (*self.operands, self._ranges(by_queries))

    def scalars(self) -> tuple[int | float | None, ...]:
        """Numbers that a kernel is not compiled anew for."""
        problem, t, s = self.problem, self.operands.query.shape[1], self.operands.key.shape[1]
        window = None if problem.window is None else min(problem.window, t + s)
        return t, s, problem.scale, problem.softcap, window, 1.0 - problem.dropout_rate

    def constants(self, *, ragged: bool) -> dict[str, Any]:
        """What a kernel is compiled for."""
        problem, (h, d) = self.problem, self.operands.query.shape[2:]
        plain = self.operands.slopes is None and problem.softcap is None
        return {
            "H": h,
            "GROUP": h // self.operands.key.shape[2],
            "D": d,
            "WIDTH": padded(d),
            "CAUSAL": problem.causal,
            "FOLDED": plain and problem.scale > _LEAST_FOLDED,
            "THRESHOLD": threshold(problem.dropout_rate),
            "RAGGED": ragged,
            "BLOCK_M": self.tile.block_m,
            "BLOCK_N": self.tile.block_n,
        }

    def _ranges(self, by_queries: bool) -> Int32[Array, "tiles 2"] | None:
        """The first tile that a tile meets, and the one behind the last."""
        if self.operands.query_segments is None:
            return None
        live = Reach(self.problem, self.operands).live_tiles(self.tile.block_m, self.tile.block_n)
        first, count = ranges(live if by_queries else live.swapaxes(1, 2))
        return jnp.stack([first, first + count], axis=-1)
