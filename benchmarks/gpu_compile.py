"""Compile programs of attention for an H200, without a GPU.

    pip install triton 'jax[cuda13-local]'    # the latter: 130 MB to fetch, 400 MB installed
    python -m benchmarks.gpu_compile

XLA, as JAX's plugin brings it, compiles each program whole, forward and backward, for a description
of the device: whether kernels and all that surrounds them fit together, what memory they take, and
what the devices of a mesh send each other.  Triton's kernels are not launched.

Prints one JSON object a line.  Ends with 1 if a program was refused, asks other devices for arrays,
or takes memory quadratic in the tokens; with 2 if the plugin is missing.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Before jax starts a backend: the plugin compiles, but there is no device to run on.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from recipe_kernels import ShardedAttention, attention

from experiments.record import command_line, make_record, write_lines
from recipe_jax.layers.masks import Mask
from recipe_jax.sharding import make_mesh

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H200"
"""
"""XLA's `GpuTargetConfigProto`."""

COLLECTIVES = re.compile(
    r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)

MOST_GROWTH = 2.5
"""Of memory when tokens double: twice if it is linear, four times if it is quadratic."""


class Program(NamedTuple):
    """Attention and its gradients.

    Attributes:
        b: rows.
        t: tokens.
        h: query heads.
        k: key heads.
        d: head width.
        features: of the mask and the logits.
        mesh: as `make_mesh` takes it, of four devices; None for one device.
        dtype: of query, key and value.
    """

    b: int
    t: int
    h: int
    k: int
    d: int
    features: tuple[str, ...] = ("causal",)
    mesh: str | None = None
    dtype: Any = jnp.bfloat16


PROGRAMS = {
    "short sets": Program(8192, 32, 8, 8, 64, ("lengths",)),
    "long": Program(4, 4096, 16, 16, 128),
    "long, float32": Program(4, 4096, 16, 16, 64, dtype=jnp.float32),
    "lengths": Program(8, 2048, 16, 16, 64, ("causal", "lengths")),
    "segments": Program(2, 8192, 16, 16, 64, ("causal", "segments")),
    "ALiBi": Program(8, 4096, 16, 16, 64, ("causal", "alibi")),
    "grouped heads": Program(2, 8192, 64, 8, 128),
    "four devices": Program(8, 4096, 16, 4, 64, ("causal", "alibi", "lengths"), "data=2,tensor=2"),
    "four devices, short sets": Program(8192, 32, 8, 8, 64, ("lengths",), "data=4"),
    "ALiBi, 16,384 tokens": Program(1, 16384, 16, 16, 64, ("causal", "alibi")),
    "ALiBi, 32,768 tokens": Program(1, 32768, 16, 16, 64, ("causal", "alibi")),
}

DOUBLED = ("ALiBi, 16,384 tokens", "ALiBi, 32,768 tokens")
"""Programs of which the second has twice the tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is written.

    Attributes:
        record: write the JSON objects to this file, too.
    """

    record: Path | None = None


def gradients(
    attend: Any,
    features: tuple[str, ...],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array,
    segments: jax.Array,
    slopes: jax.Array,
) -> Any:
    """Output and gradients."""
    mask = Mask(
        causal="causal" in features,
        query_lengths=lengths if "lengths" in features else None,
        key_lengths=lengths if "lengths" in features else None,
        query_segments=segments if "segments" in features else None,
        key_segments=segments if "segments" in features else None,
    )
    alibi_slopes = slopes if "alibi" in features else None
    attend = functools.partial(attend, mask=mask, alibi_slopes=alibi_slopes)
    out, pull = jax.vjp(attend, query, key, value)
    return out, pull(out)


def compiled_for(devices: list[Any], name: str) -> dict[str, Any]:
    """What became of one program."""
    b, t, h, k, d, features, mesh_spec, dtype = PROGRAMS[name]
    if mesh_spec is None:
        mesh = make_mesh("data=1", devices[:1])
        attend = functools.partial(attention, implementation="triton")
    else:
        mesh = make_mesh(mesh_spec, devices)
        attend = ShardedAttention(mesh, "triton")

    def array(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        axes = tuple(axis if axis in mesh.axis_names else None for axis in axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P(*axes)))

    split = ("data", None, "tensor")
    heads = array((b, t, k, d), dtype, *split)
    given = (array((b, t, h, d), dtype, *split), heads, heads)
    given += (array((b,), jnp.int32, "data"), array((b, t), jnp.int32, "data"))
    given += (array((h,), jnp.float32),)
    start = time.perf_counter()
    try:
        program = functools.partial(gradients, attend, features)
        compiled = jax.jit(program).lower(*given).compile()
    except Exception as error:  # A refusal of the compiler is a result here.
        return {"name": name, "error": f"{type(error).__name__}: {error}"}
    text = compiled.as_text() or ""
    collectives = dict(Counter(COLLECTIVES.findall(text)))
    found = {
        "name": name,
        "seconds": round(time.perf_counter() - start, 2),
        "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
        "kernels": text.count('custom_call_target="triton_kernel_call"'),
        "collectives": collectives,
    }
    return found | ({"error": "a device asks others for arrays"} if collectives else {})


def compile_all() -> Iterator[dict[str, Any]]:
    """All programs, then how memory grew between those of which one has twice the tokens."""
    devices = topologies.get_topology_desc(
        "h200", "cuda", target_config=H200, topology="1x1x4"
    ).devices
    temporary_bytes = {}
    for name in PROGRAMS:
        found = compiled_for(list(devices), name)
        temporary_bytes[name] = found.get("temporary_bytes")
        yield found
    before, after = (temporary_bytes[name] for name in DOUBLED)
    found = {"name": "temporary bytes of tokens, and of twice as many", "of": [before, after]}
    linear = None not in (before, after) and after <= MOST_GROWTH * before
    yield found | ({} if linear else {"error": f"grow to more than {MOST_GROWTH} times"})


def main(flags: Flags) -> int:
    """Exit code: 0 if all is well, 1 if not, 2 if there is no compiler."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        print(
            "gpu_compile: jax-cuda13-plugin is not installed: pip install 'jax[cuda13-local]'",
            file=sys.stderr,
        )
        return 2
    results = []
    for result in compile_all():
        results.append(result)
        print(json.dumps(result), flush=True)
    if flags.record is not None:
        head = make_record(command_line("benchmarks.gpu_compile", flags))
        write_lines(flags.record, [head, *results])
    return 1 if any("error" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
