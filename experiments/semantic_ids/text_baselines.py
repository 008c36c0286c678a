"""Search without training: by shared words, by vectors of texts, and both."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from experiments.semantic_ids.blending import blend
from experiments.semantic_ids.choices import RECORDS
from experiments.semantic_ids.text_queries import TaskName, TextScorer
from recipe_jax.data.bm25 import Bm25Config, fit_bm25
from recipe_jax.data.files import DataError
from recipe_jax.data.text_vectors import TextVectorsConfig, fit_text_vectors
from recipe_jax.data.vector_cache import cached_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextChoices:
    """Hyperparameters.

    Attributes:
        k1: of BM25.
        b: of BM25.
        dim: width of vectors of texts.
        blend: weights of standardized scores.
    """

    k1: float = 1.2
    b: float = 0.75
    dim: int = 512
    blend: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"bm25": 1.0, "nearest_texts": 0.5}
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NearestTexts:
    """Items by the cosine of their text's vector and the query's.

    Attributes:
        encode: texts to unit vectors, each by itself; zero where nothing of a text is known.
        vectors: every vector once: a product of matrices may round equal columns differently.
        row_of: the vector of each item.
    """

    encode: Callable[[Sequence[str]], Float32[np.ndarray, "u e"]]
    vectors: Float32[np.ndarray, "distinct e"]
    row_of: Int[np.ndarray, "n"]

    def scores(self, queries: Sequence[str]) -> Float32[np.ndarray, "u n"]:
        """Cosines; zeros for a query of which nothing is known."""
        return (self.encode(queries) @ self.vectors.T)[:, self.row_of]


def nearest_texts(
    encode: Callable[[Sequence[str]], Float32[np.ndarray, "u e"]],
    vectors: Float32[np.ndarray, "n e"],
) -> NearestTexts:
    """Items with these vectors, which `encode` gave of their texts."""
    slots: dict[bytes, int] = {}
    row_of = np.array([slots.setdefault(row.tobytes(), len(slots)) for row in vectors])
    first = np.unique(row_of, return_index=True)[1]
    return NearestTexts(encode=encode, vectors=vectors[first], row_of=row_of)


def fit_nearest_texts(texts: Sequence[str], *, dim: int) -> NearestTexts:
    """By TF-IDF and an SVD of the texts themselves."""
    fitted = fit_text_vectors(texts, TextVectorsConfig(dim=dim))
    return nearest_texts(fitted.encode, fitted.encode(texts))


def encoded_texts(texts: Sequence[str], encoder: Path) -> NearestTexts:
    """By a sentence encoder, whose vectors are kept in its folder."""
    from recipe_jax.sentence_encoding import load_sentence_encoder

    model = load_sentence_encoder(encoder)

    def encode(texts: Sequence[str]) -> Float32[np.ndarray, "u e"]:
        rows = model.encode(list(texts))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(lengths > 0, lengths, 1.0)

    kept = cached_vectors(
        texts, encode, fingerprint=f"{model.fingerprint} unit", folder=encoder / "vectors"
    )
    return nearest_texts(encode, kept.vectors)


def fit_text_baselines(
    texts: Sequence[str], choices: TextChoices, *, encoder: Path | None = None
) -> dict[str, TextScorer]:
    """Every baseline by name: what a blend may weigh, and BM25 with its usual settings.

    Args:
        texts: of the items.
        choices: hyperparameters.
        encoder: the folder of a sentence encoder, for one baseline more.
    """
    found: dict[str, TextScorer] = {
        "bm25": fit_bm25(texts, Bm25Config(k1=choices.k1, b=choices.b)).scores,
        "nearest_texts": fit_nearest_texts(texts, dim=choices.dim).scores,
        "bm25_as_usual": fit_bm25(texts).scores,
    }
    if encoder is not None:
        found["nearest_sentences"] = encoded_texts(texts, encoder).scores
    return found


def blended(scorers: Mapping[str, TextScorer], choices: TextChoices) -> TextScorer:
    """The blend that was chosen.

    Raises:
        ValueError: a part of it that is not there.
    """
    return blend(scorers, {name: weight for name, weight in choices.blend.items() if weight})


def choices_path(task: TaskName) -> Path:
    """Where the record of what was chosen for the items of a task lies."""
    items = "recipe_titles" if task == "recipe-titles" else "pantrypilot"
    return RECORDS / f"semantic_ids_text_choices_{items}.json"


def read_text_choices(path: Path) -> TextChoices:
    """Read the record of what was chosen.

    Raises:
        DataError: no record there, or one of other keys.
    """
    try:
        return TextChoices(**json.loads(path.read_text())["choices"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `search --choose` first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a record of choices for text ({error})") from error


def as_json(choices: TextChoices) -> dict[str, Any]:
    """Choices as `read_text_choices` reads them."""
    return dataclasses.asdict(choices)
