"""Arrays from `.npy` and `.npz` files, and matrices of vectors that somebody else made."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from recipe_jax.data.files import DataError

_ONE = "vectors"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name, or that of an `.npy` file as `vectors`.

    Raises:
        DataError: a missing, damaged or foreign file.  One that only unpickling can read is named
            and left alone: to read a pickle is to run whatever it says.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {_ONE: loaded}
            arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a whole .npy or .npz file ({reason})") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {name!r} is no array")
    return arrays


def read_vectors(path: Path, ids: Sequence[str]) -> Float32[np.ndarray, "n e"]:
    """One vector for each item, made elsewhere.

    Args:
        path: `.npy` with a row for each of `ids` in their order, or `.npz` with such an array,
            named `vectors` if there are others.  With an array `ids` of strings beside it, rows are
            found by id, and there may be more of them.
        ids: of the items.  To a catalogue in another order than the file's, a file without ids
            fits only by the order that the file was made for.

    Raises:
        DataError: a file that cannot be read, an array that is no matrix of floating-point numbers,
            another number of rows, an item without a vector, or a row that is not finite.
    """
    arrays = read_arrays(path)
    if _ONE not in arrays and len(arrays) != 1:
        raise DataError(f"{path}: holds {sorted(arrays)}, one must be named {_ONE!r}")
    vectors = arrays[_ONE] if _ONE in arrays else next(iter(arrays.values()))
    if vectors.ndim != 2 or not vectors.shape[1] or vectors.dtype.kind != "f":
        raise DataError(
            f"{path}: {vectors.dtype}{list(vectors.shape)} must be a matrix of floating-point "
            "numbers, a row for each item"
        )
    given = arrays.get("ids")
    if given is None and len(vectors) != len(ids):
        raise DataError(f"{path}: holds {len(vectors)} rows, must hold one for each of {len(ids)}")
    rows = np.arange(len(ids)) if given is None else _rows_of(path, given, vectors, ids)
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        found = vectors[rows].astype(np.float32)
    finite = np.isfinite(found)
    if not finite.all():
        place, column = np.argwhere(~finite)[0]
        value = vectors[rows[place], column]
        raise DataError(
            f"{path}: row {rows[place] + 1} (id={ids[place]!r}): column {column + 1} is {value}; "
            "vectors must be finite in float32"
        )
    return found


def _rows_of(
    path: Path, given: np.ndarray, vectors: np.ndarray, ids: Sequence[str]
) -> Int64[np.ndarray, "n"]:
    if given.dtype.kind != "U" or given.shape != (len(vectors),):
        raise DataError(
            f"{path}: ids are {given.dtype}{list(given.shape)}, must be {len(vectors)} strings"
        )
    places: dict[str, int] = {}
    for row, identifier in enumerate(given.tolist()):
        if identifier in places:
            raise DataError(
                f"{path}: row {row + 1}: id={identifier!r} occurred in row "
                f"{places[identifier] + 1}; ids must be distinct"
            )
        places[identifier] = row
    for identifier in ids:
        if identifier not in places:
            raise DataError(f"{path}: holds no vector of id={identifier!r}")
    return np.array([places[identifier] for identifier in ids], np.int64)
