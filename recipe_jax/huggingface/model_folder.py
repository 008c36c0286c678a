"""Our own models as folders: `config.json`, `model.safetensors` and a model card."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save

from recipe_jax.functional import Params, PureModule, abstract, path_name
from recipe_jax.huggingface.folder_files import (
    ModelFolderError,
    open_tensors,
    read_json,
    replace_all,
)
from recipe_jax.huggingface.registry import MODELS, from_json, make_module, to_json
from recipe_jax.huggingface.stored_parameters import (
    Precision,
    check_and_widen,
    decode,
    encode,
    pack_bits,
)

FORMAT = 1
"""Of `config.json`; a reader refuses any other."""


class ModuleFolder(NamedTuple):
    """A model read from a folder.

    Attributes:
        model_type: its key in `MODELS`.
        cfg: its configuration.
        fn: its pure function.
        params: its parameters.
        config: all of `config.json`.
    """

    model_type: str
    cfg: Any
    fn: PureModule[Any]
    params: Params
    config: Mapping[str, Any]


def save_module(
    folder: Path,
    *,
    cfg: Any,
    params: Params,
    card: str,
    model_type: str | None = None,
    precision: Precision = "float32",
    config: Mapping[str, Any] | None = None,
    tables: Mapping[str, np.ndarray] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model folder: all of its files or none.

    Args:
        folder: created if missing.
        cfg: a configuration of one of `MODELS`.
        params: its parameters.
        card: the model card, in Markdown.
        model_type: key in `MODELS`; needed where several have this configuration.
        precision: of the stored parameters; "int8" rounds each row of a matrix to 255 steps of
            its largest entry and keeps vectors in float16.
        config: further keys of `config.json`.
        tables: further tensors; one of only zeros and ones is stored as packed bits.
        files: name -> content of further files, such as a tokenizer's.

    Raises:
        ValueError: a configuration of no model, or of several without a `model_type`.
        ModelFolderError: a file that could not be written, such as on a full disk.
    """
    fits = [name for name, (kind, _) in MODELS.items() if type(cfg) is kind]
    if model_type is None and len(fits) == 1:
        model_type = fits[0]
    if model_type not in fits:
        raise ValueError(
            f"model_type={model_type!r} of a {type(cfg).__name__} must be one of {fits}"
        )
    described = {
        "model_type": model_type,
        "format": FORMAT,
        "config": to_json(cfg),
        **(config or {}),
    }
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in _named(params).items():
        tensors |= encode(f"params/{path}", np.asarray(leaf), precision)
    for name, array in (tables or {}).items():
        tensors[name] = pack_bits(np.asarray(array, np.float32))
    # safetensors writes the buffer as it lies in memory, whatever the strides.
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    contents = {
        "README.md": card.encode(),
        "model.safetensors": save(contiguous),
        "config.json": (json.dumps(described, indent=1) + "\n").encode(),
        **(files or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_all({folder / name: data for name, data in contents.items()})


def load_module(folder: Path) -> ModuleFolder:
    """Read a model folder, checking every name, shape and dtype before anything is used.

    Raises:
        ModelFolderError: a missing, corrupted or foreign file, or a tensor that does not fit.
    """
    return read_module(folder, {})[0]


def read_module(
    folder: Path,
    tables: Mapping[str, Callable[[Any], tuple[int, ...]]],
    *,
    known: Mapping[str, Any] = MODELS,
) -> tuple[ModuleFolder, dict[str, np.ndarray]]:
    """As `load_module`, with further tensors.

    Args:
        folder: holds the model.
        tables: name -> function from the configuration to the shape.
        known: those of `MODELS` that are wanted.

    Raises:
        ModelFolderError: as there.
    """
    path = folder / "config.json"
    config = _read_config(path, known)
    model_type = config["model_type"]
    try:
        cfg = from_json(MODELS[model_type][0], config["config"])
        fn, shapes = abstract(lambda: make_module(model_type, cfg))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelFolderError(f"{path}: config: {' '.join(str(error).split())}") from error
    path = folder / "model.safetensors"
    with open_tensors(path) as file:
        tensors = decode({name: file.get_tensor(name) for name in file.keys()})
    expected = {f"params/{name}": tuple(leaf.shape) for name, leaf in _named(shapes).items()}
    wanted = {name: shape_of(cfg) for name, shape_of in tables.items()}
    check_and_widen(path, tensors, expected | wanted)
    leaves = [jax.numpy.asarray(tensors[f"params/{name}"]) for name in _named(shapes)]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    found = ModuleFolder(model_type, cfg, fn, params, config)
    return found, {name: tensors[name] for name in wanted}


def _read_config(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    config = read_json(path)
    found = config.get("model_type")
    if not isinstance(found, str) or found not in known:
        raise ModelFolderError(f"{path}: model_type={found!r} must be one of {sorted(known)}")
    if config.get("format") != FORMAT:
        raise ModelFolderError(f"{path}: format={config.get('format')!r} must be {FORMAT}")
    if "config" not in config:
        raise ModelFolderError(f"{path}: key 'config' is missing")
    if not isinstance(config["config"], dict):
        raise ModelFolderError(f"{path}: config={config['config']!r} must be an object")
    return config


def _named(tree: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(tuple(key.key for key in path)): leaf for path, leaf in leaves}
