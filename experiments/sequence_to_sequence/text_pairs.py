"""Tables of text pairs: UTF-8, one pair a row, source and target separated by a tab, no header."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.recipes import split_of

Split: TypeAlias = Literal["train", "validation", "test"]

COLUMNS = ("source", "target")
MAX_BYTES = 256
"""Of a source and of a target: attention takes memory by the square of it."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN = 60


class Pair(NamedTuple):
    """What is read and what is to be written."""

    source: str
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTable:
    """Pairs with distinct sources.

    Attributes:
        name: of the task, for people.
        pairs: in the order of the file.
    """

    name: str
    pairs: tuple[Pair, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Differs where any pair differs."""
        digest = hashlib.sha256()
        for source, target in self.pairs:
            digest.update(f"{source}\t{target}\n".encode())
        return digest.hexdigest()[:16]

    def part(self, split: Split) -> tuple[Pair, ...]:
        """The pairs of one part, in an order that is as good as random and always the same.

        The hash of its source decides on a pair's part (one tenth each is validation and test) and
        on its place, so that the first `n` of a part are a random sample of it.

        Raises:
            DataError: a part without pairs.
        """
        found = [pair for pair in self.pairs if split_of(pair.source) == split]
        if not found:
            raise DataError(
                f"{self.name}: none of {len(self.pairs)} pairs falls into {split}, which must have "
                "1 or more: add pairs"
            )
        return tuple(sorted(found, key=lambda pair: hashlib.sha1(pair.source.encode()).digest()))


def read_pairs(path: Path) -> PairTable:
    """Read a table; a pair that is repeated counts once.

    Raises:
        DataError: a missing file or a row that breaks a rule; the message names file, row, column,
            value and rule.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    lines = data.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    if not lines[-1]:
        lines.pop()
    first_rows: dict[str, tuple[int, str]] = {}
    for row, line in enumerate(lines, start=1):
        source, target = _read_row(f"{path}: row {row}", line.removesuffix(b"\r"))
        known_row, known = first_rows.setdefault(source, (row, target))
        if known != target:
            raise DataError(
                f"{path}: row {row}, column target: value {_shown(target)} is not the "
                f"{_shown(known)} of row {known_row}, which has the same source; a source must "
                "have one target"
            )
    pairs = tuple(Pair(source, target) for source, (_, target) in first_rows.items())
    return PairTable(name=str(path), pairs=pairs)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write a table whole or not at all; its folder is created.

    Raises:
        DataError: a text that the table cannot hold.
        OSError: a place that cannot be written.
    """
    lines = [f"{source}\t{target}\n".encode() for source, target in pairs]
    for row, line in enumerate(lines, start=1):
        _read_row(f"{path}: row {row}", line.removesuffix(b"\n"))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, b"".join(lines))


def check_text(text: str, place: str) -> str:
    """The text, if it can be a source or a target.

    Raises:
        DataError: an empty text, one that is not UTF-8, or one of more than `MAX_BYTES` bytes.
    """
    if not text.strip():
        raise DataError(f"{place}: value {_shown(text)} must not be empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise DataError(f"{place}: value {text[:_SHOWN]!r} must be UTF-8 text, is not") from None
    if size > MAX_BYTES:
        raise DataError(
            f"{place}: value {_shown(text)} has {size} bytes, must have at most {MAX_BYTES}"
        )
    return text


def _read_row(place: str, line: bytes) -> Pair:
    cells = line.split(b"\t")
    if len(cells) != len(COLUMNS):
        raise DataError(
            f"{place}: value {_shown(line.decode(errors='replace'))} has {len(cells)} column(s), "
            "must have exactly 2: source and target, separated by a tab"
        )
    texts = []
    for column, cell in zip(COLUMNS, cells, strict=True):
        where = f"{place}, column {column}"
        try:
            text = cell.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: value {cell[:_SHOWN]!r} must be UTF-8 text, is not ({error.reason})"
            ) from error
        texts.append(check_text(text, where))
    return Pair(*texts)


def _shown(text: str) -> str:
    """A text as a message shows it: long ones are cut."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
