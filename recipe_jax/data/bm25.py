"""Okapi BM25: texts ranked by the words that a query shares with them, without a model."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Float32
from sklearn.feature_extraction.text import CountVectorizer

from recipe_jax.data.text_vectors import WORD

# Words by texts: a sparse matrix of scipy, whose types say little.
WordMatrix: TypeAlias = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bm25Config:
    """How much a word of a text counts.

    Attributes:
        k1: how fast a word's repetitions stop to count; with 0 only its presence does.
        b: how much the length of a text is held against it: from 0, not at all, to 1.
    """

    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.k1 < float("inf"):
            raise ValueError(f"k1={self.k1} must be finite and not negative")
        if not 0 <= self.b <= 1:
            raise ValueError(f"b={self.b} must be from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bm25:
    """What every word adds to the score of every text.

    Attributes:
        terms: the words of the texts, in alphabetical order.
        text_counts: a row for each text, a column for each word: how often the one has the other.
        weights: a row for each word, a column for each text; zero where the text has not the word.
    """

    terms: tuple[str, ...]
    text_counts: WordMatrix
    weights: WordMatrix
    _counter: CountVectorizer

    def scores(self, queries: Sequence[str]) -> Float32[np.ndarray, "u n"]:
        """The score of every text for each query, never negative.

        A word that a query repeats counts as often; one that no text has adds nothing.  Texts of
        the same words, each as often, have the same score to the last bit.
        """
        return self.scores_of_counts(self.counts(queries))

    def counts(self, texts: Sequence[str]) -> WordMatrix:
        """How often each text has each of `terms`: a row for each text."""
        return scipy.sparse.csr_array(self._counter.transform(texts))

    def scores_of_counts(self, counts: WordMatrix) -> Float32[np.ndarray, "u n"]:
        """The scores for queries that are given as weights of `terms`, whole numbers or not."""
        return (counts @ self.weights).toarray()

    def with_settings(self, cfg: Bm25Config) -> "Bm25":
        """The same texts, weighed otherwise."""
        return dataclasses.replace(self, weights=_weights(self.text_counts, cfg))


def fit_bm25(texts: Sequence[str], cfg: Bm25Config = Bm25Config()) -> Bm25:
    """Count the words of texts (Robertson & Zaragoza 2009, doi:10.1561/1500000019, eq. 3.15).

    A word that is `c` times in a text of `length` words adds `c / (c + k1 (1 - b + b length /
    mean length))` of its inverse frequency, `log(1 + (n - m + 1/2) / (m + 1/2))` where `m` of the
    `n` texts have it.  The 1 in it keeps a word of most texts from counting against those that
    have it.  Words are those of `text_vectors`: runs of letters and digits without case.

    Args:
        texts: what is to be found.
        cfg: how much a word counts.

    Raises:
        ValueError: no text, or none that has a word.
    """
    counter = CountVectorizer(
        token_pattern=WORD,
        dtype=np.float32,  # pyright: ignore[reportArgumentType]
    )
    try:
        counted: Any = counter.fit_transform(texts)
    except ValueError as error:  # an empty vocabulary
        raise ValueError(f"{len(texts)} texts hold no word, must hold one at least") from error
    counts = scipy.sparse.csr_array(counted)
    return Bm25(
        terms=tuple(counter.get_feature_names_out()),
        text_counts=counts,
        weights=_weights(counts, cfg),
        _counter=counter,
    )


def _weights(counts: WordMatrix, cfg: Bm25Config) -> WordMatrix:
    num_texts, num_words = counts.shape
    lengths = counts.sum(axis=1)
    num_with = np.bincount(counts.indices, minlength=num_words)
    inverse_frequencies = np.log1p((num_texts - num_with + 0.5) / (num_with + 0.5))
    slowness = cfg.k1 * (1 - cfg.b + cfg.b * lengths / lengths.mean())
    row_of_entry = np.repeat(np.arange(num_texts), np.diff(counts.indptr))
    saturated = counts.data / (counts.data + slowness[row_of_entry])
    added = (saturated * inverse_frequencies[counts.indices]).astype(np.float32)
    weights = scipy.sparse.csr_array((added, counts.indices, counts.indptr), counts.shape)
    return scipy.sparse.csr_array(weights.T)
