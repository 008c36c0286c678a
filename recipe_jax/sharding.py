"""Where arrays live: the device mesh, logical axes mapped to it, and the start of many processes.

Layers name logical axes ("embed", "heads"); a table maps them to mesh axes ("fsdp", "tensor");
JAX's compiler moves the data.  Nothing else in the project imports `jax.sharding`.
"""

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
"""Copies of the model; parameters split and gathered when used; matrices split for good."""

Rules: TypeAlias = Mapping[str, str | None]
Tree: TypeAlias = Any
BatchT = TypeVar("BatchT")

DEFAULT_RULES: Rules = MappingProxyType(
    {
        "embed": "fsdp",
        "heads": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
        "vocab": "tensor",
        "head_dim": None,
        "codes": None,
        "levels": None,
        "layers": None,
        "components": None,
        "models": None,
    }
)
"""Logical axis -> mesh axis; None is never sharded."""

BATCH_AXES = ("data", "fsdp")
"""A batch is split over both: every device of an fsdp group sees its own examples."""


def make_mesh(spec: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Build the mesh that `--mesh` names, such as `data=2,fsdp=4`.

    Axes are of the type Auto: the compiler places what the step does not pin.

    Args:
        spec: comma-separated `axis=size`; axes of `MESH_AXES` that are absent have size 1.
        devices: what to arrange; by default every device of every process.

    Raises:
        ValueError: if `spec` cannot be read or does not use every device exactly once.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _parse_mesh(spec)
    product = math.prod(sizes.values())
    if product != len(devices):
        raise ValueError(
            f"--mesh {spec!r} takes {product} device(s), but there are {len(devices)}: "
            "the product of its sizes must equal the number of devices"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices,
    )


def param_shardings(axes: Tree, shapes: Tree, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Tree:
    """The sharding of every parameter.

    A dimension is replicated, not refused, where its rule is None, where its mesh axis is absent or
    already used by an earlier dimension, and where its size is not a multiple of the mesh axis.

    Args:
        axes: nested dict with a tuple of logical axis names per parameter, as `fn.axes`.
        shapes: the same dict with anything that has a `shape`, as `fn.shapes`.
        mesh: the devices.
        rules: logical axis -> mesh axis.

    Raises:
        ValueError: if a logical axis has no rule, or a rule names no axis of any mesh.
    """
    for mesh_axis in set(rules.values()) - {None, *MESH_AXES, *mesh.axis_names}:
        raise ValueError(f"sharding rules name mesh axis {mesh_axis!r}; a mesh has {MESH_AXES}")

    def sharding(path: Any, shape: Any, names: tuple[str | None, ...]) -> NamedSharding:
        for name in names:
            if name is not None and name not in rules:
                raise ValueError(
                    f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')} has the "
                    f"logical axis {name!r}, which the sharding rules do not know; "
                    f"they know {sorted(rules)}"
                )
        return NamedSharding(mesh, _partition(names, shape.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, shapes, axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension of a batch is split over the data and the fsdp axis."""
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    return NamedSharding(mesh, PartitionSpec(axes) if axes else PartitionSpec())


def shard_batch(batch: BatchT, mesh: Mesh) -> BatchT:
    """Put a batch of numpy arrays on the devices of the mesh.

    Each process passes its own examples: with `n` processes of `b` examples the arrays that come
    back have `n b`.  An array without dimensions is replicated.

    Raises:
        ValueError: if the first dimension cannot be split evenly.
    """
    sharding = batch_sharding(mesh)
    num_shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        if array.ndim == 0:
            return jax.make_array_from_process_local_data(replicated(mesh), array)
        num_examples = array.shape[0] * jax.process_count()
        if num_examples % num_shards:
            raise ValueError(
                f"a batch of {num_examples} examples cannot be split over {num_shards} devices "
                f"(mesh {_describe(mesh)}): use a multiple of {num_shards}"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, batch)


def bytes_per_device(shapes: Tree, shardings: Tree) -> int:
    """Memory that one device needs for arrays of these shapes and shardings."""

    def size(shape: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(shape.shape)) * np.dtype(shape.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, shapes, shardings)))


def initialize_distributed(environment: Mapping[str, str] = os.environ) -> int:
    """Join the other processes of this run, before the first use of a device.

    By hand, on every process: `JAX_COORDINATOR_ADDRESS=host:port`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`.  Under SLURM (`srun`) nothing needs to be set.  In an indexed Kubernetes job
    nothing either where the package `kubernetes` is installed; otherwise the first two, the index
    of the job being the process.  Anywhere else this does nothing.

    Returns:
        The number of processes.

    Raises:
        ValueError: if a variable is missing or no number.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address:
        index = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
        num_processes = _read_int(environment, "JAX_NUM_PROCESSES", at_least=1)
        process = _read_int(environment, index, at_least=0)
        if num_processes > 1:
            jax.distributed.initialize(address, num_processes, process)
    elif "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        jax.distributed.initialize()
    elif "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if importlib.util.find_spec("kubernetes") is None:
            raise ValueError(
                "an indexed Kubernetes job without the package `kubernetes`: install it, or set "
                "JAX_COORDINATOR_ADDRESS=host:port and JAX_NUM_PROCESSES"
            )
        jax.distributed.initialize()
    return jax.process_count()


def is_first_process() -> bool:
    """Whether this is the one that writes what is written once."""
    return jax.process_index() == 0


def gather_arrays(tree: Tree) -> Tree:
    """Every array whole, on one device of each process; all of them must call.

    What a single process holds already is returned as it is, sharded or not.
    """
    if jax.process_count() == 1:
        return tree
    whole = jax.tree.map(lambda array: NamedSharding(array.sharding.mesh, PartitionSpec()), tree)
    copies = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), copies)


def process_share(batch: BatchT) -> BatchT:
    """The rows of a batch, the same on every process, that this one passes to `shard_batch`.

    Raises:
        ValueError: if the rows cannot be shared out evenly.
    """
    count, index = jax.process_count(), jax.process_index()

    def share(array: Any) -> Any:
        if array.shape[0] % count:
            raise ValueError(
                f"a batch of {array.shape[0]} examples cannot be shared by {count} processes"
            )
        size = array.shape[0] // count
        return array[index * size : (index + 1) * size]

    return batch if count == 1 else jax.tree.map(share, batch)


def gather_json(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes; all of them must call.

    Args:
        value: anything that JSON can hold.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(encoded.size)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: encoded.size] = encoded
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [
        json.loads(np.asarray(row)[:length].tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]


def _parse_mesh(spec: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in spec.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in MESH_AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"--mesh {spec!r}: cannot read {part.strip()!r}; write each of {MESH_AXES} at most "
                "once as axis=size with a size of at least 1, such as data=2,fsdp=4"
            )
        sizes[axis] = int(size)
    return sizes


def _partition(
    names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> PartitionSpec:
    used: set[str | None] = set()
    partition: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        mesh_axis = None if name is None else rules[name]
        if mesh_axis in mesh.shape and mesh_axis not in used and size % mesh.shape[mesh_axis] == 0:
            used.add(mesh_axis)
            partition.append(mesh_axis)
        else:
            partition.append(None)
    return PartitionSpec(*partition)


def _describe(mesh: Mesh) -> str:
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def _read_int(environment: Mapping[str, str], name: str, *, at_least: int) -> int:
    value = environment.get(name, "")
    if not value.isdecimal() or int(value) < at_least:
        raise ValueError(
            f"{name}={value!r} must be a whole number of at least {at_least} where "
            "JAX_COORDINATOR_ADDRESS is set"
        )
    return int(value)
