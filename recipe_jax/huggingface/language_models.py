"""Checkpoints of the Llama family: Hugging Face folders to sharded parameters, and back.

Tensors are read from memory-mapped files, each device's part of each tensor by itself, so that no
more than one layer's tensor lies in memory beside the parameters.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from recipe_jax.functional import Params, PureModule, abstract, flat_params
from recipe_jax.huggingface.checkpoint_parameters import check_tensors, read_parameters
from recipe_jax.huggingface.checkpoint_tensors import (
    DTYPES,
    StoredTensor,
    TensorToWrite,
    find_tensors,
    read_block,
    write_tensors,
)
from recipe_jax.huggingface.families import read_family_config, write_family_config
from recipe_jax.huggingface.folder_files import ModelFolderError, read_json
from recipe_jax.huggingface.tensor_layouts import DERIVED, LAYOUTS, Layout, expected_tensors
from recipe_jax.layers.positions import Rope
from recipe_jax.models.causal_language_model import CausalLanguageModel, CausalLanguageModelConfig
from recipe_jax.sharding import Mesh

_HEAD = LAYOUTS["head", "kernel"].tensor
_TABLE = LAYOUTS["embedding", "table"].tensor


class LanguageModel(NamedTuple):
    """A causal language model, ready to be used.

    Attributes:
        cfg: its configuration.
        fn: its pure function.
        params: its parameters.
        begin: the token before every text; None if there is none.
        ends: the tokens that end a text.
    """

    cfg: CausalLanguageModelConfig
    fn: PureModule[CausalLanguageModel]
    params: Params
    begin: int | None = None
    ends: tuple[int, ...] = ()


def load_language_model(
    folder: Path | str, *, mesh: Mesh | None = None, param_dtype: str | None = None, **options: Any
) -> LanguageModel:
    """Read a Hugging Face folder of the Llama family, straight onto the mesh's shards.

    All names, shapes and dtypes are checked before the first tensor is read.

    Args:
        folder: holds `config.json` and `model.safetensors`, or an index and its files.
        mesh: where the parameters go, by the default rules; one device if None.
        param_dtype: of the parameters; as stored if None, which is exact and takes least memory.
            Training wants "float32".
        options: of `CausalLanguageModel`, such as `attend`, `remat` and `dtype`.

    Raises:
        ModelFolderError: a file that is missing, broken or of another kind of model.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    cfg = read_family_config(config, folder / "config.json")
    fn = abstract(lambda: CausalLanguageModel(cfg, rngs=nnx.Rngs(0), **options))[0]
    shapes = {path: leaf.shape for path, leaf in flat_params(fn.shapes).items()}
    begin, ends = _special_tokens(folder, config, cfg.vocab_size)
    tensors = find_tensors(folder, skip=(DERIVED,))
    _check(folder, cfg, tensors, expected_tensors(LAYOUTS, shapes))
    params = read_parameters(fn, tensors, LAYOUTS, mesh=mesh, param_dtype=param_dtype)
    return LanguageModel(cfg, fn, params, begin, ends)


def save_language_model(
    folder: Path | str,
    model: LanguageModel,
    *,
    card: str,
    dtype: str = "F32",
    max_file_bytes: int = 5 * 10**9,
    tokenizer_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a Hugging Face folder that transformers loads: all of its files or none.

    Args:
        folder: created if missing.
        model: of one of the families; interleaved rotary pairs are rearranged into halves.
        card: the model card, in Markdown.
        dtype: of the stored tensors: "F32", "F16" or "BF16".
        max_file_bytes: of one file of tensors.
        tokenizer_files: name -> content, such as `tokenizer.json`.

    Raises:
        ModelFolderError: a model that is of none of the families, or a file that could not be
            written.
    """
    if dtype not in DTYPES:
        raise ModelFolderError(f"dtype={dtype!r} must be one of {sorted(DTYPES)}")
    ends = model.ends[0] if len(model.ends) == 1 else list(model.ends) or None
    special = {"bos_token_id": model.begin, "eos_token_id": ends}
    config = {
        **write_family_config(model.cfg),
        **special,
        "dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
    }
    tensors: dict[str, TensorToWrite] = {}
    rope = model.cfg.positions
    interleaved = isinstance(rope, Rope) and rope.interleaved
    for path, values in flat_params(model.params).items():
        layout = LAYOUTS[path]
        turns = interleaved and path[-1] in ("query", "key", "query_bias", "key_bias")
        turns = turns or (interleaved and path[-2] in ("query_norm", "key_norm"))
        for layer in range(model.cfg.transformer.num_layers) if layout.per_layer else [None]:
            make = functools.partial(_their_tensor, layout, values, layer, turns)
            shape = values.shape if layer is None else values.shape[1:]
            name = layout.tensor.format(layer=layer)
            tensors[name] = TensorToWrite(layout.their_shape(shape), make)
    others = {
        "README.md": card.encode(),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        # It goes before config.json, and one of an earlier model there would be wrong.
        "generation_config.json": (json.dumps(special, indent=2) + "\n").encode(),
        **(tokenizer_files or {}),
    }
    path = Path(folder)
    write_tensors(path, tensors, dtype=dtype, max_file_bytes=max_file_bytes, others=others)


def halves_from_pairs(heads: np.ndarray) -> np.ndarray:
    """Reorder the last axis so that features `(2 i, 2 i + 1)` come to lie at `(i, i + d / 2)`.

    With it, rotating halves does to reordered heads what rotating pairs did before.
    """
    return np.concatenate([heads[..., 0::2], heads[..., 1::2]], axis=-1)


def _check(
    folder: Path,
    cfg: CausalLanguageModelConfig,
    tensors: dict[str, StoredTensor],
    expected: Iterable[tuple[str, tuple[int, ...]]],
) -> None:
    """Refuse what does not fit; forget a head that is the table."""
    if cfg.tied and _HEAD in tensors and _TABLE in tensors:
        head, table = (
            read_block(tensors[name], (slice(None),) * len(tensors[name].shape))
            for name in (_HEAD, _TABLE)
        )
        if not np.array_equal(head, table):
            raise ModelFolderError(
                f"{tensors[_HEAD].file}: tensor {_HEAD!r} must equal {_TABLE!r}, "
                "since config.json says tie_word_embeddings=true"
            )
        del tensors[_HEAD]
    check_tensors(folder, tensors, expected)


def _their_tensor(layout: Layout, values: jax.Array, layer: int | None, turns: bool) -> np.ndarray:
    ours = np.asarray(values if layer is None else values[layer])
    return layout.to_theirs(halves_from_pairs(ours) if turns else ours)


def _special_tokens(
    folder: Path, config: Mapping[str, Any], vocab_size: int
) -> tuple[int | None, tuple[int, ...]]:
    """First token and last tokens, as `generation_config.json` says, else `config.json`.

    One beyond the vocabulary, as in models cut down for tests, can never come and is left out.
    """
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}

    def tokens(key: str, several: str) -> tuple[int, ...]:
        place, given = (path, generation) if key in generation else (folder / "config.json", config)
        value = given.get(key)
        found = value if several and isinstance(value, list) else [] if value is None else [value]
        for token in found:
            whole = isinstance(token, int) and not isinstance(token, bool)
            if not whole or token < 0:
                raise ModelFolderError(f"{place}: {key}={value!r} must be a token{several}")
        return tuple(token for token in found if token < vocab_size)

    begin = tokens("bos_token_id", "")
    return (begin[0] if begin else None), tokens("eos_token_id", ", or a list of them")
