"""Tensors of a checkpoint in one or several memory-mapped files; written shard by shard."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from recipe_jax.huggingface.folder_files import (
    ModelFolderError,
    open_tensors,
    read_json,
    replace_all,
)

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: Mapping[str, Any] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Names of the dtypes that a checkpoint may hold."""


class StoredTensor(NamedTuple):
    """What is known of a tensor before it is read.

    Attributes:
        file: where it lies.
        name: under which it lies there.
        shape: its shape.
        dtype: its dtype.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def find_tensors(folder: Path, *, skip: tuple[str, ...] = ()) -> dict[str, StoredTensor]:
    """Every tensor of `model.safetensors`, or of the files that the index names.

    Args:
        folder: of the checkpoint.
        skip: last parts of the names of tensors that are not looked at.

    Raises:
        ModelFolderError: a missing or truncated file, an index that does not fit its files, or a
            tensor of another dtype than those of `DTYPES`.
    """
    if (folder / INDEX).exists() and not (folder / ONE_FILE).exists():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict):
            raise ModelFolderError(f"{folder / INDEX}: key 'weight_map' must be an object")
        for name in named.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise ModelFolderError(f"{folder / INDEX}: {name!r} must be a file of this folder")
        tensors: dict[str, StoredTensor] = {}
        for file in sorted(set(named.values())):
            found = _headers(folder / file, skip)
            for name in found:
                if named.get(name) != file:
                    place = f"in {named[name]}" if name in named else "nowhere"
                    raise ModelFolderError(
                        f"{folder / file}: holds tensor {name!r}, which {INDEX} says is {place}"
                    )
            tensors |= found
        for name in sorted(set(named) - set(tensors)):
            if not name.endswith(skip):
                raise ModelFolderError(f"{folder / INDEX}: tensor {name!r} is not in {named[name]}")
        return tensors
    return _headers(folder / ONE_FILE, skip)


def read_block(tensor: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
    """A block of a tensor; its file is mapped only as long as it is read.

    Pages of a mapped file count as this process's memory until it is closed.

    Raises:
        ModelFolderError: values that are not finite.
    """
    with open_tensors(tensor.file) as file:
        block = file.get_slice(tensor.name)[index]
    if not np.isfinite(block).all():
        raise ModelFolderError(
            f"{tensor.file}: tensor {tensor.name!r} holds values that are not finite"
        )
    return block


class TensorToWrite(NamedTuple):
    """A tensor that is made only when it is written.

    Attributes:
        shape: its shape.
        make: gives its values.
    """

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def write_tensors(
    folder: Path,
    tensors: Mapping[str, TensorToWrite],
    *,
    dtype: str,
    max_file_bytes: int,
    others: Mapping[str, bytes],
) -> None:
    """Write tensors, with an index if they take several files, and other files: all or none.

    Args:
        folder: created if missing; tensors of an earlier model there are removed.
        tensors: name -> shape and values; each is made, cast and written by itself.
        dtype: a key of `DTYPES`.
        max_file_bytes: a file is closed before it would grow beyond this.
        others: name -> content of further files.

    Raises:
        ModelFolderError: a file that could not be written.
    """
    itemsize = DTYPES[dtype].itemsize
    groups: list[dict[str, TensorToWrite]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        num_bytes = math.prod(tensor.shape) * itemsize
        if groups[-1] and size + num_bytes > max_file_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += num_bytes
    names = [
        ONE_FILE if len(groups) == 1 else f"model-{i + 1:05}-of-{len(groups):05}.safetensors"
        for i in range(len(groups))
    ]
    files: dict[Path, bytes | Callable[[IO[bytes]], None]] = {
        folder / name: _writer(group, dtype) for name, group in zip(names, groups, strict=True)
    }
    if len(groups) > 1:
        total = sum(math.prod(tensor.shape) for tensor in tensors.values()) * itemsize
        place = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        index = {"metadata": {"total_size": total}, "weight_map": place}
        files[folder / INDEX] = _encode(index)
    files |= {folder / name: content for name, content in others.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFolderError(f"{folder}: could not be made ({error.strerror})") from error
    replace_all(files)
    for path in itertools.chain(folder.glob("model*.safetensors"), [folder / INDEX]):
        if path not in files:
            path.unlink(missing_ok=True)


def _headers(path: Path, skip: tuple[str, ...]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    with open_tensors(path) as file:
        for name in file.keys():
            if name.endswith(skip):
                continue
            header = file.get_slice(name)
            dtype = header.get_dtype()
            if dtype not in DTYPES:
                raise ModelFolderError(
                    f"{path}: tensor {name!r} has dtype {dtype}, must be one of {sorted(DTYPES)}"
                )
            found[name] = StoredTensor(path, name, tuple(header.get_shape()), DTYPES[dtype])
    return found


def _writer(tensors: Mapping[str, TensorToWrite], dtype: str) -> Callable[[IO[bytes]], None]:
    """What writes one file: the header's length, the header, then tensor after tensor."""
    kind = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    sizes: Iterable[int] = (math.prod(t.shape) * kind.itemsize for t in tensors.values())
    ends = list(itertools.accumulate(sizes, initial=0))
    for (name, tensor), start, stop in zip(tensors.items(), ends, ends[1:], strict=False):
        offsets = [start, stop]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in tensors.items():
            values = np.ascontiguousarray(tensor.make(), kind)
            if values.shape != tensor.shape:
                raise ValueError(f"{name}: made {values.shape}, announced {tensor.shape}")
            file.write(values.tobytes())

    return write


def _encode(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
