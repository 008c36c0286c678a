"""Texts and conversations from files, as token sequences with what to learn from them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipe_jax.data.files import DataError
from recipe_jax.data.packing import TokenSequences

Messages = Sequence[Mapping[str, str]]
ROLES = ("system", "user", "assistant")
_MARKS_ANSWERS = re.compile(r"\{%-?\+?\s*generation\b")


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

    In a conversation, which begins as the chat template says, only tokens that hold characters of
    the assistant's messages count, or those that the template marks by `{% generation %}`.  Where
    the template writes an answer anew once others follow, as Qwen3's does with thoughts, each
    answer becomes a sequence, with all that came before it.

    Args:
        documents: what to read.
        tokenizer: a fast tokenizer of the transformers library.

    Raises:
        DataError: a conversation without an answer, or a chat template that writes what comes
            before an answer anew once it follows.
    """
    found: list[tuple[list[int], list[float]]] = []
    for number, document in enumerate(documents):
        if document.messages:
            found += _tokenize_messages(document.messages, tokenizer, number)
            continue
        tokens = list(tokenizer(document.text)["input_ids"])
        if tokenizer.eos_token_id is not None and tokens[-1:] != [tokenizer.eos_token_id]:
            tokens.append(tokenizer.eos_token_id)
        found.append((tokens, [1.0] * len(tokens)))
    return TokenSequences.of([tokens for tokens, _ in found], [counts for _, counts in found])


def render(messages: Messages, tokenizer: Any, *, prompt: bool = False) -> str:
    """A conversation as the model reads it; with the opening of an answer if `prompt`.

    The text is all there is: the tokenizer shall put nothing before it and nothing after.

    Raises:
        DataError: a chat template that is broken, or that refuses such a conversation.
    """
    return _apply_template(messages, tokenizer, tokenize=False, add_generation_prompt=prompt)


def _apply_template(messages: Messages, tokenizer: Any, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
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
) -> list[tuple[list[int], list[float]]]:
    """Tokens and what each counts: of the whole conversation, else of each answer by itself."""
    try:
        if _MARKS_ANSWERS.search(str(tokenizer.chat_template)):
            marked = _apply_template(
                messages, tokenizer, return_dict=True, return_assistant_tokens_mask=True
            )
            found = [(marked["input_ids"], [float(x) for x in marked["assistant_masks"]])]
        else:
            found = [_encode(*part, tokenizer) for part in _learned_parts(messages, tokenizer)]
    except DataError as error:
        raise DataError(f"conversation {number + 1}: {error}") from error
    end = tokenizer.eos_token_id
    ends_with_answer = len(found) > 1 or messages[-1]["role"] == "assistant"
    for tokens, counts in found:
        # After a question nothing ends: what follows it is an answer.
        if end is not None and ends_with_answer and end not in tokens[-2:]:
            tokens.append(end)
            counts.append(1.0)
    return found


def _learned_parts(messages: Messages, tokenizer: Any) -> list[tuple[str, list[tuple[int, int]]]]:
    """Texts, each with where its answers begin and stop."""
    text, parts = render(messages, tokenizer), []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:place], tokenizer, prompt=True)
        after = render(messages[: place + 1], tokenizer)
        if not after.startswith(before):
            raise DataError(
                f"the chat template writes message {place + 1} and what comes before it "
                "differently from what comes before it alone, so its tokens cannot be told apart"
            )
        parts.append((after, [(len(before), len(after))]))
    if all(text.startswith(after) for after, _ in parts):
        return [(text, [span for _, spans in parts for span in spans])]
    return parts


def _encode(
    text: str, spans: list[tuple[int, int]], tokenizer: Any
) -> tuple[list[int], list[float]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    counts = [
        float(stop > start and any(start < last and stop > first for first, last in spans))
        for start, stop in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), counts


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
