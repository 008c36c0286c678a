"""Trained recommenders as model folders that know their items and what they learned from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Bool
from recipe_kernels import attention

from experiments.semantic_ids.datasets import Dataset, new_items
from experiments.semantic_ids.generative_task import generative_scorer
from experiments.semantic_ids.protocol import Scorer
from experiments.semantic_ids.questions import knows_questions
from experiments.semantic_ids.sasrec_task import sasrec_scorer
from recipe_jax.functional import Params, PureModule, abstract
from recipe_jax.huggingface import ModelFolderError, load_module, make_module, save_module
from recipe_jax.semantic_ids import SemanticIds, read_ids

_NEW_ITEMS = "new_items.json"


class Recommender(NamedTuple):
    """A trained model.

    Attributes:
        model_type: its key in `recipe_jax.huggingface.MODELS`.
        fn: its pure function.
        params: its parameters.
        item_ids: an item's index is its place here.
        ids: the items' semantic IDs, of a model that generates them.
        learned_validation: whether the items left out for validation were learned from.
        is_new: whether each item was kept from training.
    """

    model_type: str
    fn: PureModule[Any]
    params: Params
    item_ids: tuple[str, ...]
    ids: SemanticIds | None
    learned_validation: bool
    is_new: Bool[np.ndarray, "n"]

    def scorer(self) -> Scorer:
        """What the protocol asks."""
        if self.ids is not None:
            return generative_scorer(self.fn, self.params, self.ids)
        return sasrec_scorer(self.fn, self.params)


def save_recommender(
    folder: Path,
    *,
    cfg: Any,
    params: Params,
    dataset: Dataset,
    learned_validation: bool,
    card: str,
    files: Mapping[str, bytes],
) -> None:
    """Write a model folder: all of its files or none.

    The hash of each of `files` goes into `config.json`.

    Raises:
        ModelFolderError: a file that could not be written, such as on a full disk.
    """
    files = {"items.json": json.dumps(dataset.item_ids).encode(), **files}
    save_module(
        folder,
        cfg=cfg,
        params=params,
        card=card,
        config={
            "learned_validation": learned_validation,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        },
        files=files,
    )


def new_items_file(item_ids: Sequence[str]) -> dict[str, bytes]:
    """The names of the items that an item split keeps from training, as a file of a model folder.

    Raises:
        DataError: there are none.
    """
    names = [item_ids[item] for item in np.flatnonzero(new_items(item_ids)).tolist()]
    return {_NEW_ITEMS: json.dumps(names).encode()}


def load_recommender(run: Path) -> Recommender:
    """Read the model of a run folder, or of a model folder.

    Raises:
        ModelFolderError: nothing there, a model without items, or items that are not its own.
    """
    folder = run if (run / "model.safetensors").is_file() else run / "model"
    found = load_module(folder)
    hashes, ids = found.config.get("sha256", {}), None
    content = read_own(folder / "items.json", hashes.get("items.json"))
    if "ids.npz" in hashes:
        read_own(folder / "ids.npz", hashes["ids.npz"])
        ids = read_ids(folder / "ids.npz")
    fn, _ = abstract(lambda: attending(found.model_type, found.cfg))
    learned = bool(found.config.get("learned_validation"))
    items = tuple(json.loads(content))
    names: frozenset[str] = frozenset()
    if _NEW_ITEMS in hashes:
        names = frozenset(json.loads(read_own(folder / _NEW_ITEMS, hashes[_NEW_ITEMS])))
    is_new = np.array([name in names for name in items], bool)
    return Recommender(found.model_type, fn, found.params, items, ids, learned, is_new)


def read_own(path: Path, sha256: str | None) -> bytes:
    """The content of a file of a model folder, which must be that of the model.

    Args:
        path: the file.
        sha256: its hash, as the model was saved with it.

    Raises:
        ModelFolderError: no such file, or another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelFolderError(f"{path}: is not the one that the model was saved with")
    return content


def attending(model_type: str, cfg: Any) -> nnx.Module:
    """The module, attending by the fastest function for the device."""
    return make_module(model_type, cfg, attend=attention)


def check_items(recommender: Recommender, dataset: Dataset, run: Path) -> None:
    """Refuse a model whose items are not the dataset's in the same order.

    Raises:
        ValueError: names the run.
    """
    if recommender.item_ids != dataset.item_ids:
        raise ValueError(
            f"{run}: the model's {len(recommender.item_ids)} items are not the {dataset.name} "
            f"data's {len(dataset.item_ids)} in the same order: take the --data and --data-seed "
            "of its training"
        )


class TrainedScorers(NamedTuple):
    """Trained models as scorers: `model_type` -> one for each seed.

    Attributes:
        of_training: those that learned from training items alone.
        of_validation: those that learned from validation items, too.
    """

    of_training: dict[str, list[Scorer]]
    of_validation: dict[str, list[Scorer]]


def load_scorers(runs: Sequence[Path], dataset: Dataset, *, may_know: bool) -> TrainedScorers:
    """The models of some runs; those of one type are taken as seeds of one training.

    Args:
        runs: run or model folders.
        dataset: whose items they must know.
        may_know: whether a model may have learned the validation items, as for a test.

    Raises:
        ValueError: a model of other items, or one that learned what it is to be asked.
        DataError: a broken file of a language model.
        ModelFolderError: no model there.
    """
    found = TrainedScorers({}, {})
    for run in runs:
        if knows_questions(run):
            from experiments.semantic_ids import language_recommending as language

            model = language.load_language_recommender(run)
            scorer = language.history_scorer(model, dataset.item_ids)
            found.of_training.setdefault("language", []).append(scorer)
            continue
        recommender = load_recommender(run)
        check_items(recommender, dataset, run)
        if recommender.learned_validation and not may_know:
            raise ValueError(f"{run}: the model learned the validation items: ask it on test alone")
        kind = found.of_validation if recommender.learned_validation else found.of_training
        kind.setdefault(recommender.model_type, []).append(recommender.scorer())
    return found
