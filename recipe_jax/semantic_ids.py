"""Semantic IDs: the codes of an item, made unique, as numbers and as text.

A quantizer may give several items the same codes.  One more level, the collision digit, tells them
apart (Rajput et al. 2023, arXiv:2305.05065, section 3.1): the first item with these codes has
digit 0, the next one 1, and so on in the order of the catalogue.  Nothing random is in it, and
items that come later never change the ID of one that is known.
"""

import dataclasses
import hashlib
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt64

START, END = "[SEM_START]", "[SEM_END]"
_CODE = re.compile(r"\[SEM_(0|[1-9][0-9]*)_(0|[1-9][0-9]*)\]")
_FIELDS = ("items", "codes", "sizes")


class SemanticIdError(ValueError):
    """An ID, or a file of IDs, broke a rule.  The message is one line that names it."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SemanticIds:
    """The IDs of a catalogue; row `i` belongs to item `i`.

    Attributes:
        items: names of the items, each once.
        codes: their IDs, each once; the last level is the collision digit.
        sizes: how many codes each level has.
    """

    items: tuple[str, ...]
    codes: Int32[np.ndarray, "n q"]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(set(self.items)) != len(self.items):
            raise SemanticIdError(f"item {_first_repeated(self.items)!r} is there twice")
        order_of_ids(self.codes, self.sizes, self.items)

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """A hash of items, codes and sizes: a model and an index made for others do not fit."""
        found = hashlib.sha256(repr((self.sizes, self.codes.shape)).encode())
        found.update(np.ascontiguousarray(self.codes, "<i4").tobytes())
        for item in self.items:
            found.update(len(item.encode()).to_bytes(8, "little") + item.encode())
        return found.hexdigest()

    def append(self, items: Sequence[str], codes: Int[np.ndarray, "m levels"]) -> "SemanticIds":
        """IDs of more items behind these; those that are known stay as they are.

        Args:
            items: names of the new items.
            codes: what the quantizer says of them, without digits.

        Raises:
            SemanticIdError: an item that is known already, a code that its level has not, or more
                items with the same codes than there are digits.
        """
        before = self.codes[:, :-1]
        _check_codes(codes, self.sizes[:-1], items)
        whole = np.concatenate([before, codes.astype(np.int32)])
        digits = collision_digits(whole, self.sizes[:-1])[len(before) :]
        return SemanticIds(
            items=(*self.items, *items),
            codes=np.concatenate([self.codes, _with_digits(items, codes, digits, self.sizes[-1])]),
            sizes=self.sizes,
        )


def make_semantic_ids(
    items: Sequence[str],
    codes: Int[np.ndarray, "n levels"],
    *,
    num_codes: Sequence[int],
    num_digits: int,
) -> SemanticIds:
    """IDs of a catalogue: the quantizer's codes and a collision digit.

    Args:
        items: names of the items.
        codes: of each item, one a level.
        num_codes: how many codes each level has.
        num_digits: how many items may share their codes, those that are yet to come included.

    Raises:
        SemanticIdError: an item named twice, a code that its level has not, or more items with the
            same codes than there are digits.
    """
    none = SemanticIds(
        items=(),
        codes=np.zeros((0, len(num_codes) + 1), np.int32),
        sizes=(*num_codes, num_digits),
    )
    return none.append(items, codes)


def order_of_ids(
    codes: Int[np.ndarray, "n q"], sizes: Sequence[int], items: Sequence[str] | None = None
) -> Int64[np.ndarray, "n"]:
    """The order in which IDs are sorted, the first level first.

    Args:
        codes: an ID of each item.
        sizes: how many codes each level has.
        items: names, for messages; numbers of rows if None.

    Raises:
        SemanticIdError: a code that its level has not, or an ID of two items.
    """
    _check_codes(codes, sizes, items)
    order, same = _sorted(codes, sizes)
    for place in np.flatnonzero(same)[:1]:
        one, other = (_name(items, int(order[at])) for at in (place - 1, place))
        raise SemanticIdError(
            f"items {one} and {other} have one ID, {format_id(codes[order[place]])}: give them "
            "collision digits"
        )
    return order


def collision_digits(codes: Int[np.ndarray, "n q"], sizes: Sequence[int]) -> Int64[np.ndarray, "n"]:
    """How many rows before each are equal to it."""
    order, same = _sorted(codes, sizes)
    place = np.arange(len(codes))
    first_of_group = np.maximum.accumulate(np.where(same, 0, place))
    digits = np.empty(len(codes), np.int64)
    digits[order] = place - first_of_group
    return digits


def pack_codes(
    codes: Int[np.ndarray, "n q"], sizes: Sequence[int]
) -> UInt64[np.ndarray, "n words"]:
    """Rows as few numbers each, in the same order: as many levels to a number as 64 bits hold."""
    words: list[np.ndarray] = []
    bits_left = 0
    for level, size in enumerate(sizes):
        bits = max(1, (size - 1).bit_length())
        if bits > bits_left:
            words.append(np.zeros(len(codes), np.uint64))
            bits_left = 64
        words[-1] = words[-1] << np.uint64(bits) | codes[:, level].astype(np.uint64)
        bits_left -= bits
    return np.stack(words, axis=1)


def level_offsets(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where the codes of each level begin if all levels are numbered one after the other."""
    return tuple(int(offset) for offset in np.cumsum([0, *sizes[:-1]]))


