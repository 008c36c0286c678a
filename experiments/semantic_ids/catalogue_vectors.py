"""The items of a command and a vector for each: from their texts, or from a file."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from experiments.semantic_ids.datasets import new_items
from experiments.semantic_ids.text_queries import without_titles
from recipe_jax.data.array_files import read_arrays, read_vectors
from recipe_jax.data.catalogues import (
    Catalogue,
    beauty_catalogue,
    catalogue_fingerprint,
    random_order,
    read_catalogue,
    recipe_catalogue,
)
from recipe_jax.data.files import DataError
from recipe_jax.data.pantrypilot import read_pantrypilot
from recipe_jax.data.text_vectors import TextVectorsConfig, fit_text_vectors
from recipe_jax.data.vector_cache import cached_vectors

SHARED: Mapping[str, Callable[[Path], Catalogue]] = {
    "beauty": beauty_catalogue,
    "recipes": recipe_catalogue,
    "recipe-titles": lambda folder: without_titles(recipe_catalogue(folder)),
    "pantrypilot": lambda folder: read_pantrypilot(folder).items,
}
"""Catalogues that `$RECIPE_JAX_DATA` holds; the last two are those that `search` asks of."""


class ItemVectors(NamedTuple):
    """What is quantized, in a random order: nothing can be read from where an item stands.

    Attributes:
        ids: of the items.
        vectors: a row for each.
        fingerprint: hash of both.
        is_new: items that nothing is fitted to.
    """

    ids: tuple[str, ...]
    vectors: Float32[np.ndarray, "n d"]
    fingerprint: str
    is_new: Bool[np.ndarray, "n"]

    @property
    def known(self) -> "ItemVectors":
        """All but the new ones."""
        kept = np.flatnonzero(~self.is_new)
        return _of_rows(tuple(self.ids[row] for row in kept), self.vectors[kept], self.is_new[kept])


def read_items(
    catalogue: str,
    *,
    id_field: str = "id",
    text_fields: tuple[str, ...] = ("title",),
    attribute_fields: tuple[str, ...] = (),
) -> Catalogue:
    """A catalogue in the order of its file.

    Args:
        catalogue: one of `SHARED`, from `$RECIPE_JAX_DATA`, or the path of a table.
        id_field: of a table of one's own, as `read_catalogue` takes it.
        text_fields: of a table of one's own.
        attribute_fields: of a table of one's own.

    Raises:
        DataError: a file that is not there or breaks a rule.
    """
    if catalogue in SHARED:
        root = os.environ.get("RECIPE_JAX_DATA")
        if not root:
            raise DataError(
                f"$RECIPE_JAX_DATA is not set: it names the folder that has {catalogue}"
            )
        return SHARED[catalogue](Path(root))
    return read_catalogue(
        Path(catalogue),
        id_field=id_field,
        text_fields=text_fields,
        attribute_fields=attribute_fields,
    )


def item_vectors(
    items: Catalogue,
    *,
    vectors: Path | None = None,
    encoder: Path | None = None,
    dim: int,
    seed: int,
    split: bool = False,
) -> ItemVectors:
    """A vector for each item: given, by a sentence encoder, or by TF-IDF and an SVD.

    Args:
        items: their texts are what is encoded.
        vectors: a file of vectors, as `read_vectors` takes it.
        encoder: the folder of a sentence encoder, in which vectors are kept: a killed run goes on
            from there.
        dim: width of vectors without an encoder.
        seed: of the order.
        split: whether one item in ten is new: TF-IDF and its SVD are fitted to the others' texts.

    Raises:
        DataError: a file that breaks a rule.
    """
    is_new = new_items(items.ids) if split else np.zeros(len(items.ids), bool)
    if vectors is not None:
        rows = read_vectors(vectors, items.ids)
    elif encoder is not None:
        from recipe_jax.sentence_encoding import load_sentence_encoder

        model = load_sentence_encoder(encoder)
        rows = cached_vectors(
            items.texts,
            model.encode,
            fingerprint=model.fingerprint,
            folder=encoder / "vectors",
        ).vectors
    else:
        known = [text for text, new in zip(items.texts, is_new, strict=True) if not new]
        rows = fit_text_vectors(known, TextVectorsConfig(dim=dim)).encode(items.texts)
    return _shuffled(items.ids, rows, is_new, seed)


def vectors_alone(path: Path, *, seed: int, split: bool = False) -> ItemVectors:
    """A file of vectors without a catalogue: its `ids` are the items, or the numbers of its rows.

    Args:
        path: the file.
        seed: of the order.
        split: whether one item in ten is new.

    Raises:
        DataError: a file that breaks a rule.
    """
    arrays = read_arrays(path)
    rows = np.atleast_1d(next(iter(arrays.values())))
    ids = tuple(map(str, arrays.get("ids", np.arange(len(rows))).tolist()))
    is_new = new_items(ids) if split else np.zeros(len(ids), bool)
    return _shuffled(ids, read_vectors(path, ids), is_new, seed)


def _shuffled(
    ids: tuple[str, ...],
    rows: Float32[np.ndarray, "n d"],
    is_new: Bool[np.ndarray, "n"],
    seed: int,
) -> ItemVectors:
    order = random_order(len(ids), seed=seed)
    ids = tuple(ids[row] for row in order.tolist())
    return _of_rows(ids, np.ascontiguousarray(rows[order]), is_new[order])


def _of_rows(
    ids: tuple[str, ...], rows: Float32[np.ndarray, "n d"], is_new: Bool[np.ndarray, "n"]
) -> ItemVectors:
    digest = hashlib.sha256(catalogue_fingerprint(ids, ids).encode() + rows.tobytes())
    return ItemVectors(ids, rows, digest.hexdigest(), is_new)
