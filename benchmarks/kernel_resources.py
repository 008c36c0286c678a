"""What the Triton kernels of attention take of a multiprocessor, compiled ahead of time.

    python -m benchmarks.kernel_resources --record benchmarks/records/kernel_resources.jsonl

Needs no GPU.  Prints a line for each kernel, tile and problem: registers of a thread, bytes of
stack (where registers spill to), bytes of shared memory, how many tensor core instructions, and
whether the assembler makes Hopper's wait for one another, for want of registers.
"""

import dataclasses
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import tyro
from recipe_kernels import triton_bridge
from recipe_kernels.attention import triton_gpu
from recipe_kernels.attention.problem import Problem, make_problem

from experiments.record import command_line, make_record, write_lines
from recipe_jax.layers.masks import Mask

TOKENS = 4096
SHORT_TOKENS = 32
ROWS, HEADS = 2, 8


class Resources(NamedTuple):
    """What a kernel takes.

    Attributes:
        problem: which one it was compiled for.
        kernel: its name.
        arch: compute capability times ten.
        dtype: of query, key and value.
        width: of a head.
        tile: queries, keys, warps, stages.
        registers: of a thread; 255 is the most.
        stack_bytes: of a thread; where there are any, registers spill.
        shared_bytes: of a program.
        wgmma: instructions of Hopper's tensor cores in the PTX.
        mma: those of the older ones.
        serialized: whether those of Hopper's wait for one another.
    """

    problem: str
    kernel: str
    arch: int
    dtype: str
    width: int
    tile: tuple[Any, ...]
    registers: int
    stack_bytes: int
    shared_bytes: int
    wgmma: int
    mma: int
    serialized: bool


PROBLEMS: Mapping[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "causal, ALiBi": {"causal": True, "alibi": True},
    "causal, window": {"causal": True, "window": 1024},
    "causal, lengths": {"causal": True, "lengths": True},
    "causal, segments": {"causal": True, "segments": True},
    "causal, dropout": {"causal": True, "dropout_rate": 0.1},
    "causal, cap": {"causal": True, "softcap": 30.0},
    "causal, ALiBi, segments, dropout": {
        "causal": True,
        "alibi": True,
        "segments": True,
        "dropout_rate": 0.1,
    },
    "everything": {
        "causal": True,
        "alibi": True,
        "window": 1024,
        "segments": True,
        "lengths": True,
        "softcap": 30.0,
        "dropout_rate": 0.1,
    },
    "short sets, lengths": {"tokens": SHORT_TOKENS, "lengths": True},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compile.

    Attributes:
        archs: compute capabilities times ten.
        dtypes: of query, key and value.
        widths: of a head.
        problems: names in `PROBLEMS`; all if none is given.
        record: file to write the table to, as JSON.
    """

    archs: tuple[int, ...] = (80, 90)
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    widths: tuple[int, ...] = (64, 128, 256)
    problems: tuple[str, ...] = tuple(PROBLEMS)
    record: Path | None = None


def compile_all(options: Options) -> Iterator[Resources]:
    """Every kernel of every problem, architecture, dtype and width, forward and backward."""
    for arch in options.archs:
        for dtype in options.dtypes:
            for width in options.widths:
                for name in options.problems:
                    yield from _compile(name, arch, dtype, width)


def _compile(name: str, arch: int, dtype: str, width: int) -> Iterator[Resources]:
    found: list[Resources] = []

    def note(kernel: Any, *arguments: Any, outputs: Any, programs: int, **how: Any) -> Any:
        compiled = triton_bridge.compile_kernel(
            kernel, *arguments, outputs=outputs, arch=arch, **how
        )
        constants = how["constants"]
        tile = (constants["BLOCK_M"], constants.get("BLOCK_N"), how["num_warps"], how["num_stages"])
        usage = _assemble(compiled)
        found.append(
            Resources(
                name,
                kernel.__name__,
                arch,
                dtype,
                width,
                tile,
                usage.registers,
                usage.stack_bytes,
                compiled.shared,
                compiled.ptx.count("wgmma.mma_async"),
                compiled.ptx.count("mma.sync"),
                usage.serialized,
            )
        )
        return tuple(jnp.zeros(x.shape, x.dtype) for x in outputs)

    with (
        mock.patch.object(triton_bridge, "launch", note),
        mock.patch.object(triton_bridge, "cuda_arch", lambda: arch),
    ):
        jax.eval_shape(*_forward_and_backward(dtype=dtype, width=width, **PROBLEMS[name]))
    yield from found


def _forward_and_backward(
    *,
    dtype: str,
    width: int,
    tokens: int = TOKENS,
    causal: bool = False,
    alibi: bool = False,
    window: int | None = None,
    segments: bool = False,
    lengths: bool = False,
    softcap: float | None = None,
    dropout_rate: float = 0.0,
) -> tuple[Callable[..., Any], jax.ShapeDtypeStruct]:
    def compute(query: jax.Array) -> Any:
        ids = jnp.zeros((ROWS, tokens), jnp.int32) if segments else None
        all_real = jnp.full((ROWS,), tokens, jnp.int32) if lengths else None
        problem, arrays = make_problem(
            query,
            query,
            query,
            mask=Mask(
                causal=causal,
                window=window,
                query_segments=ids,
                key_segments=ids,
                query_lengths=all_real,
                key_lengths=all_real,
            ),
            alibi_slopes=jnp.ones(HEADS) if alibi else None,
            scale=None,
            softcap=softcap,
            dropout_rate=dropout_rate,
            dropout_key=jax.random.key(0),
        )
        return _both(problem, arrays)

    return compute, jax.ShapeDtypeStruct((ROWS, tokens, HEADS, width), jnp.dtype(dtype))


def _both(problem: Problem, arrays: tuple[jax.Array, ...]) -> Any:
    out, log_sums = triton_gpu.forward(*arrays, problem=problem)
    return triton_gpu.backward(*arrays, out, log_sums, out, log_sums, problem=problem)


class _Usage(NamedTuple):
    registers: int
    stack_bytes: int
    serialized: bool


def _assemble(compiled: triton_bridge.Compiled) -> _Usage:
    """What the assembler says of the PTX, as whoever launches it assembles it."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    arch = f"sm_{compiled.arch}" + ("a" if compiled.arch >= 90 else "")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.ptx)
        file.flush()
        command = [tool, "-v", f"-arch={arch}", "-o", os.devnull, file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, stack = re.search(r"Used (\d+) reg", said), re.search(r"(\d+) bytes stack", said)
    if registers is None or stack is None:
        raise RuntimeError(f"{tool} does not say what the kernel uses: {said!r}")
    return _Usage(int(registers[1]), int(stack[1]), "serialized" in said)


def main(options: Options) -> None:
    """Compile, print, record."""
    rows = []
    for row in compile_all(options):
        rows.append(row._asdict())
        print(json.dumps(row._asdict()), flush=True)
    if options.record is not None:
        head = make_record(command_line("benchmarks.kernel_resources", options))
        write_lines(options.record, [head, *rows])


if __name__ == "__main__":
    main(tyro.cli(Options))
