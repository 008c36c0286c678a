"""Vectors of texts, computed once and kept: a killed run goes on where it was.

A cache is a folder with one folder per encoder.  Each file there holds a batch: the SHA-256 of each
text and its vector, under the SHA-256 of the file's bytes as its name.  So a text is found whatever
catalogue it is in and wherever it stands there, and a file that was damaged is known by its name.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from safetensors.numpy import load, save

from recipe_jax.data.files import DataError, replace_file

_SUFFIX = ".safetensors"
_DIGEST_BYTES = 32


class CachedVectors(NamedTuple):
    """What `cached_vectors` found or computed.

    Attributes:
        vectors: a row for each text.
        num_found: distinct texts whose vectors were in the cache.
        num_computed: distinct texts whose vectors were not.
        damaged: names of files that had changed since they were written; they were removed.
    """

    vectors: Float32[np.ndarray, "n e"]
    num_found: int
    num_computed: int
    damaged: tuple[str, ...]


def cached_vectors(
    texts: Sequence[str],
    encode: Callable[[list[str]], Float[np.ndarray, "k e"]],
    *,
    fingerprint: str,
    folder: Path,
    batch_size: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> CachedVectors:
    """Vectors of texts, from the cache where they are there.

    What is missing is encoded a batch at a time, long texts first, and each batch is in the cache
    before the next begins.  Several processes may fill one cache.

    Args:
        texts: not empty; those that are equal are encoded once.
        encode: gives a vector for each text, whatever other texts stand beside it.
        fingerprint: of the encoder; another one is another function.
        folder: created if missing.
        batch_size: texts that are encoded together, and lost together if the run is killed.
        progress: is told after each batch how many of the missing texts are done, and of how many.

    Raises:
        DataError: vectors that are not finite, of another number or width than they must be, or a
            folder that cannot be written.
    """
    if not texts or batch_size < 1:
        raise ValueError(f"{len(texts)} texts and batch_size={batch_size} must be at least 1")
    place = folder / hashlib.sha256(fingerprint.encode()).hexdigest()
    distinct = list(dict.fromkeys(texts))
    slots = {hashlib.sha256(text.encode()).digest(): i for i, text in enumerate(distinct)}
    rows = _Rows(len(distinct), place)
    try:
        damaged = _find(place, slots, rows)
        missing = [distinct[slot] for slot in np.flatnonzero(~rows.is_set)]
        missing.sort(key=lambda text: (-len(text), text))
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            digests = [hashlib.sha256(text.encode()).digest() for text in batch]
            vectors = _checked(np.asarray(encode(batch)), batch, texts)
            rows.put([slots[digest] for digest in digests], vectors)
            place.mkdir(parents=True, exist_ok=True)
            _write_part(place, digests, vectors)
            if progress is not None:
                progress(start + len(batch), len(missing))
    except OSError as error:
        raise DataError(f"{place}: cannot be used ({error.strerror or error})") from error
    vectors = rows.vectors
    if len(distinct) < len(texts):
        slot_of = {text: slot for slot, text in enumerate(distinct)}
        vectors = vectors[[slot_of[text] for text in texts]]
    return CachedVectors(vectors, len(distinct) - len(missing), len(missing), damaged)


class _Rows:
    """A matrix whose rows come in any order; the first that come say how wide it is."""

    def __init__(self, num_rows: int, place: Path):
        self.vectors = np.empty((num_rows, 0), np.float32)
        self.is_set = np.zeros(num_rows, bool)
        self.place = place

    def put(self, rows: list[int], vectors: Float32[np.ndarray, "k e"]) -> None:
        if not self.is_set.any():
            self.vectors = np.empty((len(self.is_set), vectors.shape[1]), np.float32)
        if vectors.shape[1] != self.vectors.shape[1]:
            raise DataError(
                f"{self.place}: vectors of {vectors.shape[1]} and of {self.vectors.shape[1]} "
                "numbers; each encoder needs a fingerprint of its own"
            )
        self.vectors[rows] = vectors
        self.is_set[rows] = True


def _find(place: Path, slots: Mapping[bytes, int], rows: _Rows) -> tuple[str, ...]:
    """Set the rows whose vectors are there, and remove the files that were damaged."""
    damaged = []
    for path in sorted(place.glob(f"*{_SUFFIX}")):
        part = _read_part(path)
        if part is None:
            damaged.append(path.name)
            path.unlink(missing_ok=True)
            continue
        digests, vectors = part
        found = np.array([slots.get(digest.tobytes(), -1) for digest in digests])
        if (found >= 0).any():
            rows.put(found[found >= 0].tolist(), vectors[found >= 0])
    return tuple(damaged)


def _checked(
    vectors: np.ndarray, batch: list[str], texts: Sequence[str]
) -> Float32[np.ndarray, "k e"]:
    if vectors.ndim != 2 or len(vectors) != len(batch) or vectors.dtype.kind != "f":
        raise DataError(
            f"encode gave {vectors.dtype}{list(vectors.shape)} for {len(batch)} texts, must give a "
            "floating-point vector for each"
        )
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        vectors = np.ascontiguousarray(vectors, np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        text = batch[int(np.argmin(finite))]
        raise DataError(
            f"row {texts.index(text) + 1}: encode gave a vector that is not finite for {text!r:.60}"
        )
    return vectors


def _write_part(place: Path, digests: list[bytes], vectors: Float32[np.ndarray, "k e"]) -> None:
    hashes = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
    content = save({"digests": hashes, "vectors": vectors})
    replace_file(place / f"{hashlib.sha256(content).hexdigest()}{_SUFFIX}", content)


def _read_part(
    path: Path,
) -> tuple[UInt8[np.ndarray, "k 32"], Float32[np.ndarray, "k e"]] | None:
    """Digests and vectors, or None where the bytes are not those that were written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # another process found it damaged, too
        return None
    if hashlib.sha256(content).hexdigest() != path.name.removesuffix(_SUFFIX):
        return None
    arrays = load(content)
    return arrays["digests"], arrays["vectors"]