def id_tokens(sizes: Sequence[int]) -> tuple[str, ...]:
    """The words in which IDs are written: of each level in turn, then start and end."""
    codes = (f"[SEM_{level}_{code}]" for level, size in enumerate(sizes) for code in range(size))
    return (*codes, START, END)


def format_id(codes: Sequence[int] | Int[np.ndarray, "q"]) -> str:
    """An ID as text: `[SEM_START][SEM_0_17][SEM_1_4][SEM_END]`."""
    return START + "".join(f"[SEM_{level}_{code}]" for level, code in enumerate(codes)) + END


def parse_id(text: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The inverse of `format_id`; nothing else is an ID.

    Args:
        text: the whole ID, from start to end.
        sizes: how many codes each level has.

    Raises:
        SemanticIdError: says what of the text is no ID: no start or end, a level that is missing,
            repeated or out of order, a code that its level has not, or anything between.
    """

    def refuse(rule: str) -> SemanticIdError:
        return SemanticIdError(f"{text[:200]!r} is no ID: {rule}")

    if not text.startswith(START) or not text.endswith(END) or len(text) < len(START + END):
        raise refuse(f"must begin with {START} and end with {END}")
    inner, place, found = text[len(START) : -len(END)], 0, []
    while place < len(inner):
        match = _CODE.match(inner, place)
        if match is None:
            raise refuse(f"{inner[place : place + 20]!r} is no code such as [SEM_0_17]")
        level, code = int(match[1]), int(match[2])
        if level != len(found):
            raise refuse(f"level {level} stands where level {len(found)} must")
        if level >= len(sizes):
            raise refuse(f"has more than {len(sizes)} levels")
        if code >= sizes[level]:
            raise refuse(f"{match[0]} is above the last code of its level, {sizes[level] - 1}")
        found.append(code)
        place = match.end()
    if len(found) < len(sizes):
        raise refuse(f"level {len(found)} is missing")
    return tuple(found)


def ids_as_bytes(ids: SemanticIds) -> bytes:
    """The content of an `.npz` file that holds the IDs, without a pickle."""
    content = io.BytesIO()
    np.savez_compressed(
        content, items=np.array(ids.items, str), codes=ids.codes, sizes=np.array(ids.sizes)
    )
    return content.getvalue()


def read_ids(path: Path) -> SemanticIds:
    """IDs from a file of `ids_as_bytes`.

    Raises:
        SemanticIdError: no such file, none of this kind, or IDs that break a rule.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            items, codes, sizes = (held[name] for name in _FIELDS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SemanticIdError(f"{path}: must be an .npz file of {', '.join(_FIELDS)}") from error
    try:
        return SemanticIds(
            items=tuple(items.tolist()), codes=codes.astype(np.int32), sizes=tuple(sizes.tolist())
        )
    except SemanticIdError as error:
        raise SemanticIdError(f"{path}: {error}") from error


def _with_digits(
    items: Sequence[str],
    codes: Int[np.ndarray, "m levels"],
    digits: Int64[np.ndarray, "m"],
    num_digits: int,
) -> Int32[np.ndarray, "m q"]:
    for row in np.flatnonzero(digits >= num_digits)[:1]:
        raise SemanticIdError(
            f"item {items[row]!r} is number {digits[row] + 1} with the codes "
            f"{codes[row].tolist()}, and there are num_digits={num_digits}: give more digits, or "
            "more codes to the quantizer"
        )
    return np.concatenate([codes, digits[:, None]], axis=1).astype(np.int32)


def _check_codes(
    codes: Int[np.ndarray, "n q"], sizes: Sequence[int], items: Sequence[str] | None
) -> None:
    if not sizes or min(sizes) < 1:
        raise SemanticIdError(f"sizes {tuple(sizes)} must be at least 1 each, of one level or more")
    if not np.issubdtype(codes.dtype, np.integer):
        raise SemanticIdError(f"codes have dtype {codes.dtype}, must be whole numbers")
    num_items = len(codes) if items is None else len(items)
    if codes.ndim != 2 or codes.shape != (num_items, len(sizes)):
        raise SemanticIdError(
            f"codes have shape {codes.shape}, must have {num_items} rows, one an item, and "
            f"{len(sizes)} columns, one a level"
        )
    for level, size in enumerate(sizes):
        beyond = (codes[:, level] < 0) | (codes[:, level] >= size)
        if beyond.any():
            row = int(np.argmax(beyond))
            raise SemanticIdError(
                f"item {_name(items, row)} has code {codes[row, level]} at level {level}, must be "
                f"from 0 to {size - 1}"
            )


def _name(items: Sequence[str] | None, row: int) -> str:
    return repr(row if items is None else items[row])


def _sorted(
    codes: Int[np.ndarray, "n q"], sizes: Sequence[int]
) -> tuple[Int64[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Their order, equal rows as they come; and which in it are equal to the one before."""
    packed = pack_codes(codes, sizes)
    order = np.lexsort(packed.T[::-1])
    packed = packed[order]
    same = np.zeros(len(codes), bool)
    same[1:] = (packed[1:] == packed[:-1]).all(axis=1)
    return order, same


def _first_repeated(items: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(item for item in items if item in seen or seen.add(item))
