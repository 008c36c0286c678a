"""Search without training, against brute force."""

from pathlib import Path

import numpy as np
import pytest
from bert_folder import write_bert_folder, write_sentence_modules
from made_up_recipes import catalogue_of, recipe_rows

from experiments.semantic_ids.text_baselines import (
    TextChoices,
    blended,
    fit_expanded_bm25,
    fit_nearest_texts,
    fit_text_baselines,
    nearest_texts,
)
from experiments.semantic_ids.text_queries import text_metrics, text_ranks, title_queries
from recipe_jax.data.bm25 import Bm25Config, fit_bm25

ASKED = title_queries(catalogue_of(recipe_rows()), split="test")
FEW = TextChoices(dim=8, num_neighbours=5)


def test_nearest_texts_are_cosines_and_equal_vectors_score_equally():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 17)).astype(np.float32)
    vectors[[20, 49]] = vectors[3]
    table = {str(i): rng.normal(size=17).astype(np.float32) for i in range(200)}

    def encode(texts):
        return np.stack([table[text] for text in texts])

    fitted = nearest_texts(encode, vectors)
    np.testing.assert_array_equal(fitted.vectors[fitted.row_of], vectors)
    for query in table:  # one by one: a product of matrices rounds the last columns differently
        scores = fitted.scores([query])[0]
        np.testing.assert_allclose(scores, vectors @ table[query], rtol=1e-4, atol=1e-5)
        assert scores[3] == scores[20] == scores[49]


def test_a_query_of_which_nothing_is_known_is_equally_near_to_all():
    fitted = fit_nearest_texts(ASKED.items.texts, dim=8)
    scores = fitted.scores(["zebra", "beans"])
    assert not scores[0].any() and scores[1].any()


def test_expansion_adds_the_words_that_similar_queries_items_have():
    choices = TextChoices(expanded_k1=0.9, expanded_b=0.4, num_neighbours=3, expansion=0.7)
    found = fit_expanded_bm25(ASKED, choices).scores(ASKED.queries[:4])
    items = fit_bm25(ASKED.items.texts, Bm25Config(k1=0.9, b=0.4))
    known = fit_bm25(ASKED.known.queries)
    for query, row in zip(ASKED.queries, found, strict=False):
        similar = known.scores([query])[0]
        nearest = sorted(range(len(similar)), key=lambda i: (-similar[i], i))[:3]
        expected = items.scores([query])[0].astype(float)
        for i in nearest:
            share = similar[i] / similar[nearest].sum()
            words = {word for word in ASKED.items.texts[ASKED.known.targets[i]].split(", ")}
            said = " ".join(sorted({part for word in words for part in word.split()}))
            expected += 0.7 * share * items.scores([said])[0]
        np.testing.assert_allclose(row, expected, rtol=1e-4)


def test_without_similar_queries_expansion_changes_nothing():
    found = fit_expanded_bm25(ASKED, FEW).scores(["thyme", "zebra", ""])
    plain = fit_bm25(ASKED.items.texts, Bm25Config(k1=FEW.expanded_k1, b=FEW.expanded_b))
    np.testing.assert_array_equal(found, plain.scores(["thyme", "zebra", ""]))


def test_what_titles_say_in_other_words_is_learned_from_known_titles():
    scorers = fit_text_baselines(ASKED, FEW)
    ndcg = {
        name: text_metrics(text_ranks(score, ASKED))["ndcg_at_10"]
        for name, score in scorers.items()
    }
    assert ndcg["bm25_expanded"] > 2 * ndcg["bm25"]


def test_the_blend_is_a_weighted_sum_and_needs_its_parts():
    scorers = fit_text_baselines(ASKED, FEW)
    alone = blended(scorers, TextChoices(blend={"bm25": 2.0, "nearest_texts": 0.0}))
    np.testing.assert_array_equal(text_ranks(alone, ASKED), text_ranks(scorers["bm25"], ASKED))
    with pytest.raises(ValueError, match="the blend weighs 'model', must be among"):
        blended(scorers, TextChoices(blend={"bm25": 1.0, "model": 1.0}))


def test_a_sentence_encoder_is_one_system_more_and_keeps_its_vectors(tmp_path: Path):
    folder = write_sentence_modules(write_bert_folder(tmp_path / "bert"))
    scorers = fit_text_baselines(ASKED, FEW, encoder=folder)
    score = scorers["nearest_sentences"]
    own = score(ASKED.items.texts[:3])
    np.testing.assert_allclose(own[np.arange(3), np.arange(3)], 1, atol=1e-5)  # cosines
    assert (own < 1 + 1e-5).all() and list((folder / "vectors").rglob("*.safetensors"))
