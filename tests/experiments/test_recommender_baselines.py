"""Baselines of recommendation against brute force; the protocol; the blend."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.semantic_ids.baselines import (
    ItemToItem,
    NextIndex,
    fit_ease,
    fit_item_knn,
    fit_popularity,
    fit_transitions,
)
from experiments.semantic_ids.blending import blend, choose_weights, mean_scorer, standardized
from experiments.semantic_ids.protocol import evaluate_ranking, metrics_of_seeds, target_ranks
from recipe_jax.data.interactions import (
    Histories,
    Queries,
    distinct_items,
    histories_of,
    leave_last_out,
    read_histories,
    shuffled_ids,
)

NUM_ITEMS = 12


def drawn(*, ordered: bool = True, users: int = 40) -> Histories:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(NUM_ITEMS - 1)[: rng.integers(1, 7)] for _ in range(users)]
    return histories_of([str(i) for i in range(users)], rows, ordered=ordered)


def bits(histories: Histories) -> np.ndarray:
    found = np.zeros((len(histories.users), NUM_ITEMS))
    for row in range(len(found)):
        found[row, histories.items_of(row)] = 1.0
    return found


def weighed(histories: Histories, decay: float) -> np.ndarray:
    found = np.zeros((len(histories.users), NUM_ITEMS))
    for row in range(len(found)):
        for steps, item in enumerate(histories.items_of(row)[::-1]):
            found[row, item] = decay**steps
    return found


def ridge(inputs: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    gram = inputs.T @ inputs + penalty * np.eye(inputs.shape[1])
    return np.linalg.solve(gram, inputs.T @ target)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others():
    histories = drawn()
    rows, expected = bits(histories), np.zeros((NUM_ITEMS, NUM_ITEMS))
    for item in range(NUM_ITEMS):
        others = np.delete(np.arange(NUM_ITEMS), item)
        expected[others, item] = ridge(rows[:, others], rows[:, item], 3.0)
    ease = fit_ease(histories, num_items=NUM_ITEMS, penalty=3.0, decay=0.5)
    np.testing.assert_allclose(ease.weights, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ease.score(histories), weighed(histories, 0.5) @ expected, rtol=1e-4, atol=1e-5
    )
    # An item that nobody took has no neighbours.
    assert not ease.weights[-1].any() and not ease.weights[:, -1].any()


def test_item_knn_is_the_cosine_by_brute_force():
    histories = drawn()
    rows, expected = bits(histories), np.zeros((NUM_ITEMS, NUM_ITEMS))
    for i in range(NUM_ITEMS):
        for j in range(NUM_ITEMS):
            norm = np.linalg.norm(rows[:, i]) * np.linalg.norm(rows[:, j])
            if i != j and norm:
                expected[i, j] = rows[:, i] @ rows[:, j] / norm
    knn = fit_item_knn(histories, num_items=NUM_ITEMS, decay=0.8)
    np.testing.assert_allclose(knn.weights.toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(knn.score(histories), weighed(histories, 0.8) @ expected, rtol=1e-5)


def test_transitions_are_a_ridge_regression_of_the_next_item_on_those_before():
    histories = drawn()
    before, following = [], []
    for user in range(len(histories.users)):
        items = histories.items_of(user)
        for place in range(1, len(items)):
            row = np.zeros(NUM_ITEMS)
            for steps, item in enumerate(items[:place][::-1]):
                row[item] = 0.7**steps
            before.append(row)
            following.append(np.eye(NUM_ITEMS)[items[place]])
    expected = ridge(np.array(before), np.array(following), 2.0)
    fitted = fit_transitions(histories, num_items=NUM_ITEMS, penalty=2.0, decay=0.7)
    np.testing.assert_allclose(fitted.weights, expected, rtol=1e-4, atol=1e-5)
    assert fitted.decay == 0.7 and fitted.with_decay(0.5).decay == 0.5


def test_order_means_nothing_without_decay():
    histories = drawn()
    turned = histories_of(
        histories.users, [histories.items_of(i)[::-1] for i in range(40)], ordered=True
    )
    ease = fit_ease(histories, num_items=NUM_ITEMS, penalty=3.0)
    np.testing.assert_allclose(ease.score(histories), ease.score(turned), atol=1e-6)
    recent = ease.with_decay(0.5)
    assert not np.allclose(recent.score(histories), recent.score(turned), atol=1e-3)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match=r"penalty=0\.0 must be positive"):
        fit_ease(drawn(), num_items=NUM_ITEMS, penalty=0.0)
    with pytest.raises(ValueError, match="have no transitions"):
        fit_transitions(drawn(ordered=False), num_items=NUM_ITEMS, penalty=1.0, decay=0.5)


def test_popularity_counts_users():
    histories = histories_of(["a", "b"], [[1, 2], [2]], ordered=True)
    scores = fit_popularity(histories, num_items=4).score(histories)
    assert scores.tolist() == [[0, 1, 2, 0]] * 2


def in_order_of_appearance(users: int = 400) -> tuple[tuple[str, ...], list[list[str]]]:
    """Users most of whose items are new: ids that count upwards tell what comes next."""
    rng, rows, newest = np.random.default_rng(0), [], 10
    for _ in range(users):
        row = list(rng.permutation(newest)[:3])
        for _ in range(3):
            row.append(newest if rng.random() < 0.5 else int(rng.integers(newest)))
            newest += row[-1] == newest
        rows.append([str(item) for item in dict.fromkeys(row)])
    return tuple(map(str, range(newest))), rows


def next_index_recall(path: Path, item_ids: tuple[str, ...]) -> float:
    queries = leave_last_out(read_histories(path, item_ids)).test
    scorer = NextIndex(num_items=len(item_ids))
    ranks = target_ranks(scorer.score, queries, num_items=len(item_ids))
    return float(np.mean(ranks <= 1))


def test_the_next_index_tells_nothing_after_the_permutation(tmp_path: Path):
    item_ids, rows = in_order_of_appearance()
    path = tmp_path / "users.txt"
    path.write_text("".join(f"u{i} {' '.join(row)}\n" for i, row in enumerate(rows)))
    assert next_index_recall(path, item_ids) > 0.3
    assert next_index_recall(path, shuffled_ids(item_ids, seed=0)) < 0.02


@pytest.mark.real_data
def test_the_next_index_of_beauty_tells_nothing_after_the_permutation():
    path = Path(os.environ["RECIPE_JAX_DATA"]) / "amazon_beauty" / "Beauty.txt.gz"
    item_ids = distinct_items(path)

    def hits(item_ids: tuple[str, ...]) -> float:
        queries = leave_last_out(read_histories(path, item_ids)).test
        largest = np.maximum.reduceat(queries.histories.items, queries.histories.offsets[:-1])
        return float(np.mean(largest + 1 == queries.targets))

    assert 0.043 < hits(item_ids) < 0.045
    assert hits(shuffled_ids(item_ids, seed=0)) < 0.001


# The protocol.


def test_a_history_is_excluded_and_ties_share_their_rank():
    histories = histories_of(["a", "b"], [[0, 1], [2]], ordered=True)
    queries = Queries(histories, np.array([3, 1], np.int32))
    scores = np.array([[9.0, 8.0, 1.0, 5.0], [3.0, 3.0, 9.0, 3.0]])

    def score(histories: Histories) -> np.ndarray:
        return scores[[["a", "b"].index(user) for user in histories.users]]

    for at_once in (1, 2):
        ranks = target_ranks(score, queries, num_items=4, users_at_once=at_once)
        assert ranks.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"returned shape \(2, 4\), must be \(2, 5\)"):
        target_ranks(score, queries, num_items=5)


def test_no_index_wins_a_tie():
    histories = drawn()
    queries = Queries(histories, np.full(40, NUM_ITEMS - 1, np.int32))

    def constant(histories: Histories) -> np.ndarray:
        return np.zeros((len(histories.users), NUM_ITEMS), np.float32)

    ranks = target_ranks(constant, queries, num_items=NUM_ITEMS)
    np.testing.assert_allclose(ranks, (NUM_ITEMS - histories.lengths + 1) / 2)


def test_metrics_over_seeds_are_means_with_each_seed_beside():
    ranks = [np.array([1.0, 7.0, 3.0]), np.array([9.0, 20.0, 1.0])]
    found = metrics_of_seeds(ranks)
    assert found["recall_at_5_of_seeds"] == pytest.approx([2 / 3, 1 / 3])
    assert found["recall_at_5"] == pytest.approx(0.5)
    assert found["num_seeds"] == 2 and found["n"] == 3
    alone = metrics_of_seeds(ranks[:1])
    assert alone["recall_at_10"] == 1.0 and "recall_at_10_of_seeds" not in alone
    assert alone["ndcg_at_5"] == pytest.approx((1 + 1 / np.log2(4)) / 3)


# The blend.


def test_a_blend_is_the_sum_on_one_scale():
    scores = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], np.float32)
    np.testing.assert_allclose(standardized(scores).std(axis=1), [1.0, 0.0], atol=1e-6)
    histories = histories_of(["a", "b"], [[0], [0]], ordered=True)
    scorers = {"one": lambda _: scores, "other": lambda _: 100 * scores + 7}
    both = blend(scorers, {"one": 1.0, "other": 2.0})(histories)
    np.testing.assert_allclose(both, 3 * standardized(scores), atol=1e-5)
    mean = mean_scorer(list(scorers.values()))(histories)
    np.testing.assert_allclose(mean, standardized(scores), atol=1e-5)
    with pytest.raises(ValueError, match="the blend weighs 'third', must be among"):
        blend(scorers, {"third": 1.0})


def test_weights_are_found_that_no_part_reaches_alone():
    rng = np.random.default_rng(0)
    histories = histories_of([str(i) for i in range(300)], [[0]] * 300, ordered=True)
    targets = rng.integers(1, 50, 300).astype(np.int32)
    own = np.eye(50)[targets]
    parts = {name: rng.normal(size=own.shape) + 1.5 * own for name in ("one", "other")}
    parts["noise"] = rng.normal(size=own.shape)
    scorers = {
        name: (lambda h, values=values: values[[int(u) for u in h.users]])
        for name, values in parts.items()
    }
    queries = Queries(histories, targets)
    weights, reached = choose_weights(scorers, queries, num_items=50)
    assert weights["one"] == 1.0 and weights["other"] in (0.5, 1.0, 2.0)
    assert weights["noise"] <= 0.25
    alone = [evaluate_ranking(s, queries, num_items=50)["ndcg_at_10"] for s in scorers.values()]
    assert reached > max(alone) + 0.05
    blended = evaluate_ranking(blend(scorers, weights), queries, num_items=50)
    assert blended["ndcg_at_10"] == pytest.approx(reached)


def test_dense_and_sparse_weights_score_alike():
    histories = drawn()
    knn = fit_item_knn(histories, num_items=NUM_ITEMS, decay=0.6)
    dense = ItemToItem(weights=knn.weights.toarray(), decay=0.6)
    np.testing.assert_allclose(dense.score(histories), knn.score(histories), rtol=1e-6)
