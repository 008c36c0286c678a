"""Triton kernels run by its interpreter on NumPy arrays: no GPU, no torch.

To be imported by a process that set TRITON_INTERPRET=1 before its first import of triton.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("set TRITON_INTERPRET=1 before python starts: triton reads it once")

import triton.language as tl
from triton.runtime import interpreter


class Tensor:
    """A NumPy array with what the interpreter asks of a torch tensor."""

    def __init__(self, array: np.ndarray) -> None:
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("a kernel reads and writes rows in order: make the array contiguous")
        self.array = array
        self.dtype = str(array.dtype)

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "Tensor":
        return self

    def cpu(self) -> "Tensor":
        return self

    def copy_(self, other: "Tensor") -> None:
        """Nothing: kernels write into the array itself."""

    def new_empty(self, *_: Any, **__: Any) -> "Tensor":
        return Tensor(self.array)

    def set_(self, *_: Any) -> "Tensor":
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def is_contiguous(self) -> bool:
        return True


def mend_bfloat16() -> None:
    """Make bfloat16 as on a GPU: the interpreter multiplies its bits, and cuts them off."""
    create_dot, cast = (
        interpreter.InterpreterBuilder.create_dot,
        interpreter.InterpreterBuilder.cast_impl,
    )

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def dot_of_numbers(self: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
        return create_dot(self, widened(a), widened(b), c, *rest)

    def rounded(self: Any, x: Any, dtype: Any) -> Any:
        if (x.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, dtype)
        nearest = np.asarray(x.data).astype(ml_dtypes.bfloat16).view(np.uint16)
        return interpreter.TensorHandle(nearest, dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = dot_of_numbers
    interpreter.InterpreterBuilder.cast_impl = rounded


def launch(
    kernel: Any,
    *arguments: Any,
    outputs: Sequence[jax.ShapeDtypeStruct],
    programs: int,
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    max_registers: int | None = None,
) -> tuple[jax.Array, ...]:
    """What `triton_bridge.launch` does, on a CPU, within programs that are compiled, too."""
    arrays = [x for x in arguments if hasattr(x, "dtype")]

    def run(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        rest = iter(arrays)
        given = [Tensor(np.array(next(rest))) if hasattr(x, "dtype") else x for x in arguments]
        # Outputs are to be written wholly: they start as what is no result.
        written = [
            np.full(x.shape, np.nan if jnp.issubdtype(x.dtype, jnp.floating) else -1, x.dtype)
            for x in outputs
        ]
        kernel[(programs,)](*given, *map(Tensor, written), **constants)
        return tuple(written)

    return tuple(jax.pure_callback(run, tuple(outputs), *arrays))
