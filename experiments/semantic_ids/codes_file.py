"""What `quantize` leaves behind, as the IDs of a dataset's items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipe_jax.data.array_files import read_arrays
from recipe_jax.data.files import DataError
from recipe_jax.semantic_ids import SemanticIds, make_semantic_ids


def read_codes(run: Path, item_ids: Sequence[str]) -> SemanticIds:
    """The IDs of `read_all_codes` in the order of these items: the same ones, whoever asks.

    Args:
        run: the run folder of `quantize`.
        item_ids: the items; the file may hold more.

    Raises:
        DataError: as `read_all_codes`, or an item without codes.
    """
    known = read_all_codes(run)
    row_of = {name: row for row, name in enumerate(known.items)}
    missing = [name for name in item_ids if name not in row_of]
    if missing:
        raise DataError(
            f"{run / 'codes.npz'}: has no codes of item {missing[0]!r}, nor of "
            f"{len(missing) - 1} others: quantize the catalogue of these data"
        )
    rows = [row_of[name] for name in item_ids]
    return SemanticIds(items=tuple(item_ids), codes=known.codes[rows], sizes=known.sizes)


def read_all_codes(run: Path) -> SemanticIds:
    """The codes of every item in `RUN/codes.npz`, with a collision digit, in the file's order.

    Where items share their codes, their digits are those of this order.  There are as many digits
    as items share their codes at most, twice as many where any do, so that a few items that come
    later find room.

    Args:
        run: the run folder of `quantize`.

    Raises:
        DataError: no such file, or another kind of file.
    """
    path = run / "codes.npz"
    arrays = read_arrays(path)
    if not {"ids", "codes", "num_codes"} <= set(arrays):
        raise DataError(f"{path}: holds {sorted(arrays)}, must be what quantize writes")
    codes = arrays["codes"]
    shared = int(np.unique(codes, axis=0, return_counts=True)[1].max())
    return make_semantic_ids(
        arrays["ids"].tolist(),
        codes,
        num_codes=tuple(arrays["num_codes"].tolist()),
        num_digits=2 * shared if shared > 1 else 4,
    )
