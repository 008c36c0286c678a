"""Queries in words: what is asked, what may be known of it, and how ranks are counted."""

import numpy as np
import pytest
from made_up_recipes import catalogue_of, recipe_rows

from experiments.semantic_ids.text_queries import (
    TextQueries,
    text_metrics,
    text_ranks,
    title_queries,
    without_titles,
)
from recipe_jax.data.pantrypilot import Asked
from recipe_jax.data.recipes import split_of

ROWS = recipe_rows()
NONE = Asked((), np.zeros(0, np.int64))


def of(split: str) -> list[int]:
    return [row for row in range(len(ROWS)) if split_of(str(ROWS[row]["id"])) == split]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_titles_are_in_no_text_and_only_those_to_learn_from_are_known(split):
    found = title_queries(catalogue_of(ROWS), split=split)
    assert found.targets.tolist() == of(split) and len(found.queries) > 5
    for query, target in zip(found.queries, found.targets.tolist(), strict=True):
        assert query == ROWS[target]["title"]
    assert found.known.targets.tolist() == of("train")
    assert not any("number" in text for text in found.items.texts)
    assert all(f"spice{row}" in text for row, text in enumerate(found.items.texts))
    shown = [row for row, title in enumerate(found.items.attributes["title"]) if title]
    assert shown == of("train")
    assert found.items.fingerprint != catalogue_of(ROWS).fingerprint
    assert found.num_left_out == {"title of several recipes": 0, "recipe without ingredients": 0}


def test_titles_that_do_not_tell_which_recipe_is_meant_are_not_asked():
    rows = [dict(row) for row in ROWS]
    first, second, third, *_ = of("validation")
    rows[first]["title"] = str(rows[of("train")[0]]["title"]).upper()  # case tells nothing
    rows[second]["title"] = rows[of("test")[0]]["title"]
    rows[third]["ingredients"] = []
    found = title_queries(catalogue_of(rows), split="validation")
    assert found.targets.tolist() == of("validation")[3:]
    assert found.num_left_out == {"title of several recipes": 2, "recipe without ingredients": 1}
    assert found.items.texts[third] == rows[third]["title"]  # a text is never empty


def asked(num: int = 6, items: int = 4) -> TextQueries:
    catalogue = without_titles(catalogue_of(ROWS[:items]))
    queries = tuple(str(row) for row in range(num))
    return TextQueries("recipe-titles", catalogue, queries, np.arange(num) % items, NONE, {})


def test_ranks_are_of_all_items_and_equal_scores_share_theirs():
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    def score(queries):
        return table[[int(query) for query in queries]]

    expected = [1 + (row > row[i % 4]).sum() for i, row in enumerate(table)]
    for at_once in (1, 4, 100):
        assert text_ranks(score, asked(), queries_at_once=at_once).tolist() == expected
    constant = text_ranks(lambda queries: np.zeros((len(queries), 4), np.float32), asked())
    assert constant.tolist() == [2.5] * 6


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"returned shape \(6, 3\), must be \(6, 4\)"):
        text_ranks(lambda queries: np.zeros((len(queries), 3), np.float32), asked())


def test_metrics_by_hand():
    found = text_metrics(np.array([1.0, 2.0, 7.5, 40.0]))
    assert found["n"] == 4
    assert [found[f"recall_at_{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 7.5 + 1 / 40) / 4)
    assert found["ndcg_at_10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(8.5)) / 4)
    low, high = found["recall_at_1_interval"]
    assert 0 < low < 0.25 < high < 1
    certain = text_metrics(np.ones(4))["recall_at_1_interval"]
    assert certain[0] < 0.6 and certain[1] == 1.0  # four of four prove little
