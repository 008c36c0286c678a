"""Lines of text files, plain or compressed, each with its number; and JSON objects on them."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from recipe_jax.data.files import DataError

_BLOCK_BYTES = 1 << 20


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1.

    Args:
        path: UTF-8, with or without a byte order mark; gzip where it ends in `.gz`, Zstandard where
            it ends in `.zst`.

    Raises:
        DataError: a missing or truncated file, or a line that is no UTF-8.
    """
    row = 0
    try:
        for row, line in enumerate(_lines(path), start=1):
            try:
                text = line.decode("utf-8-sig" if row == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: row {row}: byte {error.start} is {line[error.start]:#04x}, "
                    "which is no UTF-8"
                ) from error
            if text.strip():
                yield row, text
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: after row {row}: cannot be read ({error})") from error


def parse_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object on a line.

    Args:
        text: the line.
        place: file and row, for messages.

    Raises:
        DataError: anything else than an object.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        shown = text.strip()[:40]
        raise DataError(f"{place}: value={shown!r} is not JSON ({reason})") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be a JSON object, is {type(row).__name__}")
    return row


def _lines(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _zstd_lines(path)
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as file:
            yield from file
    else:
        with path.open("rb") as file:
            yield from file


def _zstd_lines(path: Path) -> Iterator[bytes]:
    # Not `stream_reader`: it takes a truncated file for a complete one.
    rest = b""
    with path.open("rb") as file:
        compressed = file.read(_BLOCK_BYTES)
        while True:  # one frame after the other
            decompressor = zstandard.ZstdDecompressor().decompressobj()
            while not decompressor.eof:
                if not compressed:
                    raise EOFError("the compressed data end too early")
                *lines, rest = (rest + decompressor.decompress(compressed)).split(b"\n")
                yield from lines
                compressed = decompressor.unused_data or file.read(_BLOCK_BYTES)
            if not compressed:
                break
    yield rest
