"""Triton kernels as XLA custom calls, with neither jax-triton nor a plugin.

`triton.compile` needs no GPU.  What it makes is described by jaxlib's protobuf
`TritonAnyKernelCall` (jaxlib/gpu/triton.proto), which is encoded here, and launched by the target
`triton_kernel_call`, which jaxlib's CUDA plugin registers.  So a program can be lowered for CUDA on
any machine.
"""

import dataclasses
import functools
import importlib.util
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

TARGET = "triton_kernel_call"

DEFAULT_ARCH = 90
"""What is compiled for on a machine without a GPU: compute capability 9.0, Hopper."""

PTX_VERSION = 87
"""What every CUDA from 12.8 on reads: jaxlib's assembler may be older than Triton's own."""

_NEWER_PTX = {103: 88, 121: 88}
"""Architectures that older PTX does not know -> the first that does."""

MOST_PROGRAMS = 2**31 - 1
"""CUDA's limit of the first axis of a grid."""

_TYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "int32": "i32",
    "uint32": "u32",
}

Scalar: TypeAlias = int | float
Argument: TypeAlias = jax.Array | Scalar | None
Pairs: TypeAlias = tuple[tuple[Any, Any], ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel as machine code and as text.

    Attributes:
        name: of its entry point.
        arch: compute capability times ten.
        num_warps: warps of a program.
        num_ctas: blocks of a cluster.
        shared: bytes of shared memory of a program.
        ptx: what the driver assembles.
        cubin: the same as Triton's own assembler makes it, for inspection.
    """

    name: str
    arch: int
    num_warps: int
    num_ctas: int
    shared: int
    ptx: str
    cubin: bytes


def is_installed() -> bool:
    """Whether there is a package `triton`; it is not imported."""
    return importlib.util.find_spec("triton") is not None


def launch(
    kernel: Any,
    *arguments: Argument,
    outputs: Sequence[jax.ShapeDtypeStruct],
    programs: int,
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    max_registers: int | None = None,
) -> tuple[jax.Array, ...]:
    """Run a kernel on the arrays that it reads; to be called while a program is traced for CUDA.

    Args:
        kernel: made by `triton.jit`; its parameters are the arguments, the outputs, the constants.
        arguments: arrays, all in row-major order; integers, floats; None for what is absent, which
            the kernel sees as None when it is compiled.
        outputs: what the kernel writes, wholly.
        programs: how many run, along one axis.
        constants: its `tl.constexpr` parameters.
        num_warps: warps of a program.
        num_stages: loads that are under way while a loop computes.
        max_registers: of a thread; None lets the assembler take what it likes.

    Raises:
        TypeError: an argument has a dtype that no kernel here takes.
        NotImplementedError: there are more programs than CUDA launches at once.
    """
    if programs > MOST_PROGRAMS:
        raise NotImplementedError(f"{programs} programs are above {MOST_PROGRAMS}: split the batch")
    compiled = compile_kernel(
        kernel,
        *arguments,
        outputs=outputs,
        constants=constants,
        num_warps=num_warps,
        num_stages=num_stages,
        max_registers=max_registers,
        arch=cuda_arch(),
    )
    given = [x for x in (*arguments, *outputs) if x is not None]
    call = zlib.compress(_encode_call(compiled, programs, given))
    results = jax.ffi.ffi_call(
        TARGET,
        list(outputs),
        custom_call_api_version=2,
        legacy_backend_config=call,  # pyright: ignore[reportArgumentType, reportCallIssue]
    )(*(x for x in arguments if hasattr(x, "dtype")))
    return tuple(results)


def compile_kernel(
    kernel: Any,
    *arguments: Argument | jax.ShapeDtypeStruct,
    outputs: Sequence[jax.ShapeDtypeStruct],
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    max_registers: int | None = None,
    arch: int = DEFAULT_ARCH,
) -> Compiled:
    """What `launch` launches, as it is made on any machine; arguments as there."""
    names = list(kernel.arg_names)
    signature, known, hints = {}, dict(constants), {}
    for position, x in enumerate((*arguments, *outputs)):
        name = names[position]
        if x is None:
            known[name] = None
            continue
        signature[name] = _type_of(name, x)
        if hasattr(x, "dtype") or (isinstance(x, int) and x % 16 == 0):
            hints[(position,)] = (("tt.divisibility", 16),)
    if set(signature) | set(known) != set(names):
        raise TypeError(f"{kernel.__name__} takes {names}, not {[*signature, *known]}")
    return _compile(
        kernel,
        tuple((name, signature.get(name, "constexpr")) for name in names),
        tuple(sorted(known.items(), key=lambda item: item[0])),
        tuple(hints.items()),
        num_warps,
        num_stages,
        max_registers,
        arch,
    )


@functools.cache
def cuda_arch() -> int:
    """Compute capability times ten of the first GPU, or of Hopper where there is none."""
    try:
        device = jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return DEFAULT_ARCH
    return int(device.compute_capability.replace(".", ""))


def _type_of(name: str, x: Any) -> str:
    if isinstance(x, int):
        return "i32" if -(2**31) <= x < 2**31 else "i64"
    if isinstance(x, float):
        return "fp32"
    dtype = jnp.dtype(x.dtype).name
    if dtype not in _TYPES:
        raise TypeError(f"{name} has dtype {dtype}, must be one of {tuple(_TYPES)}")
    return "*" + _TYPES[dtype]


@functools.cache
def _compile(
    kernel: Any,
    signature: Pairs,
    constants: Pairs,
    hints: Pairs,
    num_warps: int,
    num_stages: int,
    max_registers: int | None,
    arch: int,
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        dict(signature),
        {places[name]: value for name, value in constants},
        {place: [list(hint) for hint in found] for place, found in hints},
    )
    options = {
        "num_warps": num_warps,
        "num_stages": num_stages,
        "maxnreg": max_registers,
        "ptx_version": _NEWER_PTX.get(arch, PTX_VERSION),
        "enable_fp_fusion": True,
    }
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    if getattr(made.metadata, "global_scratch_size", 0):
        raise NotImplementedError(
            f"{kernel.__name__} needs scratch memory, which XLA does not give"
        )
    return Compiled(
        name=made.metadata.name,
        arch=arch,
        num_warps=made.metadata.num_warps,
        num_ctas=made.metadata.num_ctas,
        shared=made.metadata.shared,
        ptx=made.asm["ptx"],
        cubin=made.asm["cubin"],
    )


def _encode_call(compiled: Compiled, programs: int, given: Sequence[Any]) -> bytes:
    """`TritonAnyKernelCall` in protobuf's wire format."""
    kernel = (
        _message(1, compiled.name.encode())
        + _integer(2, compiled.num_warps)
        + _integer(3, compiled.shared)
        + _message(4, compiled.ptx.encode())
        + _integer(6, compiled.arch)
        + _integer(10, compiled.num_ctas)
    )
    grid = _integer(2, programs) + _integer(3, 1) + _integer(4, 1)
    parameters = b"".join(_message(5, _encode_parameter(x)) for x in given)
    call = _message(1, kernel) + grid + parameters
    return _message(1, call) + _message(4, compiled.name.encode())


def _encode_parameter(x: Any) -> bytes:
    if isinstance(x, int):
        return _integer(3 if -(2**31) <= x < 2**31 else 5, x)
    if isinstance(x, float):
        return _varint(7 << 3 | 5) + struct.pack("<f", x)
    return _message(1, _integer(2, 16))  # an array whose address is a multiple of 16


def _varint(number: int) -> bytes:
    number &= 2**64 - 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _integer(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
