"""Compile the TPU kernels of attention for real TPUs, without one.

    pip install libtpu                # 213 MB to fetch, 684 MB installed
    python -m benchmarks.tpu_compile --topologies v5e:2x2 v6e:2x2

The compiler in libtpu refuses what the hardware lacks and what does not fit its memory, which no
interpreter finds out.  Prints a line for each program, and ends with 1 if one was refused, with 2
if libtpu is missing.
"""

import dataclasses
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before jax starts a backend: no questions to the metadata server of a cloud machine.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding
from recipe_kernels import attention

from experiments.record import command_line, make_record, write_lines
from recipe_jax.layers.masks import Mask

SHAPES = {
    "bfloat16, width 64": (jnp.bfloat16, 2, 4096, 8, 2, 64),
    "bfloat16, width 128": (jnp.bfloat16, 2, 4096, 8, 2, 128),
    "bfloat16, width 256": (jnp.bfloat16, 2, 4096, 4, 2, 256),
    "float32, width 64": (jnp.float32, 2, 2048, 8, 8, 64),
    "float32, width 256": (jnp.float32, 2, 2048, 4, 2, 256),
    "bfloat16, few tokens": (jnp.bfloat16, 64, 32, 8, 8, 64),
}
"""Dtype, rows, tokens, query heads, key heads, head width."""

FEATURES = ("causal", "lengths", "segments", "everything")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is compiled.

    Attributes:
        topologies: the TPUs to compile for.
        record: write one JSON object a program to this file, too.
    """

    topologies: tuple[str, ...] = ("v5e:2x2", "v6e:2x2", "v5p:2x2x1", "v4:2x2x1", "tpu7x:2x2x1")
    record: Path | None = None


def masked(features: str, lengths: Any, segments: Any) -> tuple[Mask, dict[str, Any]]:
    """The mask and the options of a set of features."""
    everything = features == "everything"
    mask = Mask(
        causal=features in ("causal", "everything"),
        window=700 if everything else None,
        prefix_lengths=lengths if everything else None,
        query_lengths=lengths if features in ("lengths", "everything") else None,
        key_lengths=lengths if features in ("lengths", "everything") else None,
        query_segments=segments if features in ("segments", "everything") else None,
        key_segments=segments if features in ("segments", "everything") else None,
    )
    options = {"softcap": 20.0, "dropout_rate": 0.1} if everything else {}
    return mask, options


def gradients(
    features: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array,
    segments: jax.Array,
    slopes: jax.Array,
) -> Any:
    """Output and gradients: all three kernels."""
    mask, options = masked(features, lengths, segments)
    if features == "everything":
        options |= {"alibi_slopes": slopes, "dropout_key": jax.random.key(0)}
    attend = functools.partial(attention, mask=mask, implementation="pallas", **options)
    out, pull = jax.vjp(attend, query, key, value)
    return out, pull(out)


def compiled_on(device: Any, shape: str, features: str) -> dict[str, Any]:
    """What became of one program."""
    dtype, b, t, h, k, d = SHAPES[shape]
    sharding = SingleDeviceSharding(device)
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    heads = array((b, t, k, d), dtype)
    given = (array((b, t, h, d), dtype), heads, heads, array((b,), jnp.int32))
    given += (array((b, t), jnp.int32), array((h,), jnp.float32))
    # While it lowers, Pallas asks for the kind of the device: an abstract mesh tells it.
    abstract = AbstractDevice(
        platform="tpu",
        device_kind=device.device_kind,
        num_cores=getattr(device, "num_cores", 1) or 1,
    )
    start = time.perf_counter()
    found = {"device": device.device_kind, "shape": shape, "features": features}
    try:
        with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("_",), abstract_device=abstract)):
            lowered = jax.jit(functools.partial(gradients, features)).lower(*given)
        compiled = lowered.compile()
    except Exception as error:  # A refusal of the compiler is a result here.
        return {**found, "error": f"{type(error).__name__}: {error}"}
    return {
        **found,
        "seconds": round(time.perf_counter() - start, 2),
        "kernels": (compiled.as_text() or "").count('custom_call_target="tpu_custom_call"'),
        "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
    }


def compile_all(flags: Flags) -> Iterator[dict[str, Any]]:
    """All programs for all TPUs."""
    for name in flags.topologies:
        device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
        for shape in SHAPES:
            for features in FEATURES:
                yield compiled_on(device, shape, features)


def main(flags: Flags) -> int:
    """Exit code: 0 if every program was compiled, 1 if not, 2 if there is no compiler."""
    if importlib.util.find_spec("libtpu") is None:
        print("tpu_compile: libtpu is not installed: pip install libtpu", file=sys.stderr)
        return 2
    results = []
    for result in compile_all(flags):
        results.append(result)
        said = result.get("error") or "{seconds} s, {kernels} kernels".format(**result)
        print(f"{result['device']}: {result['shape']}, {result['features']}: {said}", flush=True)
    if flags.record is not None:
        head = make_record(command_line("benchmarks.tpu_compile", flags))
        write_lines(flags.record, [head, *results])
    refused = sum("error" in result for result in results)
    print(f"{len(results) - refused} compiled, {refused} refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
