"""BM25 against the formula by hand, and what no ranking by words may do."""

import math

import numpy as np
import pytest

from recipe_jax.data.bm25 import Bm25Config, fit_bm25

TEXTS = ["Red rice, red beans", "rice pudding", "Bean soup with rice and salt"]
QUERY_WORDS = ["red", "rice", "pudding", "beans", "soup", "salt"]


def test_three_texts_by_hand():
    # Lengths 4, 2 and 6, mean 4; `red` is in one text of three, twice; `rice` in all of them.
    found = fit_bm25(TEXTS, Bm25Config(k1=1.5, b=0.5)).scores(["RED rice"])
    red, rice = math.log(1 + 2.5 / 1.5), math.log(1 + 0.5 / 3.5)
    slow = [1.5 * (0.5 + 0.5 * length / 4) for length in (4, 2, 6)]
    expected = [
        red * 2 / (2 + slow[0]) + rice / (1 + slow[0]),
        rice / (1 + slow[1]),
        rice / (1 + slow[2]),
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_each_setting_does_what_it_is_called():
    presence = fit_bm25(TEXTS, Bm25Config(k1=0.0)).scores(["red"])
    assert presence[0, 0] == pytest.approx(math.log(1 + 2.5 / 1.5))
    without_lengths = fit_bm25(TEXTS, Bm25Config(b=0.0)).scores(["rice"])[0]
    assert without_lengths[0] == without_lengths[1] == without_lengths[2] > 0
    with_lengths = fit_bm25(TEXTS, Bm25Config(b=1.0)).scores(["rice"])[0]
    assert with_lengths[1] > with_lengths[0] > with_lengths[2]  # the shortest first


def test_other_settings_of_the_same_texts_are_those_of_another_fit():
    cfg = Bm25Config(k1=0.4, b=0.2)
    found = fit_bm25(TEXTS).with_settings(cfg).scores(QUERY_WORDS)
    np.testing.assert_array_equal(found, fit_bm25(TEXTS, cfg).scores(QUERY_WORDS))


def test_one_more_word_never_lowers_a_score():
    fitted = fit_bm25(TEXTS)
    scores = np.zeros(3, np.float32)
    for last in range(1, len(QUERY_WORDS) + 1):
        more = fitted.scores([" ".join(QUERY_WORDS[:last])])[0]
        assert (more >= scores).all() and (more > scores).any()
        scores = more


def test_what_no_text_has_adds_nothing_and_what_is_repeated_counts_twice():
    fitted = fit_bm25(TEXTS)
    plain, foreign, twice, *nothing = fitted.scores(
        ["red rice", "red zebra rice", "red rice red rice", "", "!?", "zebra"]
    )
    np.testing.assert_array_equal(plain, foreign)
    np.testing.assert_allclose(twice, 2 * plain, rtol=1e-6)
    np.testing.assert_array_equal(nothing, np.zeros((3, 3)))


def test_queries_are_scored_each_by_itself_and_equal_texts_equally():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(50)]
    texts += [" ".join(rng.permutation(text.split())) for text in texts]  # the same, shuffled
    queries = [" ".join(rng.choice(words, 9)) for _ in range(20)]
    fitted = fit_bm25(texts)
    together = fitted.scores(queries)
    np.testing.assert_array_equal(together[:, :50], together[:, 50:])
    for query, row in zip(queries, together, strict=True):
        np.testing.assert_array_equal(fitted.scores([query])[0], row)


def test_a_text_without_words_scores_zero():
    found = fit_bm25(["soup", "...", ""]).scores(["soup"])
    assert found[0, 0] > 0 and (found[0, 1:] == 0).all()


@pytest.mark.parametrize("texts", [[], ["", "?!"]])
def test_texts_without_any_word_are_refused(texts):
    with pytest.raises(ValueError, match=f"{len(texts)} texts hold no word"):
        fit_bm25(texts)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"k1": -0.1}, "k1=-0.1 must be finite and not negative"),
        ({"k1": math.inf}, "k1=inf must be finite"),
        ({"k1": math.nan}, "k1=nan must be finite"),
        ({"b": 1.5}, "b=1.5 must be from 0 to 1"),
        ({"b": math.nan}, "b=nan must be from 0 to 1"),
    ],
)
def test_bad_settings_are_refused(setting, rule):
    with pytest.raises(ValueError, match=rule):
        Bm25Config(**setting)
