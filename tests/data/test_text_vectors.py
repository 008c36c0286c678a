"""TF-IDF and its decomposition against formulas in numpy; files that come back the same."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from recipe_jax.data.catalogues import beauty_catalogue
from recipe_jax.data.files import DataError
from recipe_jax.data.text_vectors import (
    TextVectorsConfig,
    fit_text_vectors,
    load_text_vectors,
    save_text_vectors,
)

TEXTS = [
    "Red nail polish, red!",
    "red lip gloss",
    "Blue nail polish",
    "hair spray for red hair",
    "blue hair dye",
    "lip balm and lip gloss",
    "café soap",
]
CFG = TextVectorsConfig(dim=3, min_texts=1)


def tfidf(texts: list[str], min_texts: int) -> tuple[list[str], np.ndarray]:
    """Sublinear counts times smooth inverse frequencies, rows of unit length."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    frequency = {w: sum(w in row for row in words) for w in sorted({w for r in words for w in r})}
    terms = [term for term, count in frequency.items() if count >= min_texts]
    rows = np.zeros((len(texts), len(terms)))
    for i, row in enumerate(words):
        for j, term in enumerate(terms):
            if count := row.count(term):
                inverse = 1 + math.log((1 + len(texts)) / (1 + frequency[term]))
                rows[i, j] = (1 + math.log(count)) * inverse
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return terms, rows / np.where(lengths > 0, lengths, 1)


@pytest.mark.parametrize("min_texts", [1, 2])
def test_vectors_are_the_projections_on_the_largest_singular_vectors(min_texts):
    fitted = fit_text_vectors(TEXTS, TextVectorsConfig(dim=3, min_texts=min_texts))
    terms, weights = tfidf(TEXTS, min_texts)
    assert fitted.terms == tuple(terms)
    _, _, right = np.linalg.svd(weights)
    projected = weights @ right[:3].T
    share = projected.var(axis=0).sum() / weights.var(axis=0).sum()
    assert fitted.explained_variance == pytest.approx(share, abs=1e-5)
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    expected = projected / np.where(lengths > 1e-6, lengths, 1)
    found = fitted.encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_at_full_width_angles_are_those_of_the_weights():
    fitted = fit_text_vectors(TEXTS, TextVectorsConfig(dim=100, min_texts=1))
    found, (_, weights) = fitted.encode(TEXTS), tfidf(TEXTS, 1)
    assert found.shape == (7, 7) and fitted.explained_variance == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found @ found.T, weights @ weights.T, atol=1e-5)


def test_each_text_is_encoded_by_itself():
    fitted = fit_text_vectors(TEXTS, CFG)
    together = fitted.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(fitted.encode([text])[0], vector)
    np.testing.assert_array_equal(fitted.encode(TEXTS[::-1]), together[::-1])
    np.testing.assert_allclose(np.linalg.norm(together[:-1], axis=1), 1, atol=1e-6)


def test_a_text_of_which_nothing_is_known_has_the_zero_vector():
    fitted = fit_text_vectors(TEXTS, CFG)
    assert (fitted.encode(["", "?!", "unheard of"]) == 0).all()
    # It shares no word with the others, which three directions are hardly enough for.
    assert (fitted.encode(["café soap"]) == 0).all()
    np.testing.assert_array_equal(fitted.encode(["RED zebra"]), fitted.encode(["red"]))


def test_words_in_a_row_are_terms_if_asked_for():
    fitted = fit_text_vectors(TEXTS, TextVectorsConfig(max_words=2, min_texts=2))
    pairs = {term for term in fitted.terms if " " in term}
    assert pairs == {"nail polish", "lip gloss"}
    one, other = fitted.encode(["nail polish", "polish nail"])
    assert not np.allclose(one, other)


def test_the_same_texts_and_seed_give_the_same_vectors():
    texts = [f"{i % 7} {i % 11} {i % 13} {i % 17}" for i in range(300)]

    def fit(seed):
        return fit_text_vectors(texts, TextVectorsConfig(dim=8, num_iterations=1, seed=seed))

    one, again, other = fit(0), fit(0), fit(1)
    np.testing.assert_array_equal(one.term_vectors, again.term_vectors)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert not np.array_equal(one.term_vectors, other.term_vectors)


