"""Folders of the sentence-transformers library: what is done with the states of the encoder."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from recipe_jax.huggingface.config_values import whole_number
from recipe_jax.huggingface.folder_files import ModelFolderError, read_json, read_json_list
from recipe_jax.models.bert_encoder import Pooling

_MODES: Mapping[str, Pooling | None] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": None,
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
    "pooling_mode_lasttoken": None,
}
"""Keys of `1_Pooling/config.json` -> the pooling that each switches on; None for one not known."""


class SentenceFolder(NamedTuple):
    """What a folder says beside the encoder.

    Attributes:
        encoder: the folder of the encoder and its tokenizer.
        pooling: None where the folder says nothing.
        normalize: whether vectors are divided by their length.
        max_tokens: longer texts are cut; None where the folder says nothing.
    """

    encoder: Path
    pooling: Pooling | None = None
    normalize: bool = False
    max_tokens: int | None = None


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """Read `modules.json` and the files that it names; a folder without one has an encoder only.

    Raises:
        ModelFolderError: a broken file, or anything that changes the vectors and is not known here,
            with its value.
    """
    _check_prompts(folder / "config_sentence_transformers.json")
    if not (folder / "modules.json").exists():
        path = folder / "1_Pooling" / "config.json"
        pooling = _read_pooling(path) if path.exists() else None
        return SentenceFolder(folder, pooling, max_tokens=_read_max_tokens(folder))
    encoder, pooling, normalize = None, None, False
    for kind, place in _modules(folder):
        if kind == "Transformer" and encoder is None:
            encoder = place
        elif kind == "Pooling" and encoder is not None and pooling is None:
            pooling = _read_pooling(place / "config.json")
        elif kind == "Normalize" and pooling is not None:
            normalize = True
        else:
            raise ModelFolderError(
                f"{folder / 'modules.json'}: module {kind!r} must be one of 'Transformer', "
                "'Pooling', 'Normalize', in this order"
            )
    if encoder is None or pooling is None:
        missing = "Transformer" if encoder is None else "Pooling"
        raise ModelFolderError(f"{folder / 'modules.json'}: has no module {missing!r}")
    return SentenceFolder(encoder, pooling, normalize, _read_max_tokens(encoder))


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module."""
    path = folder / "modules.json"
    found = []
    for module in read_json_list(path):
        kind, place = (
            module.get(key) if isinstance(module, dict) else None for key in ("type", "path")
        )
        if not isinstance(kind, str) or not isinstance(place, str):
            raise ModelFolderError(f"{path}: module {module!r:.80} must have 'type' and 'path'")
        parts = PurePosixPath(place).parts
        if len(parts) > 1 or ".." in parts or PurePosixPath(place).is_absolute():
            raise ModelFolderError(f"{path}: path={place!r} must be a folder of this one")
        found.append((kind.rpartition(".")[2], folder / place))
    return found


def _read_pooling(path: Path) -> Pooling:
    config = read_json(path)
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        if mode not in ("mean", "cls"):
            raise ModelFolderError(f"{path}: pooling_mode={mode!r} must be 'mean' or 'cls'")
        return mode
    unknown = [key for key in config if key.startswith("pooling_mode_") and key not in _MODES]
    if unknown:
        raise ModelFolderError(f"{path}: {unknown[0]}={config[unknown[0]]!r} is not known here")
    # The library takes the mean where the file says nothing of it.
    default = {"pooling_mode_mean_tokens": True}
    on = [key for key in _MODES if config.get(key, default.get(key, False)) is not False]
    pooling = _MODES[on[0]] if len(on) == 1 and config.get(on[0], True) is True else None
    if pooling is None:
        modes = {key: config.get(key, True) for key in on}
        raise ModelFolderError(
            f"{path}: {modes} must be 'pooling_mode_mean_tokens' or 'pooling_mode_cls_token' alone"
        )
    return pooling


def _read_max_tokens(encoder: Path) -> int | None:
    path = encoder / "sentence_bert_config.json"
    if not path.exists():
        return None
    config = read_json(path)
    if config.get("do_lower_case"):
        raise ModelFolderError(f"{path}: do_lower_case={config['do_lower_case']!r} must be false")
    return whole_number(config, "max_seq_length", path, None)


def _check_prompts(path: Path) -> None:
    config: Mapping[str, Any] = read_json(path) if path.exists() else {}
    name = config.get("default_prompt_name")
    if name is not None:
        raise ModelFolderError(
            f"{path}: default_prompt_name={name!r} must be null; write the prompt into the texts"
        )
