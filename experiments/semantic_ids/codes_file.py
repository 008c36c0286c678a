"""What `quantize` leaves behind, as the IDs of a dataset's items."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from recipe_jax.data.array_files import read_arrays
from recipe_jax.data.files import DataError
from recipe_jax.semantic_ids import SemanticIds, make_semantic_ids


def read_codes(
    run: Path, item_ids: Sequence[str], *, unseen: Bool[np.ndarray, "n"] | None = None
) -> SemanticIds:
    """The IDs of `read_all_codes` in the order of these items: the same ones, whoever asks.

    Args:
        run: the run folder of `quantize`.
        item_ids: the items; the file may hold more.
        unseen: items whose codes must be those of a quantizer that never saw them.

    Raises:
        DataError: as `read_all_codes`, an item without codes, or a quantizer that saw what it must
            not.
    """
    path, arrays = _read_arrays(run)
    known = _with_digits(arrays)
    row_of = {name: row for row, name in enumerate(known.items)}
    missing = [name for name in item_ids if name not in row_of]
    if missing:
        raise DataError(
            f"{path}: has no codes of item {missing[0]!r}, nor of {len(missing) - 1} others: "
            "quantize the catalogue of these data"
        )
    rows = [row_of[name] for name in item_ids]
    if unseen is not None and (unseen & ~_is_new(arrays)[rows]).any():
        name = item_ids[int(np.argmax(unseen & ~_is_new(arrays)[rows]))]
        raise DataError(
            f"{path}: the quantizer saw item {name!r}, which is new: quantize with --new-items"
        )
    return SemanticIds(items=tuple(item_ids), codes=known.codes[rows], sizes=known.sizes)


def read_all_codes(run: Path) -> SemanticIds:
    """The codes of every item in `RUN/codes.npz`, with a collision digit, in the file's order.

    There are as many digits as items share their codes at most, twice as many where any do, so that
    a few items that come later find room.  Items that the quantizer never saw are such: they are
    appended, and the others have the IDs that they have without them.

    Args:
        run: the run folder of `quantize`.

    Raises:
        DataError: no such file, or another kind of file.
    """
    return _with_digits(_read_arrays(run)[1])


def _read_arrays(run: Path) -> tuple[Path, dict[str, np.ndarray]]:
    path = run / "codes.npz"
    arrays = read_arrays(path)
    if not {"ids", "codes", "num_codes"} <= set(arrays):
        raise DataError(f"{path}: holds {sorted(arrays)}, must be what quantize writes")
    return path, arrays


def _is_new(arrays: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "n"]:
    """Of the rows of the file, those that the quantizer never saw."""
    return arrays.get("is_new", np.zeros(len(arrays["ids"]), bool))


def _with_digits(arrays: Mapping[str, np.ndarray]) -> SemanticIds:
    """IDs of the items that the quantizer saw, and then of the others; in the order of all."""
    items, codes, seen = arrays["ids"].tolist(), arrays["codes"], ~_is_new(arrays)
    shared = int(np.unique(codes[seen], axis=0, return_counts=True)[1].max(initial=1))
    first, later = np.flatnonzero(seen), np.flatnonzero(~seen)
    ids = make_semantic_ids(
        [items[row] for row in first],
        codes[first],
        num_codes=tuple(arrays["num_codes"].tolist()),
        num_digits=2 * shared if shared > 1 else 4,
    ).append([items[row] for row in later], codes[later])
    place = np.argsort(np.concatenate([first, later]))
    return SemanticIds(items=tuple(items), codes=ids.codes[place], sizes=ids.sizes)
