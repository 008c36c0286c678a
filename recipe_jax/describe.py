"""A table of a model's parameters: names, shapes, dtypes, where they lie and how they are split."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recipe_jax.functional import flat_params, path_name

_COLUMNS = ("parameter", "shape", "dtype", "numbers", "devices", "sharding")


class ParameterRow(NamedTuple):
    """What is known of one parameter.

    Attributes:
        name: path from the root, with slashes.
        shape: of the whole array.
        dtype: its name.
        size: how many numbers it holds.
        devices: such as `8 x cpu`; empty for a shape without an array.
        sharding: mesh axis of each dimension, `-` for none; empty for a shape without an array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    devices: str
    sharding: str


def parameter_rows(params: Mapping[Any, Any]) -> list[ParameterRow]:
    """One row per parameter, in the order of the nested dict.

    Args:
        params: parameters, or shapes such as `fn.shapes`.
    """
    return [
        ParameterRow(
            path_name(path),
            tuple(leaf.shape),
            str(np.dtype(leaf.dtype)),
            math.prod(leaf.shape),
            *_place(leaf),
        )
        for path, leaf in flat_params(params).items()
    ]


def describe(params: Mapping[Any, Any]) -> str:
    """A table for people, with a last line of totals.

    Args:
        params: parameters, or shapes such as `fn.shapes`.
    """
    rows = parameter_rows(params)
    num_bytes = sum(row.size * np.dtype(row.dtype).itemsize for row in rows)
    cells = [
        (row.name, _list(row.shape), row.dtype, f"{row.size:,}", row.devices, row.sharding)
        for row in rows
    ]
    lines = _aligned([_COLUMNS, *cells])
    total = sum(row.size for row in rows)
    lines.append(f"{total:,} numbers in {len(rows)} parameters, {num_bytes / 1e6:,.2f} MB")
    return "\n".join(lines)


def _place(leaf: Any) -> tuple[str, str]:
    """Devices and partition of an array; nothing of numpy's and of mere shapes."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return "", ""
    devices = sorted(sharding.device_set, key=lambda device: device.id)
    spec = getattr(sharding, "spec", ())
    axes = [spec[i] if i < len(spec) else None for i in range(len(leaf.shape))]
    split = [axis if isinstance(axis, str) else "+".join(axis) if axis else "-" for axis in axes]
    return f"{len(devices)} x {devices[0].platform}", ", ".join(split)


def _list(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells padded to their columns; a rule under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
