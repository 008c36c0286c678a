"""Tokenizers: that of a Hugging Face folder, and that of llama2.c in the same form.

Needs the extra `[language]`.
"""

import copy
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Or it says on every import that torch is missing, which is how it should be.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recipe_jax.huggingface.folder_files import ModelFolderError

_SPACE = "▁"  # as SentencePiece writes a space
_NUM_SPECIAL = 3 + 256  # unknown, begin, end, and one token for each byte

PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Jinja for a tokenizer that has no chat template: a line for each message."""


def load_tokenizer(folder: Path | str, *, vocab_size: int | None = None) -> Any:
    """The tokenizer of a Hugging Face folder, from its files alone.

    Args:
        folder: holds `tokenizer.json` or what transformers makes one of.
        vocab_size: of the model; larger than the tokenizer's is common, smaller an error.

    Raises:
        ModelFolderError: no tokenizer that can be read, or one with tokens the model has not.
    """
    folder = Path(folder)
    if (
        not (folder / "tokenizer.json").is_file()
        and not (folder / "tokenizer_config.json").is_file()
    ):
        raise ModelFolderError(f"{folder}: no tokenizer.json; a tokenizer is needed to read text")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # foreign files make foreign code fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ModelFolderError(f"{folder}: its tokenizer cannot be read ({reason})") from error
    if vocab_size is not None:
        check_vocabulary(tokenizer, vocab_size, str(folder))
    return tokenizer


def check_vocabulary(tokenizer: Any, vocab_size: int, place: str) -> None:
    """Refuse a tokenizer with tokens beyond the model's vocabulary.

    Raises:
        ModelFolderError: names the token.
    """
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if index >= vocab_size:
        raise ModelFolderError(
            f"{place}: the tokenizer has token {index} ({token!r}), but the model's "
            f"vocab_size={vocab_size}: it is the tokenizer of another model"
        )


def load_llama2c_tokenizer(path: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer that llama2.c exports as `tokenizer.bin`: byte-pair encoding by scores.

    A text begins with a space, so that its first word is a word like any other; characters without
    a token become bytes.

    Raises:
        ModelFolderError: a missing or truncated file.
    """
    pieces = _read_pieces(Path(path))
    vocabulary = {piece: index for index, (_, piece) in enumerate(pieces)}
    if len(vocabulary) != len(pieces) or len(pieces) <= _NUM_SPECIAL:
        raise ModelFolderError(
            f"{path}: {len(pieces)} tokens, which must be distinct and above 259"
        )
    unknown, begin, end = (piece for _, piece in pieces[:3])
    ranked = sorted(pieces[_NUM_SPECIAL:], key=lambda scored: -scored[0])
    merges = [pair for _, piece in ranked for pair in _pairs(piece, vocabulary)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in (unknown, begin, end)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        chat_template=PLAIN_CHAT_TEMPLATE,
    )


def with_words(tokenizer: Any, words: Sequence[str]) -> tuple[Any, int]:
    """A tokenizer that reads each of these words as one token, and the first one's number.

    Wherever a word stands in a text, with or without spaces around it, it is this token; the
    others follow the first in order.

    Args:
        tokenizer: a fast tokenizer of the transformers library, which stays as it is.
        words: new ones, each once.

    Raises:
        ModelFolderError: a word that the tokenizer has, or one given twice.
    """
    grown, first = copy.deepcopy(tokenizer), len(tokenizer)
    known = set(tokenizer.get_vocab())
    for word in words:
        if word in known:
            raise ModelFolderError(f"the tokenizer has the word {word!r} already: it must be new")
        known.add(word)
    grown.add_tokens([AddedToken(word, normalized=False) for word in words])
    numbers = grown.convert_tokens_to_ids(list(words))
    if numbers != list(range(first, first + len(words))):
        raise ModelFolderError(
            f"the tokenizer numbers {len(words)} new words from {numbers[:1]} on, not from {first}"
        )
    return grown, first


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Name -> content of the files that make up a tokenizer, for `save_language_model`."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {
            path.name: path.read_bytes()
            for path in sorted(Path(folder).iterdir())
            if path.is_file()
        }


def _read_pieces(path: Path) -> list[tuple[float, str]]:
    """Score and text of every token, in the order of their numbers."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror})") from error
    pieces: list[tuple[float, str]] = []
    place = 4  # behind the length of the longest token
    try:
        while place < len(data):
            score, size = struct.unpack_from("<fi", data, place)
            place += 8
            if not 0 <= size <= len(data) - place:
                raise ValueError(f"token {len(pieces)} has length {size}")
            text = data[place : place + size].decode()
            # The control tokens are written as they are printed.
            stripped = text.strip("\n") if len(pieces) < 3 else text
            pieces.append((score, stripped.replace(" ", _SPACE)))
            place += size
    except (struct.error, ValueError) as error:
        raise ModelFolderError(f"{path}: no llama2.c tokenizer ({error})") from error
    return pieces


def _pairs(piece: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way in which two tokens make this one, the pair of the lowest numbers first."""
    cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
    pairs = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
    return sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
