"""Parameters of a checkpoint, read from memory-mapped files straight onto a mesh's shards."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from recipe_jax.functional import Params, PureModule, flat_params, nested_params
from recipe_jax.huggingface.checkpoint_tensors import StoredTensor, read_block
from recipe_jax.huggingface.folder_files import ModelFolderError
from recipe_jax.huggingface.tensor_layouts import Layout
from recipe_jax.sharding import Mesh, make_mesh, param_shardings


def check_tensors(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    expected: Iterable[tuple[str, tuple[int, ...]]],
) -> None:
    """Refuse a tensor that is missing, of another shape or not part of the model.

    Args:
        folder: for messages.
        tensors: that there are, by the names that are expected.
        expected: name and shape of each.

    Raises:
        ModelFolderError: names the tensor.
    """
    others = set(tensors)
    # One by one, to stop at the first: config.json may ask for more layers than memory holds.
    for name, shape in expected:
        others.discard(name)
        if name not in tensors:
            raise ModelFolderError(
                f"{folder}: tensor {name!r} is missing, config.json asks for {list(shape)}"
            )
        if tensors[name].shape != shape:
            found = list(tensors[name].shape)
            raise ModelFolderError(
                f"{tensors[name].file}: tensor {tensors[name].name!r} has the shape {found}, "
                f"config.json asks for {list(shape)}"
            )
    for name in sorted(others):
        raise ModelFolderError(
            f"{tensors[name].file}: tensor {tensors[name].name!r} is not part of the model in "
            "config.json"
        )


def read_parameters(
    fn: PureModule[Any],
    tensors: Mapping[str, StoredTensor],
    layouts: Mapping[tuple[str, ...], Layout],
    *,
    mesh: Mesh | None,
    param_dtype: str | None,
) -> Params:
    """The parameters of a module, of which each device reads its part of each tensor.

    Args:
        fn: the module.
        tensors: checked by `check_tensors`.
        layouts: path of a parameter -> its place in the checkpoint.
        mesh: where the parameters go, by the default rules; one device if None.
        param_dtype: of the parameters; as stored if None.

    Raises:
        ModelFolderError: values that are not finite.
    """
    mesh = make_mesh("data=1", jax.devices()[:1]) if mesh is None else mesh
    shardings = flat_params(param_shardings(fn.axes, fn.shapes, mesh))
    params: dict[tuple[Any, ...], jax.Array] = {}
    for path, leaf in flat_params(fn.shapes).items():
        layout = layouts[path]
        stored = tensors[layout.tensor.format(layer=0)].dtype
        dtype = stored if param_dtype is None else jax.numpy.dtype(param_dtype)
        read = functools.partial(_read_parameter, tensors, layout, leaf.shape, dtype)
        params[path] = jax.make_array_from_callback(leaf.shape, shardings[path], read)
    return nested_params(params)


def _read_parameter(
    tensors: Mapping[str, StoredTensor],
    layout: Layout,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    index: tuple[slice, ...] | None,
) -> np.ndarray:
    """The block of a parameter that one device holds; all of it without an index."""
    index = (slice(None),) * len(shape) if index is None else index
    sizes = tuple(len(range(*cut.indices(size))) for cut, size in zip(index, shape, strict=True))
    if not layout.per_layer:
        where = layout.their_slice(index, shape)
        block = read_block(tensors[layout.tensor], where)
        return np.ascontiguousarray(layout.from_theirs(block, sizes), dtype)
    block = np.empty(sizes, dtype)
    where = layout.their_slice(index[1:], shape[1:])
    for place, layer in enumerate(range(*index[0].indices(shape[0]))):
        tensor = read_block(tensors[layout.tensor.format(layer=layer)], where)
        block[place] = layout.from_theirs(tensor, sizes[1:])
    return block
