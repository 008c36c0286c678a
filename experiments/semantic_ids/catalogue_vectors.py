"""Vectors of a catalogue's items: from a file, or made of the texts of the Beauty items."""

import csv
import gzip
import hashlib
import html
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from recipe_jax.data.files import DataError


class ItemVectors(NamedTuple):
    """What is quantized.

    Attributes:
        ids: of the items.
        vectors: a row for each.
        fingerprint: hash of both.
    """

    ids: tuple[str, ...]
    vectors: Float32[np.ndarray, "n d"]
    fingerprint: str


def read_item_vectors(catalogue: str, vectors: Path | None, *, dim: int, seed: int) -> ItemVectors:
    """The items in a random order, so that nothing can be read from where an item stands.

    Args:
        catalogue: `beauty`; any name where `vectors` are given.
        vectors: an `.npy` file with a row of float32 for each item, whose number is its id.
        dim: width of vectors that are made here.
        seed: of the order.

    Raises:
        DataError: a file that breaks a rule.
    """
    if vectors is not None:
        rows = _read_matrix(vectors)
        ids = tuple(map(str, range(len(rows))))
    elif catalogue == "beauty":
        ids, texts = _beauty_texts()
        rows = text_vectors(texts, dim=dim)
    else:
        raise DataError(f"--catalogue {catalogue}: only beauty has texts here; give --vectors")
    order = np.random.default_rng(seed).permutation(len(rows))
    ids, rows = tuple(ids[row] for row in order), np.ascontiguousarray(rows[order])
    digest = hashlib.sha256("\n".join(ids).encode())
    digest.update(rows.tobytes())
    return ItemVectors(ids, rows, digest.hexdigest())


def text_vectors(texts: list[str], *, dim: int) -> Float32[np.ndarray, "n d"]:
    """TF-IDF, reduced by a singular value decomposition to rows of length one."""
    words = TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(texts)
    reduced = TruncatedSVD(dim, random_state=0).fit_transform(words)
    lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
    return (reduced / np.maximum(lengths, 1e-9)).astype(np.float32)


def _read_matrix(path: Path) -> Float32[np.ndarray, "n d"]:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not readable as .npy ({error})") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        raise DataError(f"{path}: must hold one matrix of floats, a row for each item")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise DataError(f"{path}: row {int(np.argmin(finite))} holds a value that is not finite")
    return rows.astype(np.float32)


def _beauty_texts() -> tuple[tuple[str, ...], list[str]]:
    """Title, brand and categories of each item; only the title where a field is missing."""
    root = os.environ.get("RECIPE_JAX_DATA")
    if not root:
        raise DataError("RECIPE_JAX_DATA is not set: it names the folder that holds amazon_beauty")
    path = Path(root) / "amazon_beauty" / "items_beauty.tsv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = io.StringIO(file.read())
    table = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [
        html.unescape(" ".join(row[field] for field in ("title", "brand", "categories")))
        for row in table
    ]
    return tuple(row["item_id"] for row in table), texts
