"""Vectors are computed once, whatever kills the run, damages the files or changes the order."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from recipe_jax.data.files import DataError
from recipe_jax.data.vector_cache import cached_vectors

TEXTS = ["b", "aaa", "cc", "dddd", "aaa", "e"]


class Encoder:
    """A vector of length and first letter, which remembers what it was asked for."""

    def __init__(self, *, fail_after: int | None = None, scale: float = 1.0):
        self.calls: list[list[str]] = []
        self.fail_after, self.scale = fail_after, scale

    def __call__(self, texts: list[str]) -> np.ndarray:
        if len(self.calls) == self.fail_after:
            raise KeyboardInterrupt
        self.calls.append(texts)
        return expected(texts, self.scale)


def expected(texts: list[str], scale: float = 1.0) -> np.ndarray:
    return np.array([[len(text) * scale, ord(text[0]) / 8] for text in texts], np.float32)


def run(folder: Path, encode, texts=TEXTS, **options):
    options = {"fingerprint": "one", "batch_size": 2} | options
    return cached_vectors(texts, encode, folder=folder, **options)


def test_each_text_is_encoded_once_long_texts_first(tmp_path: Path):
    encode, told = Encoder(), []
    found = run(tmp_path, encode, progress=lambda *counts: told.append(counts))
    np.testing.assert_array_equal(found.vectors, expected(TEXTS))
    assert encode.calls == [["dddd", "aaa"], ["cc", "b"], ["e"]]
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert (found.num_found, found.num_computed, found.damaged) == (0, 5, ())
    again = Encoder()
    found = run(tmp_path, again)
    np.testing.assert_array_equal(found.vectors, expected(TEXTS))
    assert again.calls == [] and (found.num_found, found.num_computed) == (5, 0)


def test_texts_are_found_in_any_order_batch_and_company(tmp_path: Path):
    run(tmp_path, Encoder())
    encode, texts = Encoder(), ["new", "e", "aaa", "newer"]
    found = run(tmp_path, encode, texts, batch_size=3)
    np.testing.assert_array_equal(found.vectors, expected(texts))
    assert encode.calls == [["newer", "new"]] and found.num_found == 2


def test_another_encoder_finds_nothing(tmp_path: Path):
    run(tmp_path, Encoder())
    found = run(tmp_path, Encoder(scale=3.0), fingerprint="another/../one")
    np.testing.assert_array_equal(found.vectors, expected(TEXTS, 3.0))
    assert found.num_computed == 5
    np.testing.assert_array_equal(run(tmp_path, Encoder()).vectors, expected(TEXTS))


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path):
    first = Encoder(fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first)
    second = Encoder()
    found = run(tmp_path, second)
    np.testing.assert_array_equal(found.vectors, expected(TEXTS))
    assert first.calls + second.calls == [["dddd", "aaa"], ["cc", "b"], ["e"]]
    assert (found.num_found, found.num_computed) == (4, 1)


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from recipe_jax.data import files, vector_cache

def killed_halfway(path, data):
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

def encode(texts):
    if "cc" in texts:  # the second batch is killed while it is written
        vector_cache.replace_file = killed_halfway
    return np.array([[len(text), ord(text[0]) / 8] for text in texts], np.float32)

vector_cache.cached_vectors(
    sys.argv[2:], encode, fingerprint="one", folder=Path(sys.argv[1]), batch_size=2
)
"""


def test_a_run_killed_while_it_writes_loses_that_batch_alone(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), *TEXTS]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == -signal.SIGKILL
    encode = Encoder()
    found = run(tmp_path, encode)
    np.testing.assert_array_equal(found.vectors, expected(TEXTS))
    assert encode.calls == [["cc", "b"], ["e"]] and found.damaged == ()


@pytest.mark.parametrize("damage", ["a bit", "the end", "all", "digests"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: str):
    run(tmp_path, Encoder())
    whole = sorted(tmp_path.glob("*/*"))
    assert len(whole) == 3
    data = bytearray(whole[1].read_bytes())
    if damage == "a bit":
        data[-1] ^= 1
    if damage == "digests":
        data[-40] ^= 255
    whole[1].write_bytes(data[:-3] if damage == "the end" else b"" if damage == "all" else data)
    encode = Encoder()
    found = run(tmp_path, encode)
    np.testing.assert_array_equal(found.vectors, expected(TEXTS))
    assert found.damaged == (whole[1].name,) and 1 <= found.num_computed <= 2
    assert run(tmp_path, Encoder()).num_computed == 0
    assert sorted(tmp_path.glob("*/*")) == whole  # the same bytes under the same name


def returning(vectors) -> object:
    return lambda texts: np.asarray(vectors)


@pytest.mark.parametrize(
    ("encode", "message", "num_kept"),
    [
        (
            lambda texts: np.where(expected(texts) == 2, np.nan, expected(texts)),
            "row 3: encode gave a vector that is not finite for 'cc'",
            1,
        ),
        (lambda texts: 1e300 * expected(texts).astype(float), "row 4: encode gave a vector", 0),
        (returning(np.zeros((3, 2))), r"encode gave float64\[3, 2\] for 2 texts", 0),
        (returning(np.zeros(2)), r"encode gave float64\[2\] for 2 texts", 0),
        (returning([[1, 2], [3, 4]]), r"encode gave int64\[2, 2\] for 2 texts", 0),
        (lambda texts: np.zeros((len(texts), len(texts))), "vectors of 1 and of 2 numbers", 2),
    ],
)
def test_vectors_that_cannot_be_are_refused_and_not_kept(
    tmp_path: Path, encode, message: str, num_kept: int
):
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, encode)
    assert "\n" not in str(caught.value)
    kept = [load(path.read_bytes())["vectors"] for path in tmp_path.glob("*/*")]
    assert len(kept) == num_kept and all(np.isfinite(vectors).all() for vectors in kept)


def test_a_fingerprint_of_two_encoders_is_refused(tmp_path: Path):
    run(tmp_path, Encoder())
    with pytest.raises(DataError, match="each encoder needs a fingerprint of its own"):
        run(tmp_path, lambda texts: np.zeros((len(texts), 3)), [*TEXTS, "new"])


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be used \(Not a directory"):
        run(tmp_path / "file", Encoder())
    with pytest.raises(ValueError, match="0 texts and batch_size=2 must be at least 1"):
        run(tmp_path, Encoder(), [])
    with pytest.raises(ValueError, match="6 texts and batch_size=0 must be at least 1"):
        run(tmp_path, Encoder(), batch_size=0)