@pytest.mark.filterwarnings("error")
def test_texts_that_are_all_alike_are_explained_in_full():
    fitted = fit_text_vectors(["olive soap"] * 3)
    assert fitted.explained_variance == 1.0
    np.testing.assert_allclose(np.linalg.norm(fitted.encode(["soap"])), 1.0)


def test_what_is_written_comes_back(tmp_path: Path):
    fitted = fit_text_vectors(TEXTS, TextVectorsConfig(dim=3, max_words=2))
    save_text_vectors(tmp_path / "words.npz", fitted)
    again = load_text_vectors(tmp_path / "words.npz")
    assert again.cfg == fitted.cfg and again.terms == fitted.terms
    assert again.fingerprint == fitted.fingerprint
    assert again.explained_variance == fitted.explained_variance
    texts = [*TEXTS, "nail polish of a new item"]
    np.testing.assert_array_equal(again.encode(texts), fitted.encode(texts))


def changed(path: Path, **arrays: np.ndarray) -> None:
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files}
    np.savez(path, **kept | arrays)


def settings(**changes) -> dict[str, np.ndarray]:
    value = {"format": 1, "config": {}, "explained_variance": 0.5} | changes
    return {"settings": np.frombuffer(json.dumps(value).encode(), np.uint8)}


BROKEN = {
    "not a whole .npy or .npz file": lambda p: p.write_bytes(p.read_bytes()[:-40]),
    "no such file": lambda p: p.unlink(),
    "holds ['inverse_frequencies', 'more', 'settings', 'term_vectors', 'terms'], must hold": (
        lambda p: changed(p, more=np.zeros(1))
    ),
    "format=2 must be 1": lambda p: changed(p, **settings(format=2)),
    "settings cannot be read (dim=0 must be": lambda p: changed(p, **settings(config={"dim": 0})),
    "settings cannot be read (": lambda p: changed(p, settings=np.zeros(3, np.uint8)),
    "inverse_frequencies is float32[2], must be finite float32[14]": (
        lambda p: changed(p, inverse_frequencies=np.zeros(2, np.float32))
    ),
    "term_vectors is float32[14, 3], must be finite float32[14, 3]": (
        lambda p: changed(p, term_vectors=np.full((14, 3), np.nan, np.float32))
    ),
    "term_vectors is float64[14], must be finite float32[14, 1]": (
        lambda p: changed(p, term_vectors=np.zeros(14))
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_that_is_none_is_refused(tmp_path: Path, message: str):
    path = tmp_path / "words.npz"
    save_text_vectors(path, fit_text_vectors(TEXTS, TextVectorsConfig(dim=3, min_texts=1)))
    BROKEN[message](path)
    with pytest.raises(DataError) as caught:
        load_text_vectors(path)
    assert f"{path}: {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_configurations_are_refused():
    for field in ("dim", "max_words", "min_texts", "num_iterations"):
        with pytest.raises(ValueError, match=f"{field}=0 must be at least 1"):
            TextVectorsConfig(**{field: 0})
    with pytest.raises(ValueError, match="seed=-1 must be from 0"):
        TextVectorsConfig(seed=-1)
    for texts in (["soap", "soup"], ["soap", "soap"], ["?!", ""]):
        with pytest.raises(ValueError, match="min_texts=2: fewer than two words are in that many"):
            fit_text_vectors(texts)


@pytest.mark.real_data
def test_neighbours_on_beauty_are_of_the_same_category():
    """Of the nearest other item; two items drawn at random share their category 2 % of the time."""
    catalogue = beauty_catalogue(Path(os.environ["RECIPE_JAX_DATA"]))
    titles = [text.rsplit("; ", 1)[0] for text in catalogue.texts]  # without the category itself
    cfg = TextVectorsConfig(dim=32, num_iterations=1)
    vectors = fit_text_vectors(titles, cfg).encode(titles)
    rows = np.arange(0, len(titles), 10)
    scores = vectors[rows] @ vectors.T
    scores[np.arange(len(rows)), rows] = -2
    category = np.array(catalogue.attributes["category"])
    same = category[scores.argmax(axis=1)] == category[rows]
    assert same.mean() > 0.3
