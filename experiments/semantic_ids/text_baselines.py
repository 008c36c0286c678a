"""Search without training: by shared words, by vectors of texts, and both."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Int

from experiments.semantic_ids.blending import blend
from experiments.semantic_ids.choices import RECORDS
from experiments.semantic_ids.text_queries import TaskName, TextQueries, TextScorer
from recipe_jax.data.bm25 import Bm25, Bm25Config, WordMatrix, fit_bm25
from recipe_jax.data.files import DataError
from recipe_jax.data.text_vectors import TextVectorsConfig, fit_text_vectors
from recipe_jax.data.unit_rows import unit_rows
from recipe_jax.data.vector_cache import cached_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextChoices:
    """Hyperparameters.  The defaults are those chosen for PantryPilot's recipes.

    Attributes:
        k1: of BM25.
        b: of BM25.
        dim: width of vectors of texts.
        expanded_k1: of BM25 for queries that were expanded, which are long.
        expanded_b: the same.
        num_neighbours: known queries that a new one is expanded by.
        expansion: weight of their items' words beside the query's own.
        blend: weights of standardized scores.
    """

    k1: float = 0.6
    b: float = 0.75
    dim: int = 128
    expanded_k1: float = 0.3
    expanded_b: float = 1.0
    num_neighbours: int = 30
    expansion: float = 0.3
    blend: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"bm25": 1.0, "nearest_texts": 1.0}
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
        return unit_rows(model.encode(list(texts)))

    kept = cached_vectors(
        texts, encode, fingerprint=f"{model.fingerprint} unit", folder=encoder / "vectors"
    )
    return nearest_texts(encode, kept.vectors)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExpandedBm25:
    """BM25 of a query and of the items that similar known queries were for.

    Relevance feedback (Rocchio 1971) from the nearest neighbours among known queries: what a system
    can do that learns from the same pairs of query and item, without a model.

    Attributes:
        items: BM25 of the items' texts.
        known: BM25 of the known queries.
        words: a row for each known query: which words its item has.
        num_neighbours: so many known queries are read.
        expansion: weight of their items' words, which are the mean over them by their scores.
    """

    items: Bm25
    known: Bm25
    words: WordMatrix
    num_neighbours: int
    expansion: float

    def scores(self, queries: Sequence[str]) -> Float32[np.ndarray, "u n"]:
        """The score of every item for each query."""
        similar = self.known.scores(queries)
        for row in similar:
            found = np.flatnonzero(row)
            row[found[np.argsort(-row[found], kind="stable")[self.num_neighbours :]]] = 0.0
        neighbours = scipy.sparse.csr_array(similar)
        totals = neighbours.sum(axis=1)
        neighbours.data *= self.expansion / np.repeat(totals, np.diff(neighbours.indptr))
        return self.items.scores_of_counts(self.items.counts(queries) + neighbours @ self.words)


def fit_expanded_bm25(asked: TextQueries, choices: TextChoices) -> ExpandedBm25:
    """BM25 with the words that belong to the words of known queries.

    Raises:
        ValueError: no known queries.
    """
    items = fit_bm25(asked.items.texts, Bm25Config(k1=choices.expanded_k1, b=choices.expanded_b))
    words = items.text_counts[asked.known.targets]
    words.data = np.ones_like(words.data)
    return ExpandedBm25(
        items=items,
        known=fit_bm25(asked.known.queries),
        words=words,
        num_neighbours=choices.num_neighbours,
        expansion=choices.expansion,
    )


def fit_text_baselines(
    asked: TextQueries, choices: TextChoices, *, encoder: Path | None = None
) -> dict[str, TextScorer]:
    """Every baseline by name: what a blend may weigh, and BM25 with its usual settings.

    Args:
        asked: items, and known queries if there are any: what is asked is not looked at.
        choices: hyperparameters.
        encoder: the folder of a sentence encoder, for one baseline more.
    """
    texts = asked.items.texts
    usual = fit_bm25(texts)
    found: dict[str, TextScorer] = {
        "bm25_as_usual": usual.scores,
        "bm25": usual.with_settings(Bm25Config(k1=choices.k1, b=choices.b)).scores,
        "nearest_texts": fit_nearest_texts(texts, dim=choices.dim).scores,
    }
    if asked.known.queries:
        found["bm25_expanded"] = fit_expanded_bm25(asked, choices).scores
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
