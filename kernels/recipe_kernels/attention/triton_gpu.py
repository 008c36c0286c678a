"""Attention for GPUs in Triton: many short sets and long sequences, each by its own kernels."""

from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from recipe_kernels import triton_bridge
from recipe_kernels.attention import triton_long, triton_short
from recipe_kernels.attention.problem import Operands, Problem

LEAST_ARCH = 80
"""Compute capability times ten: older GPUs have no bfloat16 and other tensor cores."""

MOST_WIDTH = 256
"""Of a head: a tile of wider ones does not fit the registers."""

DTYPES = ("bfloat16", "float16", "float32")


def limits(operands: Operands, problem: Problem) -> tuple[str, ...]:
    """What of the problem these kernels cannot do; nothing if they can."""
    del problem
    width, dtype = operands.query.shape[3], jnp.dtype(operands.query.dtype).name
    found = []
    if not triton_bridge.is_installed():
        found.append("the package triton is missing: pip install 'recipe-jax[kernels]'")
    if (arch := triton_bridge.cuda_arch()) < LEAST_ARCH:
        found.append(f"compute capability {arch / 10} is below {LEAST_ARCH / 10}")
    if width > MOST_WIDTH:
        found.append(f"head width {width} is above {MOST_WIDTH}")
    if dtype not in DTYPES:
        found.append(f"dtype {dtype} is none of {', '.join(DTYPES)}")
    return tuple(found)


def forward(
    *arrays: jax.Array, problem: Problem
) -> tuple[Float[Array, "b t h d"], Float32[Array, "b h t"]]:
    """Outputs in the dtype of the values, and log-sum-exps in nats.

    Where a query may attend to nothing these are 0 and minus infinity.
    """
    return _kernels(arrays, problem).forward(*arrays, problem=problem)


def backward(
    *arrays: jax.Array, problem: Problem
) -> tuple[Float[Array, "b t h d"], Float[Array, "b s k d"], Float[Array, "b s k d"]]:
    """Gradients of query, key and value.

    Args:
        arrays: those of `forward`, then its outputs and log-sum-exps, and the gradients of both.
        problem: as in `forward`.
    """
    return _kernels(arrays[:-4], problem).backward(*arrays, problem=problem)


def _kernels(arrays: tuple[jax.Array, ...], problem: Problem) -> ModuleType:
    fits = triton_short.fits(problem.operands(arrays))
    return triton_short if fits else triton_long
