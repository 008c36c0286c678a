"""A model with its tokenizer, from wherever a command may be pointed to."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from recipe_kernels import attention

from recipe_jax.functional import abstract
from recipe_jax.huggingface import (
    LanguageModel,
    ModelFolderError,
    load_language_model,
    load_llama2c,
)
from recipe_jax.huggingface.tokenizers import (
    PLAIN_CHAT_TEMPLATE,
    check_vocabulary,
    load_llama2c_tokenizer,
    load_tokenizer,
)
from recipe_jax.models.causal_language_model import CausalLanguageModel
from recipe_jax.sharding import Mesh, param_shardings

_STORIES = Path("llama_stories260k") / "stories260K.bin"


class Checkpoint(NamedTuple):
    """What a command works with.

    Attributes:
        model: the language model.
        tokenizer: its tokenizer, with a chat template.
        source: where they come from, for people.
    """

    model: LanguageModel
    tokenizer: Any
    source: str


def read_checkpoint(
    place: Path | None, *, mesh: Mesh | None = None, param_dtype: str | None = None, **options: Any
) -> Checkpoint:
    """Read a Hugging Face folder, a run folder or a llama2.c file.

    Args:
        place: the folder or file; the 260,000-parameter model of `$RECIPE_JAX_DATA` if None.  Of
            a run folder its `model` is read; beside a llama2.c file there must be its tokenizer,
            the only other `.bin` file.
        mesh: where the parameters go; one device if None.
        param_dtype: of the parameters; as stored if None.
        options: of `CausalLanguageModel`; it attends by `recipe_kernels.attention` if they do not
            say otherwise.

    Raises:
        ModelFolderError: nothing there that can be read.
    """
    options = {"attend": attention} | options
    if place is None:
        data = os.environ.get("RECIPE_JAX_DATA")
        if not data or not (Path(data) / _STORIES).is_file():
            raise ModelFolderError(
                f"--model is not given, and $RECIPE_JAX_DATA holds no {_STORIES}: name a folder"
            )
        place = Path(data) / _STORIES
    if place.suffix == ".bin":
        return _read_llama2c(place, mesh, options)
    folder = place / "model" if (place / "model" / "config.json").is_file() else place
    model = load_language_model(folder, mesh=mesh, param_dtype=param_dtype, **options)
    tokenizer = load_tokenizer(folder, vocab_size=model.cfg.vocab_size)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    return Checkpoint(_with_special_tokens(model, tokenizer), tokenizer, str(place))


def _read_llama2c(path: Path, mesh: Mesh | None, options: dict[str, Any]) -> Checkpoint:
    model = load_llama2c(path)
    others = sorted(other for other in path.parent.glob("*.bin") if other != path)
    if len(others) != 1:
        raise ModelFolderError(
            f"{path.parent}: must hold one other .bin file beside {path.name}, its tokenizer; "
            f"found {len(others)}"
        )
    tokenizer = load_llama2c_tokenizer(others[0])
    check_vocabulary(tokenizer, model.cfg.vocab_size, str(others[0]))
    fn, _ = abstract(lambda: CausalLanguageModel(model.cfg, rngs=nnx.Rngs(0), **options))
    params = model.params
    if mesh is not None:
        params = jax.device_put(params, param_shardings(fn.axes, fn.shapes, mesh))
    return Checkpoint(model._replace(fn=fn, params=params), tokenizer, str(path))


def _with_special_tokens(model: LanguageModel, tokenizer: Any) -> LanguageModel:
    """Those of the tokenizer where the folder's configuration names none."""
    end = tokenizer.eos_token_id
    ends = model.ends or (() if end is None else (end,))
    begin = tokenizer.bos_token_id if model.begin is None else model.begin
    return model._replace(begin=begin, ends=ends)
