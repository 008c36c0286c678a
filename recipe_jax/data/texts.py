"""Texts and conversations from files, as token sequences with what to learn from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipe_jax.data.packing import TokenSequences
from recipe_jax.data.recipes import DataError

Messages = Sequence[Mapping[str, str]]
ROLES = ("system", "user", "assistant")


class Document(NamedTuple):
    """One example: either plain text or a conversation.

    Attributes:
        text: all of it is learned; empty for a conversation.
        messages: of which only the assistant's are learned; empty for plain text.
    """

    text: str = ""
    messages: tuple[Mapping[str, str], ...] = ()


def read_documents(path: Path) -> list[Document]:
    """Read `.jsonl` with a key `messages` or `text` in each row, or plain text.

    In a text file, blank lines separate documents.

    Raises:
        DataError: a missing or empty file, bytes that are no UTF-8, or a malformed row: the message
            names file, row, field, value and rule.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is no UTF-8") from error
    if path.suffix == ".jsonl":
        rows = [
            (number, line)
            for number, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        ]
        documents = [_read_row(f"{path}:{number}", line) for number, line in rows]
    else:
        paragraphs = content.replace("\r\n", "\n").split("\n\n")
        documents = [Document(text=part.strip("\n")) for part in paragraphs if part.strip()]
    if not documents:
        raise DataError(f"{path}: holds no text")
    return documents


def tokenize_documents(documents: Sequence[Document], tokenizer: Any) -> TokenSequences:
    """Token sequences, each with the tokenizer's own beginning and an end token.

    In a conversation only tokens that hold characters of the assistant's messages count.

    Args:
        documents: what to read.
        tokenizer: a fast tokenizer of the transformers library.

    Raises:
        DataError: a conversation without an answer, or a chat template that writes earlier
            messages anew once a later one follows.
    """
    sequences, weights = [], []
    for number, document in enumerate(documents):
        if document.messages:
            tokens, counts = _tokenize_messages(document.messages, tokenizer, number)
        else:
            tokens = list(tokenizer(document.text)["input_ids"])
            if tokenizer.eos_token_id is not None and tokens[-1:] != [tokenizer.eos_token_id]:
                tokens.append(tokenizer.eos_token_id)
            counts = [1.0] * len(tokens)
        sequences.append(tokens)
        weights.append(counts)
    return TokenSequences.of(sequences, weights)


def render(messages: Messages, tokenizer: Any, *, prompt: bool = False) -> str:
    """A conversation as the model reads it; with the opening of an answer if `prompt`.

    Raises:
        DataError: a chat template that is broken, or that refuses such a conversation.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template is foreign code and may fail in any way
        roles, reason = [m["role"] for m in messages], " ".join(str(error).split())
        raise DataError(f"the chat template cannot write the roles {roles} ({reason})") from error


def check_characters(place: str, text: str) -> None:
    """Refuse what no UTF-8 can hold, which is half of a surrogate pair.

    Raises:
        DataError: names the place and the character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: character {error.start} is {text[error.start]!r}, which is no character "
            "of UTF-8"
        ) from error


def _tokenize_messages(
    messages: Messages, tokenizer: Any, number: int
) -> tuple[list[int], list[float]]:
    def written(messages: Messages, *, prompt: bool = False) -> str:
        try:
            return render(messages, tokenizer, prompt=prompt)
        except DataError as error:
            raise DataError(f"conversation {number + 1}: {error}") from error

    text, spans = written(messages), []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = written(messages[:place], prompt=True)
        after = written(messages[: place + 1])
        if not (text.startswith(after) and after.startswith(before)):
            raise DataError(
                f"conversation {number + 1}: the chat template writes message {place + 1} "
                "differently once others follow, so its tokens cannot be told apart"
            )
        spans.append((len(before), len(after)))
    # A template that writes its own first token must not get another from the tokenizer.
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    encoded = tokenizer(text, add_special_tokens=not begins, return_offsets_mapping=True)
    tokens = list(encoded["input_ids"])
    counts = [
        float(stop > start and any(start < last and stop > first for first, last in spans))
        for start, stop in encoded["offset_mapping"]
    ]
    end = tokenizer.eos_token_id
    if end is not None and end not in tokens[-2:]:
        tokens.append(end)
        counts.append(1.0)
    return tokens, counts


def _read_row(place: str, line: str) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not readable as JSON ({error})") from error
    if not isinstance(row, dict) or ("messages" in row) == ("text" in row):
        raise DataError(f"{place}: must be an object with either 'messages' or 'text'")
    if "text" in row:
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise DataError(f"{place}: text={row['text']!r} must be a text that is not empty")
        check_characters(f"{place}: text", row["text"])
        return Document(text=row["text"])
    return Document(messages=tuple(_read_messages(place, row["messages"])))


def _read_messages(place: str, messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: messages={messages!r} must be a list that is not empty")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise DataError(f"{place}: message {number}={message!r} must be an object")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"{place}: message {number}: role={role!r} must be one of {ROLES}")
        if not isinstance(content, str) or not content.strip():
            raise DataError(
                f"{place}: message {number}: content={content!r} must be a text that is not empty"
            )
        check_characters(f"{place}: message {number}: content", content)
    if all(message["role"] != "assistant" for message in messages):
        raise DataError(f"{place}: messages must hold one of role 'assistant' to learn from")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
