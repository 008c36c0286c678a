"""Parameters as they are stored: in full, halved, or rounded to eight bits."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from recipe_jax.huggingface.folder_files import ModelFolderError

_SCALE = ".scale"

Precision: TypeAlias = Literal["float32", "float16", "int8"]


def encode(name: str, values: np.ndarray, precision: Precision) -> dict[str, np.ndarray]:
    """A parameter as it is stored: with a scale per row where it is rounded to eight bits."""
    if precision != "int8":
        return {name: values.astype(precision)}
    if values.ndim < 2:
        return {name: values.astype(np.float16)}
    largest = np.abs(values).max(axis=-1, keepdims=True)
    scale = np.maximum(largest / 127, np.finfo(np.float16).tiny).astype(np.float16)
    rounded = np.round(values / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return {name: rounded, f"{name}{_SCALE}": scale}


def decode(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of eight bits times their scale; everything else as it is."""
    whole = {name: values for name, values in tensors.items() if not name.endswith(_SCALE)}
    for name, values in whole.items():
        scale = tensors.get(f"{name}{_SCALE}")
        if values.dtype == np.int8 and scale is not None and scale.ndim == values.ndim:
            whole[name] = values.astype(np.float32) * scale.astype(np.float32)
    return whole


def pack_bits(values: np.ndarray) -> np.ndarray:
    """Zeros and ones as bits; anything else as it is."""
    return np.packbits(values != 0) if np.isin(values, (0, 1)).all() else values


def _unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of packing; bits of another number are returned as they are, to be refused."""
    count = math.prod(shape)
    if bits.shape != (-(-count // 8),):
        return bits
    return np.unpackbits(bits, count=count).reshape(shape).astype(np.float32)


def check_and_widen(
    path: Path, tensors: dict[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse what does not fit, and bring the rest to float32, in place.

    Args:
        path: of the file, for messages.
        tensors: decoded.
        expected: name -> shape.

    Raises:
        ModelFolderError: names the tensor.
    """
    for name in sorted(set(tensors) ^ set(expected)):
        problem = "is missing" if name in expected else "is not part of this model"
        raise ModelFolderError(f"{path}: tensor {name!r} {problem}")
    for name, shape in expected.items():
        found = tensors[name]
        if found.dtype == np.uint8 and not name.startswith("params/"):
            found = _unpacked(found, shape)
        if found.shape != shape or found.dtype not in (np.float32, np.float16):
            raise ModelFolderError(
                f"{path}: tensor {name!r} is {found.dtype}{list(found.shape)}, "
                f"must be float32{list(shape)} or float16"
            )
        if not np.isfinite(found).all():
            raise ModelFolderError(f"{path}: tensor {name!r} holds values that are not finite")
        tensors[name] = found.astype(np.float32)
