"""Vectors of sentences by a BERT encoder of a Hugging Face folder.

Needs the extra `[language]` for tokenizers; torch is never needed.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from recipe_jax.functional import Params, PureModule, flat_params, path_name
from recipe_jax.huggingface.bert_checkpoints import load_bert_encoder
from recipe_jax.huggingface.folder_files import ModelFolderError
from recipe_jax.huggingface.sentence_folders import read_sentence_folder
from recipe_jax.huggingface.tokenizers import load_tokenizer
from recipe_jax.models.bert_encoder import BertEncoder, Pooling, pool_states, unit_length
from recipe_jax.sharding import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SentenceEncoder:
    """A BERT encoder with its tokenizer and pooling (Reimers and Gurevych 2019, arXiv:1908.10084).

    Attributes:
        fn: the encoder.
        params: its parameters.
        tokenizer: a fast tokenizer of the transformers library.
        pooling: how the states of a text's tokens become one vector.
        normalize: whether vectors are divided by their length.
        max_tokens: longer texts are cut, special tokens included.
    """

    fn: PureModule[BertEncoder]
    params: Params
    tokenizer: Any
    pooling: Pooling
    normalize: bool
    max_tokens: int

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> Float32[np.ndarray, "n e"]:
        """A vector for each text, whatever other texts stand beside it.

        Texts of like length are encoded together and padded to one of a few sizes, so that little
        is compiled and little computed in vain.

        Args:
            texts: in any order, which is the order of the vectors.
            batch_size: texts that are encoded together.

        Raises:
            ValueError: one text instead of several, or one without a single token, for a tokenizer
                that adds none.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts={texts!r:.60} must be a list of texts")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        width = self.fn.bind(self.params).cfg.transformer.embed_dim
        vectors = np.empty((len(texts), width), np.float32)
        tokens = self._tokens(texts)
        lengths = np.array([len(row) for row in tokens], np.int32)
        order = np.argsort(-lengths, kind="stable")
        batches = [order[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        # All are sent before the first is waited for: the next is padded while one is computed.
        found = [
            _encode(
                self.fn,
                self.params,
                *_padded([tokens[row] for row in rows], batch_size, self.max_tokens),
                pooling=self.pooling,
                normalize=self.normalize,
            )
            for rows in batches
        ]
        for rows, batch in zip(batches, found, strict=True):
            vectors[rows] = batch[: len(rows)]
        return vectors

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over settings, tokenizer and parameters: all that `encode` depends on."""
        module = self.fn.bind(self.params)
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for key in ("truncation", "padding"):  # of the last call, not of the tokenizer
            tokenizer.pop(key, None)
        settings = (module.cfg, module.dtype, self.pooling, self.normalize, self.max_tokens)
        digest = hashlib.sha256(repr(settings).encode())
        digest.update(json.dumps(tokenizer, sort_keys=True).encode())
        for path, leaf in sorted(flat_params(self.params).items()):
            values = np.asarray(leaf)
            digest.update(f"{path_name(path)} {values.dtype} {values.shape};".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        tokens = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for row, ids in enumerate(tokens, start=1):
            if not ids:
                raise ValueError(f"text {row}={texts[row - 1]!r:.60} has no token")
        return tokens


def load_sentence_encoder(
    folder: Path | str,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_tokens: int | None = None,
    mesh: Mesh | None = None,
    param_dtype: str | None = "float32",
    **options: Any,
) -> SentenceEncoder:
    """Read a folder of the transformers or of the sentence-transformers library.

    Args:
        folder: holds `config.json`, `model.safetensors` and a tokenizer, and `modules.json` with
            what that names where it is of sentence-transformers.
        pooling: as the folder says if None.
        normalize: as the folder says if None; no where it says nothing.
        max_tokens: longer texts are cut; as the folder says if None, and never more than the
            encoder has positions.
        mesh: where the parameters go, by the default rules; one device if None.
        param_dtype: of the parameters; as stored if None.
        options: of `BertEncoder`, such as `attend` and `dtype`.

    Raises:
        ModelFolderError: a file that is missing or broken, anything that changes the vectors and is
            not known here, or a folder that does not say how states are pooled, where `pooling`
            does not say it either.
        ValueError: `max_tokens` that the encoder or the tokenizer has no room for.
    """
    if pooling is not None and pooling not in get_args(Pooling):
        raise ValueError(f"pooling={pooling!r} must be one of {get_args(Pooling)}")
    found = read_sentence_folder(Path(folder))
    pooling = found.pooling if pooling is None else pooling
    if pooling is None:
        raise ModelFolderError(
            f"{folder}: has no 1_Pooling/config.json that says how states are pooled; "
            f"give pooling, one of {get_args(Pooling)}"
        )
    cfg, fn, params = load_bert_encoder(
        found.encoder, mesh=mesh, param_dtype=param_dtype, **options
    )
    tokenizer = load_tokenizer(found.encoder, vocab_size=cfg.vocab_size)
    if not tokenizer.is_fast:
        raise ModelFolderError(f"{folder}: its tokenizer has no tokenizer.json")
    if max_tokens is None:
        max_tokens = min(found.max_tokens or cfg.max_positions, cfg.max_positions)
    fewest = 1 + tokenizer.num_special_tokens_to_add()
    if not fewest <= max_tokens <= cfg.max_positions:
        raise ValueError(
            f"max_tokens={max_tokens} must be from {fewest}, to hold a word beside special tokens, "
            f"to max_positions={cfg.max_positions}"
        )
    return SentenceEncoder(
        fn=fn,
        params=params,
        tokenizer=tokenizer,
        pooling=pooling,
        normalize=found.normalize if normalize is None else normalize,
        max_tokens=max_tokens,
    )


@functools.partial(jax.jit, static_argnames=("fn", "pooling", "normalize"))
def _encode(
    fn: PureModule[BertEncoder],
    params: Params,
    tokens: Int[Array, "b t"],
    lengths: Int[Array, "b"],
    *,
    pooling: Pooling,
    normalize: bool,
) -> Float32[Array, "b e"]:
    states = fn.bind(params)(tokens, lengths)
    vectors = pool_states(states, lengths, pooling)
    return unit_length(vectors) if normalize else vectors


def _padded(
    rows: list[list[int]], batch_size: int, max_tokens: int
) -> tuple[Int32[Array, "b t"], Int32[Array, "b"]]:
    """Tokens and lengths in one of a few shapes; rows that are added have one token.

    Sizes are 16, 24, 32, 48, 64 and so on, up to the longest text that there may be; the last,
    smaller batch has a power of two of rows.
    """
    longest = max(map(len, rows))
    size = 16
    while size < longest:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    count = min(batch_size, 1 << (len(rows) - 1).bit_length())
    tokens = np.zeros((count, min(size, max_tokens)), np.int32)
    lengths = np.ones(count, np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
        lengths[place] = len(row)
    return jnp.asarray(tokens), jnp.asarray(lengths)
