"""What `quantize` leaves behind, as the IDs of a dataset's items."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from recipe_jax.data.array_files import read_arrays
from recipe_jax.data.files import DataError
from recipe_jax.semantic_ids import SemanticIds, make_semantic_ids


def read_codes(run: Path, item_ids: Sequence[str]) -> SemanticIds:
    """The codes of `RUN/codes.npz`, with a collision digit, in the order of these items.

    There are as many digits as items share their codes at most, twice as many where any do, so that
    a few items that come later find room.

    Args:
        run: the run folder of `quantize`.
        item_ids: the items; the file may hold more.

    Raises:
        DataError: no such file, another kind of file, or an item without codes.
    """
    path, arrays = _read_arrays(run)
    row_of = {name: row for row, name in enumerate(arrays["ids"].tolist())}
    missing = [name for name in item_ids if name not in row_of]
    if missing:
        raise DataError(
            f"{path}: has no codes of item {missing[0]!r}, nor of {len(missing) - 1} others: "
            "quantize the catalogue of these data"
        )
    return _with_digits(item_ids, arrays["codes"][[row_of[name] for name in item_ids]], arrays)


def read_all_codes(run: Path) -> SemanticIds:
    """The codes of every item in `RUN/codes.npz`, with a collision digit, in the file's order.

    Where items share their codes, their digits are those of this order, whoever asks for them.

    Args:
        run: the run folder of `quantize`.

    Raises:
        DataError: no such file, or another kind of file.
    """
    _, arrays = _read_arrays(run)
    return _with_digits(arrays["ids"].tolist(), arrays["codes"], arrays)


def _read_arrays(run: Path) -> tuple[Path, dict[str, np.ndarray]]:
    path = run / "codes.npz"
    arrays = read_arrays(path)
    if not {"ids", "codes", "num_codes"} <= set(arrays):
        raise DataError(f"{path}: holds {sorted(arrays)}, must be what quantize writes")
    return path, arrays


def _with_digits(
    items: Sequence[str], codes: Int[np.ndarray, "n levels"], arrays: Mapping[str, np.ndarray]
) -> SemanticIds:
    shared = int(np.unique(codes, axis=0, return_counts=True)[1].max())
    return make_semantic_ids(
        items,
        codes,
        num_codes=tuple(arrays["num_codes"].tolist()),
        num_digits=2 * shared if shared > 1 else 4,
    )
