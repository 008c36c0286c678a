"""Models as Hugging Face folders: `config.json`, `model.safetensors` and a model card.

A folder holds all that a model needs to be used: its configuration, its parameters, and the frozen
tables it was trained with (a recipe model's foods and their molecules).
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recipe_jax.batches import Molecules
from recipe_jax.functional import Params, PureModule, abstract, path_name
from recipe_jax.layers import positions
from recipe_jax.models.amounts import AmountsConfig, AmountsModel
from recipe_jax.models.amounts_ensemble import AmountsEnsemble, AmountsEnsembleConfig
from recipe_jax.models.autoregressive_amounts import (
    AutoregressiveAmounts,
    AutoregressiveAmountsConfig,
)
from recipe_jax.models.encoder_decoder_generator import (
    EncoderDecoderConfig,
    EncoderDecoderGenerator,
)
from recipe_jax.models.ingredient_generator import GeneratorConfig, IngredientGenerator
from recipe_jax.models.joint_recipes import JointRecipes, JointRecipesConfig
from recipe_jax.models.masked_set_generator import MaskedSetConfig, MaskedSetGenerator

_SCALE = ".scale"

Precision: TypeAlias = Literal["float32", "float16", "int8"]

FORMAT = 1
"""Of `config.json`; a reader refuses any other."""

MODELS: Mapping[str, tuple[type, Callable[..., nnx.Module]]] = types.MappingProxyType(
    {
        "ingredient_generator": (GeneratorConfig, IngredientGenerator),
        "encoder_decoder_generator": (EncoderDecoderConfig, EncoderDecoderGenerator),
        "masked_set_generator": (MaskedSetConfig, MaskedSetGenerator),
        "joint_recipes": (JointRecipesConfig, JointRecipes),
        "amounts": (AmountsConfig, AmountsModel),
        "amounts_ensemble": (AmountsEnsembleConfig, AmountsEnsemble),
        "autoregressive_amounts": (AutoregressiveAmountsConfig, AutoregressiveAmounts),
    }
)
"""`model_type` in `config.json` -> configuration and module."""

VALUES = {
    cls.__name__: cls
    for cls in (
        positions.NoPositions,
        positions.Sinusoidal,
        positions.Learned,
        positions.Rope,
        positions.LinearScaling,
        positions.Llama3Scaling,
        positions.Alibi,
    )
}
"""Frozen values that a configuration may hold where any of several types fits."""


class ModelFolderError(ValueError):
    """A folder is no model of ours.  The message is one line: folder, key, value, rule."""


class LoadedModel(NamedTuple):
    """A model read from a folder.

    Attributes:
        model_type: its key in `MODELS`.
        cfg: its configuration.
        fn: its pure function.
        params: its parameters.
        foods: the vocabulary, in the order of the model's indices.
        molecules: the foods' molecules, the model's frozen input.
    """

    model_type: str
    cfg: Any
    fn: PureModule[Any]
    params: Params
    foods: tuple[str, ...]
    molecules: Molecules


def make_module(model_type: str, cfg: Any, *, seed: int = 0, **options: Any) -> nnx.Module:
    """Build the module of a configuration.

    Args:
        model_type: key in `MODELS`.
        cfg: its configuration.
        seed: of the initial parameters.
        options: passed to the module, such as `attend`.
    """
    return MODELS[model_type][1](cfg, rngs=nnx.Rngs(seed), **options)


def save_model(
    folder: Path,
    *,
    cfg: Any,
    params: Params,
    foods: Sequence[str],
    molecules: Molecules,
    card: str,
    precision: Precision = "float32",
) -> None:
    """Write a model folder: all of its files or none.

    What is only zero or one is stored as packed bits.

    Args:
        folder: created if missing.
        cfg: a configuration of one of `MODELS`.
        params: its parameters.
        foods: the vocabulary.
        molecules: the frozen input the model was trained with.
        card: the model card, in Markdown.
        precision: of the stored parameters; "int8" rounds each row of a matrix to 255 steps of
            its largest entry and keeps vectors in float16.

    Raises:
        ModelFolderError: a file that could not be written, such as on a full disk.
    """
    model_type = next(name for name, (kind, _) in MODELS.items() if type(cfg) is kind)
    config = {
        "model_type": model_type,
        "format": FORMAT,
        "config": to_json(cfg),
        "foods": list(foods),
    }
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in _named(params).items():
        tensors |= _stored(f"params/{path}", np.asarray(leaf), precision)
    for name, array in molecules._asdict().items():
        tensors[f"molecules/{name}"] = _packed(np.asarray(array, np.float32))
    # safetensors writes the buffer as it lies in memory, whatever the strides.
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    files = {
        "README.md": card.encode(),
        "model.safetensors": save(contiguous),
        "config.json": (json.dumps(config, indent=1) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _replace_all({folder / name: data for name, data in files.items()})


def load_model(folder: Path) -> LoadedModel:
    """Read a model folder, checking every name, shape and dtype before anything is used.

    Raises:
        ModelFolderError: a missing, corrupted or foreign file, or a tensor that does not fit.
    """
    config = _read_config(folder / "config.json")
    model_type = config["model_type"]
    kind, _ = MODELS[model_type]
    try:
        cfg = from_json(kind, config["config"])
    except (TypeError, ValueError, KeyError) as error:
        raise ModelFolderError(f"{folder / 'config.json'}: config: {error}") from error
    fn, shapes = abstract(lambda: make_module(model_type, cfg))
    tensors = _widened(_read_tensors(folder / "model.safetensors"))
    expected = {f"params/{path}": tuple(leaf.shape) for path, leaf in _named(shapes).items()}
    embedding = cfg.embedding
    v, c, a = embedding.num_foods, embedding.num_components, embedding.num_compounds
    wanted = Molecules((v, c), (v, c), (v, a), (v,))
    expected |= {f"molecules/{name}": shape for name, shape in wanted._asdict().items()}
    _check_and_widen(folder / "model.safetensors", tensors, expected)
    foods = tuple(config["foods"])
    if len(foods) != v or len(set(foods)) != v:
        raise ModelFolderError(f"{folder / 'config.json'}: foods must be {v} distinct names")
    leaves = [jax.numpy.asarray(tensors[f"params/{path}"]) for path in _named(shapes)]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    arrays = (jax.numpy.asarray(tensors[f"molecules/{name}"]) for name in Molecules._fields)
    return LoadedModel(model_type, cfg, fn, params, foods, Molecules(*arrays))


def to_json(value: Any) -> Any:
    """A frozen dataclass of numbers, strings, tuples and dataclasses as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        name = type(value).__name__
        return {"type": name, **fields} if name in VALUES else fields
    return list(value) if isinstance(value, tuple) else value


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json` for a value of type `kind`.

    Raises:
        ValueError: an unknown type or key, named.
    """
    if isinstance(value, dict) and ("type" in value or dataclasses.is_dataclass(kind)):
        if value.get("type", "NoPositions") not in VALUES:
            raise ValueError(f"type={value['type']!r} must be one of {sorted(VALUES)}")
        kind = VALUES[value["type"]] if "type" in value else kind
        hints = typing.get_type_hints(kind)
        given = {name: item for name, item in value.items() if name != "type"}
        unknown = sorted(set(given) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}")
        return kind(**{name: from_json(hints[name], item) for name, item in given.items()})
    return tuple(value) if isinstance(value, list) else value


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelFolderError(f"{path}: no such file; it is no model folder") from None
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("model_type") not in MODELS:
        found = config.get("model_type") if isinstance(config, dict) else None
        raise ModelFolderError(f"{path}: model_type={found!r} must be one of {sorted(MODELS)}")
    if config.get("format") != FORMAT:
        raise ModelFolderError(f"{path}: format={config.get('format')!r} must be {FORMAT}")
    missing = [key for key in ("config", "foods") if key not in config]
    if missing:
        raise ModelFolderError(f"{path}: key {missing[0]!r} is missing")
    return config


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"{path}: not a whole safetensors file ({reason})") from error


def _check_and_widen(
    path: Path, tensors: dict[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse what does not fit, and bring the rest to float32, in place."""
    for name in sorted(set(tensors) ^ set(expected)):
        problem = "is missing" if name in expected else "is not part of this model"
        raise ModelFolderError(f"{path}: tensor {name!r} {problem}")
    for name, shape in expected.items():
        found = tensors[name]
        if found.dtype == np.uint8 and name.startswith("molecules/"):
            found = _unpacked(found, shape)
        if found.shape != shape or found.dtype not in (np.float32, np.float16):
            raise ModelFolderError(
                f"{path}: tensor {name!r} is {found.dtype}{list(found.shape)}, "
                f"must be float32{list(shape)} or float16"
            )
        if not np.isfinite(found).all():
            raise ModelFolderError(f"{path}: tensor {name!r} holds values that are not finite")
        tensors[name] = found.astype(np.float32)


def _stored(name: str, values: np.ndarray, precision: Precision) -> dict[str, np.ndarray]:
    """A parameter as it is stored: with a scale per row where it is rounded to eight bits."""
    if precision != "int8":
        return {name: values.astype(precision)}
    if values.ndim < 2:
        return {name: values.astype(np.float16)}
    largest = np.abs(values).max(axis=-1, keepdims=True)
    scale = np.maximum(largest / 127, np.finfo(np.float16).tiny).astype(np.float16)
    rounded = np.round(values / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return {name: rounded, f"{name}{_SCALE}": scale}


def _widened(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of eight bits times their scale; everything else as it is."""
    whole = {name: values for name, values in tensors.items() if not name.endswith(_SCALE)}
    for name, values in whole.items():
        scale = tensors.get(f"{name}{_SCALE}")
        if values.dtype == np.int8 and scale is not None and scale.ndim == values.ndim:
            whole[name] = values.astype(np.float32) * scale.astype(np.float32)
    return whole


def _packed(values: np.ndarray) -> np.ndarray:
    """Zeros and ones as bits; anything else as it is."""
    return np.packbits(values != 0) if np.isin(values, (0, 1)).all() else values


def _unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of packing; bits of another number are returned as they are, to be refused."""
    count = math.prod(shape)
    if bits.shape != (-(-count // 8),):
        return bits
    return np.unpackbits(bits, count=count).reshape(shape).astype(np.float32)


def _named(tree: Params) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(tuple(key.key for key in path)): leaf for path, leaf in leaves}


def _replace_all(files: Mapping[Path, bytes]) -> None:
    """Replace all files or none: every one lies whole beside its place before the first moves."""
    beside = {path: path.with_name(f".{path.name}.tmp") for path in files}
    for path, data in files.items():
        try:
            beside[path].write_bytes(data)
        except OSError as error:
            for temporary in beside.values():
                temporary.unlink(missing_ok=True)
            reason = f"{path}: could not be written ({error.strerror or error})"
            raise ModelFolderError(f"{reason}; the folder is as it was") from error
    for path, temporary in beside.items():
        temporary.replace(path)
