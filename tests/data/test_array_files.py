"""Matrices of vectors from files: matched to items, and refused by row."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from pickle_trap import Trap

from recipe_jax.data.array_files import read_arrays, read_vectors
from recipe_jax.data.files import DataError

IDS = ("a", "b", "c")
VECTORS = np.arange(6, dtype=np.float64).reshape(3, 2) / 3


def saved(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_are_those_of_the_items(tmp_path: Path, dtype):
    np.save(tmp_path / "a.npy", VECTORS.astype(dtype))
    found = read_vectors(tmp_path / "a.npy", IDS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VECTORS.astype(dtype).astype(np.float32))
    one = saved(tmp_path / "b.npz", anything=VECTORS.astype(dtype))
    np.testing.assert_array_equal(read_vectors(one, IDS), found)


def test_rows_are_found_by_id_where_there_are_ids(tmp_path: Path):
    path = saved(tmp_path / "a.npz", vectors=VECTORS, ids=np.array(["b", "c", "a"]))
    np.testing.assert_array_equal(read_vectors(path, IDS), VECTORS[[2, 0, 1]].astype(np.float32))
    np.testing.assert_array_equal(read_vectors(path, ("c",)), VECTORS[[1]].astype(np.float32))


def with_value(value: float) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[1, 0] = value
    return vectors


BROKEN = {
    "holds 2 rows, must hold one for each of 3": {"vectors": VECTORS[:2]},
    "row 2 (id='b'): column 1 is nan; vectors must be finite": {"vectors": with_value(np.nan)},
    "row 2 (id='b'): column 1 is -inf; vectors": {"vectors": with_value(-np.inf)},
    "row 2 (id='b'): column 1 is 1e+300; vectors must be finite in float32": {
        "vectors": with_value(1e300)
    },
    "row 2 (id='c'): column 1 is nan": {
        "vectors": with_value(np.nan),
        "ids": np.array(["a", "c", "b"]),
    },
    "float64[3] must be a matrix of floating-point numbers": {"vectors": VECTORS[:, 0]},
    "float64[3, 0] must be a matrix": {"vectors": VECTORS[:, :0]},
    "int64[3, 2] must be a matrix of floating-point": {"vectors": np.zeros((3, 2), np.int64)},
    "holds ['one', 'two'], one must be named 'vectors'": {"one": VECTORS, "two": VECTORS},
    "ids are <U1[2], must be 3 strings": {"vectors": VECTORS, "ids": np.array(["a", "b"])},
    "ids are int64[3], must be 3 strings": {"vectors": VECTORS, "ids": np.arange(3)},
    "row 3: id='a' occurred in row 1; ids must be distinct": {
        "vectors": VECTORS,
        "ids": np.array(["a", "b", "a"]),
    },
    "holds no vector of id='c'": {"vectors": VECTORS, "ids": np.array(["a", "b", "d"])},
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, message: str):
    path = saved(tmp_path / "a.npz", **BROKEN[message])
    with pytest.raises(DataError) as caught:
        read_vectors(path, IDS)
    assert f"{path}: {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_no_pickle_is_read(tmp_path: Path):
    ran = tmp_path / "ran"
    traps = np.array([Trap(ran)], dtype=object)
    np.save(tmp_path / "a.npy", traps, allow_pickle=True)
    np.savez(tmp_path / "b.npz", vectors=traps)
    (tmp_path / "c.npy").write_bytes((tmp_path / "a.npy").read_bytes()[128:])  # the pickle alone
    for name in ("a.npy", "b.npz", "c.npy"):
        with pytest.raises(DataError, match=f"{name}: not a whole .npy or .npz file"):
            read_arrays(tmp_path / name)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("keep", [slice(0, 0), slice(0, 60), slice(0, -1), slice(9, None)])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, keep: slice):
    path = tmp_path / name
    np.save(path, VECTORS) if name == "a.npy" else saved(path, vectors=VECTORS)
    path.write_bytes(path.read_bytes()[keep])
    with pytest.raises(DataError, match=r"not a whole \.npy or \.npz file") as caught:
        read_vectors(path, IDS)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.npy: no such file"):
        read_vectors(tmp_path / "a.npy", IDS)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("vectors", "1 2 3")
    with pytest.raises(DataError, match="'vectors' is no array"):
        read_vectors(tmp_path / "b.npz", IDS)
