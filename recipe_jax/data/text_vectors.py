"""Vectors of texts without a model: TF-IDF, then a truncated singular value decomposition."""

import dataclasses
import functools
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from recipe_jax.data.array_files import read_arrays
from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.unit_rows import unit_rows

WORD = r"\b\w+\b"
"""What a word is, as scikit-learn takes it: a run of letters and digits; case is lost before."""

_FORMAT = 1
_ROUNDING = 1e-5
"""Projections of unit vectors that are shorter than this are errors of float32."""
_ARRAYS = ("settings", "terms", "inverse_frequencies", "term_vectors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextVectorsConfig:
    """How texts become vectors.

    The defaults were chosen by the nearest items to a user's last few on Beauty
    (`benchmarks/records/text_vectors.json`): pairs of words make them worse at the same width, more
    width makes them better and takes longer.

    Attributes:
        dim: width of a vector; less where there are fewer terms or fewer texts.
        max_words: a term is up to this many words in a row.
        min_texts: terms in fewer texts than this are left out.
        num_iterations: power iterations of the randomized decomposition.
        seed: of the decomposition; the same texts and seed give the same vectors.
    """

    dim: int = 512
    max_words: int = 1
    min_texts: int = 2
    num_iterations: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "max_words", "min_texts", "num_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be from 0 to 2**32 - 1")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextVectors:
    """Latent semantic analysis (Deerwester et al. 1990) of the texts it was fitted to.

    Attributes:
        cfg: how it was fitted.
        terms: words, or words in a row with spaces between them, in alphabetical order.
        inverse_frequencies: `1 + log((1 + texts) / (1 + texts with the term))`.
        term_vectors: of which a text's vector is the weighted sum: right singular vectors of the
            matrix of weights in columns, those of the largest singular values first.
        explained_variance: what share of the variance of the TF-IDF vectors their projections have.
    """

    cfg: TextVectorsConfig
    terms: tuple[str, ...]
    inverse_frequencies: Float32[np.ndarray, "v"]
    term_vectors: Float32[np.ndarray, "v e"]
    explained_variance: float

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """Unit vectors of any texts, each by itself: of an item, a new item or a query.

        A text without a known term, or at a right angle to all that is kept of the terms, has the
        zero vector.
        """
        vectors = self._vectorizer.transform(texts) @ self.term_vectors
        return unit_rows(vectors, least=_ROUNDING)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what was fitted, for caches; whenever it is written, it stays the same."""
        digest = hashlib.sha256()
        for name, array in sorted(_arrays(self).items()):
            digest.update(f"{name} {array.dtype} {array.shape};".encode() + array.tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        vectorizer = _make_vectorizer(self.cfg, vocabulary=self.terms)
        vectorizer.idf_ = self.inverse_frequencies
        return vectorizer


def fit_text_vectors(
    texts: Sequence[str],
    cfg: TextVectorsConfig = TextVectorsConfig(),
) -> TextVectors:
    """Fit to the texts of a catalogue.

    Words are runs of letters and digits without case; a term that a text holds `c` times counts
    `1 + log c` times its inverse frequency, and each text's weights have unit length.

    Raises:
        ValueError: if fewer than two terms are in `min_texts` of the texts.
    """
    vectorizer = _make_vectorizer(cfg, min_df=cfg.min_texts)
    try:
        weights: Any = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise _too_few_terms(cfg, texts) from error
    if weights.shape[1] < 2:
        raise _too_few_terms(cfg, texts)
    svd: Any = TruncatedSVD(
        min(cfg.dim, *weights.shape), n_iter=cfg.num_iterations, random_state=cfg.seed
    )
    with np.errstate(invalid="ignore"):  # texts that are all alike have no variance
        svd.fit(weights)
    explained_variance = float(svd.explained_variance_ratio_.sum())
    return TextVectors(
        cfg=cfg,
        terms=tuple(vectorizer.get_feature_names_out()),
        inverse_frequencies=vectorizer.idf_.astype(np.float32),
        term_vectors=np.ascontiguousarray(svd.components_.T, np.float32),
        explained_variance=1.0 if math.isnan(explained_variance) else explained_variance,
    )


def save_text_vectors(path: Path, fitted: TextVectors) -> None:
    """Write an `.npz` file, whole or not at all."""
    file = io.BytesIO()
    np.savez(file, **_arrays(fitted))  # pyright: ignore[reportArgumentType]
    replace_file(path, file.getvalue())


def load_text_vectors(path: Path) -> TextVectors:
    """Read what `save_text_vectors` wrote.

    Raises:
        DataError: a missing, damaged or foreign file.
    """
    arrays = read_arrays(path)
    if set(arrays) != set(_ARRAYS):
        raise DataError(f"{path}: holds {sorted(arrays)}, must hold {sorted(_ARRAYS)}")
    try:
        settings = json.loads(arrays["settings"].tobytes())
        terms = tuple(arrays["terms"].tobytes().decode().split("\n"))
        if settings["format"] != _FORMAT:
            raise DataError(f"{path}: format={settings['format']!r} must be {_FORMAT}")
        cfg = TextVectorsConfig(**settings["config"])
        explained_variance = float(settings["explained_variance"])
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: settings cannot be read ({error})") from error
    frequencies, term_vectors = arrays["inverse_frequencies"], arrays["term_vectors"]
    width = term_vectors.shape[1] if term_vectors.ndim == 2 else 1
    for name, shape in {
        "inverse_frequencies": (len(terms),),
        "term_vectors": (len(terms), width),
    }.items():
        found = arrays[name]
        if found.dtype != np.float32 or found.shape != shape or not np.isfinite(found).all():
            raise DataError(
                f"{path}: {name} is {found.dtype}{list(found.shape)}, must be finite "
                f"float32{list(shape)}"
            )
    return TextVectors(
        cfg=cfg,
        terms=terms,
        inverse_frequencies=frequencies,
        term_vectors=term_vectors,
        explained_variance=explained_variance,
    )


def _make_vectorizer(cfg: TextVectorsConfig, **options: Any) -> TfidfVectorizer:
    return TfidfVectorizer(
        ngram_range=(1, cfg.max_words),
        token_pattern=WORD,
        sublinear_tf=True,
        dtype=np.float32,  # pyright: ignore[reportArgumentType]
        **options,
    )


def _too_few_terms(cfg: TextVectorsConfig, texts: Sequence[str]) -> ValueError:
    return ValueError(
        f"min_texts={cfg.min_texts}: fewer than two words are in that many of {len(texts)} texts; "
        "lower it"
    )


def _arrays(fitted: TextVectors) -> dict[str, np.ndarray]:
    settings = {
        "format": _FORMAT,
        "config": dataclasses.asdict(fitted.cfg),
        "explained_variance": fitted.explained_variance,
    }
    return {
        "settings": np.frombuffer(json.dumps(settings).encode(), np.uint8),
        "terms": np.frombuffer("\n".join(fitted.terms).encode(), np.uint8),
        "inverse_frequencies": fitted.inverse_frequencies,
        "term_vectors": fitted.term_vectors,
    }
