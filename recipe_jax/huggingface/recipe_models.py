"""Recipe models as folders: with their foods and the molecules they were trained with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from recipe_jax.batches import Molecules
from recipe_jax.functional import Params, PureModule
from recipe_jax.huggingface.folder_files import ModelFolderError
from recipe_jax.huggingface.model_folder import read_module, save_module
from recipe_jax.huggingface.registry import RECIPE_MODELS
from recipe_jax.huggingface.stored_parameters import Precision


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

    Args:
        folder: created if missing.
        cfg: a configuration of one of the recipe models.
        params: its parameters.
        foods: the vocabulary.
        molecules: the frozen input the model was trained with.
        card: the model card, in Markdown.
        precision: of the stored parameters; see `save_module`.

    Raises:
        ModelFolderError: a file that could not be written, such as on a full disk.
    """
    save_module(
        folder,
        cfg=cfg,
        params=params,
        card=card,
        precision=precision,
        config={"foods": list(foods)},
        tables={_table(name): np.asarray(array) for name, array in molecules._asdict().items()},
    )


def load_model(folder: Path) -> LoadedModel:
    """Read a model folder, checking every name, shape and dtype before anything is used.

    Raises:
        ModelFolderError: a missing, corrupted or foreign file, or a tensor that does not fit.
    """
    tables = {_table(name): _shape_of(name) for name in Molecules._fields}
    found, arrays = read_module(folder, tables, known=RECIPE_MODELS)
    path, foods = folder / "config.json", found.config.get("foods")
    if foods is None:
        raise ModelFolderError(f"{path}: key 'foods' is missing")
    v = found.cfg.embedding.num_foods
    if len(foods) != v or len(set(foods)) != v:
        raise ModelFolderError(f"{path}: foods must be {v} distinct names")
    molecules = Molecules(*(jnp.asarray(arrays[_table(name)]) for name in Molecules._fields))
    return LoadedModel(*found[:4], tuple(foods), molecules)


def _table(name: str) -> str:
    return f"molecules/{name}"


def _shape_of(name: str) -> Callable[[Any], tuple[int, ...]]:
    """The shape of a table of molecules, given the model's configuration."""

    def shape(cfg: Any) -> tuple[int, ...]:
        embedding = cfg.embedding
        v, c, a = embedding.num_foods, embedding.num_components, embedding.num_compounds
        return getattr(Molecules((v, c), (v, c), (v, a), (v,)), name)

    return shape
