"""Vectors of items from their texts and from who took what, for `quantize --vectors`.

python -m experiments.semantic_ids vectors --catalogue beauty --histories beauty --out vectors.npz

Codes of such vectors say which items people take together, and not only which are described alike.
Of each user the items that are left out for validation and test are not looked at.  Histories tell
of every item in them: the vectors are not for `quantize --new-items`.  The last line on stdout is
one JSON object.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from experiments.commands import check_least, check_seed
from experiments.semantic_ids.catalogue_vectors import read_items
from experiments.semantic_ids.datasets import read_dataset
from recipe_jax.data.catalogues import Catalogue
from recipe_jax.data.co_occurrence import co_occurrence_vectors
from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.text_vectors import TextVectorsConfig, fit_text_vectors
from recipe_jax.data.unit_rows import unit_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which vectors stand side by side.

    Attributes:
        catalogue: beauty or recipes, or a table of one's own: .jsonl, plain or compressed, or
            .parquet.
        id_field: of a table of one's own: what tells items apart.
        text_fields: of a table of one's own: what is known of an item in words.
        histories: beauty or mealrec, or a file with one line a user, `user item item …` in order.
        items: which get vectors: all of the catalogue, among which those of histories must be, or
            those of histories alone, of which one that is not in the catalogue has no text.
        out: the .npz file to write.
        dim: width of the vectors of texts, by TF-IDF and an SVD.
        history_dim: width of the vectors of histories.
        text_weight: of the vectors of texts beside the others.
        decay: what two items of a history count less with each step between them.
        seed: of what is left out of sets, and of the decomposition.
    """

    catalogue: str = "beauty"
    id_field: str = "id"
    text_fields: tuple[str, ...] = ("title",)
    histories: str = "beauty"
    items: Literal["catalogue", "histories"] = "catalogue"
    out: Path = Path("runs/vectors.npz")
    dim: int = 256
    history_dim: int = 128
    text_weight: float = 1.0
    decay: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, dim=1, history_dim=1, text_weight=0.0)
        check_seed(self.seed)
        if self.out.suffix != ".npz":
            raise ValueError(f"--out {self.out} must end in .npz")


def run(flags: Flags) -> dict[str, Any]:
    """Make both, write them side by side: each of length one, texts times their weight."""
    catalogue = read_items(flags.catalogue, id_field=flags.id_field, text_fields=flags.text_fields)
    dataset = read_dataset(flags.histories, seed=flags.seed)
    names = catalogue.ids if flags.items == "catalogue" else dataset.item_ids
    row_of = {name: row for row, name in enumerate(names)}
    missing = [name for name in dataset.item_ids if name not in row_of]
    if missing:
        raise DataError(
            f"{flags.histories}: item {missing[0]!r} and {len(missing) - 1} others are not in "
            f"{flags.catalogue}: --items histories gives them vectors without a text"
        )
    texts = text_vectors(catalogue, names, dim=flags.dim)
    together = co_occurrence_vectors(
        dataset.split.train,
        num_items=len(dataset.item_ids),
        dim=flags.history_dim,
        decay=flags.decay,
        seed=flags.seed,
    )
    taken = np.zeros((len(names), flags.history_dim), np.float32)
    taken[[row_of[name] for name in dataset.item_ids]] = together
    vectors = np.concatenate([taken, np.float32(flags.text_weight) * texts], axis=1)
    content = io.BytesIO()
    np.savez(content, ids=np.array(names, str), vectors=vectors)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(flags.out, content.getvalue())
    return {
        "n": len(names),
        "dim": vectors.shape[1],
        "items_without_history": int((~taken.any(axis=1)).sum()),
        "items_without_text": int((~texts.any(axis=1)).sum()),
    }


def text_vectors(
    catalogue: Catalogue, names: Sequence[str], *, dim: int
) -> Float32[np.ndarray, "n e"]:
    """Vectors of length one of the items' texts; zeros for an item that is not in the catalogue.

    Args:
        catalogue: TF-IDF and its SVD are fitted to all texts of it.
        names: the items.
        dim: width of the vectors.

    Raises:
        DataError: if none of the items is in the catalogue.
    """
    row_of = {name: row for row, name in enumerate(catalogue.ids)}
    has_text = np.array([name in row_of for name in names])
    if not has_text.any():
        raise DataError(f"item {names[0]!r} is not in the catalogue, nor is any of the others")
    found = [catalogue.texts[row_of[name]] for name in names if name in row_of]
    texts = fit_text_vectors(catalogue.texts, TextVectorsConfig(dim=dim)).encode(found)
    deviation = texts.std(axis=0)
    texts = (texts - texts.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    vectors = np.zeros((len(names), texts.shape[1]), np.float32)
    vectors[has_text] = unit_rows(texts, least=1e-6)
    return vectors
