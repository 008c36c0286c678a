"""Items for a query in words without a trained model."""

import numpy as np
import pytest
from made_up_recipes import catalogue_of, recipe_rows

from experiments.semantic_ids.blending import standardized
from experiments.semantic_ids.retrieval import Retriever, make_retriever
from experiments.semantic_ids.text_baselines import TextChoices, fit_nearest_texts
from recipe_jax.data.bm25 import Bm25Config, fit_bm25
from recipe_jax.data.catalogues import Catalogue, take
from recipe_jax.semantic_ids import format_id, make_semantic_ids

CATALOGUE = catalogue_of(recipe_rows())
N = len(CATALOGUE.ids)
FEW = TextChoices(dim=8, blend={"bm25": 1.0, "nearest_texts": 0.5})


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return make_retriever(CATALOGUE, None, choices=FEW)


def test_the_item_that_alone_has_a_word_comes_first(retriever: Retriever):
    found = retriever.search("the NUMBER17!", k=5)
    items = [row.item for row in found.items]
    assert items[0] == "r17" and len(set(items)) == 5 and found.milliseconds > 0
    scores = [row.score for row in found.items]
    assert scores == sorted(scores, reverse=True) and found.items[0].semantic_id == ""


def test_as_many_as_asked_for_up_to_all_of_them(retriever: Retriever):
    by_words = fit_bm25(CATALOGUE.texts, Bm25Config(k1=FEW.k1, b=FEW.b)).scores(["rice soup"])
    by_vectors = fit_nearest_texts(CATALOGUE.texts, dim=FEW.dim).scores(["rice soup"])
    scores = standardized(by_words)[0] + FEW.blend["nearest_texts"] * standardized(by_vectors)[0]
    expected = sorted(range(N), key=lambda row: (-scores[row], row))
    for k in (1, 7, N):
        found = retriever.search("rice soup", k=k).items
        assert [row.item for row in found] == [CATALOGUE.ids[row] for row in expected[:k]]
        np.testing.assert_allclose([row.score for row in found], scores[expected[:k]], rtol=1e-5)


def test_items_are_named_with_their_semantic_ids_by_name():
    codes = np.arange(N)[:, None] % 40
    ids = make_semantic_ids(CATALOGUE.ids[::-1], codes, num_codes=(40,), num_digits=4)
    part = take(CATALOGUE, np.arange(10, 60))
    found = make_retriever(part, ids, choices=FEW).search("number17", k=3)
    for row in found.items:
        assert row.semantic_id == format_id(ids.codes[ids.items.index(row.item)])
    few = make_semantic_ids(CATALOGUE.ids[:20], codes[:20], num_codes=(40,), num_digits=4)
    with pytest.raises(ValueError, match="item 'r20' has no semantic ID, nor have 39 others"):
        make_retriever(part, few, choices=FEW)


@pytest.mark.parametrize(
    ("query", "k", "rule"),
    [
        ("  ", 5, "the query is empty"),
        ("zebra ?!", 5, "no item has any word of the query 'zebra"),
        ("rice", 0, f"k=0 must be from 1 to {N}"),
        ("rice", N + 1, f"k={N + 1} must be from 1 to {N}"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(
    retriever: Retriever, query: str, k: int, rule: str
):
    with pytest.raises(ValueError, match=rule) as refused:
        retriever.search(query, k=k)
    assert "\n" not in str(refused.value)


def test_a_catalogue_without_items_or_words_is_refused():
    with pytest.raises(ValueError, match="the catalogue has no item"):
        make_retriever(Catalogue((), (), {}, ""), None)
    with pytest.raises(ValueError, match="1 texts hold no word"):
        make_retriever(Catalogue(("a",), ("?!",), {}, ""), None)
    with pytest.raises(ValueError, match="fewer than two words are in that many of 2 texts"):
        make_retriever(Catalogue(("a", "b"), ("red soap", "blue dye"), {}, ""), None)


def test_items_of_equal_scores_come_in_the_catalogues_order():
    texts = ("red soap", "blue soap", "red soap", "soap red", "blue dye", "red soap")
    found = make_retriever(Catalogue(tuple("abcdef"), texts, {}, ""), None)
    for k in (1, 2, 3, 4, 6):
        items = [row.item for row in found.search("red", k=k).items]
        assert items[:4] == list("acdf")[:k]
