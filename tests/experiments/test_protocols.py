import numpy as np
import pytest

from experiments.recipes import amounts_protocol, completion, generation_quality
from recipe_jax.data.files import DataError
from recipe_jax.data.recipes import RecipeSets

NUM_FOODS = 40


def random_sets(rng, n=600, *, prefix="r", weighed=True):
    """Recipes of 3 to 9 foods; lines equal foods, all of them mapped."""
    foods = [rng.choice(NUM_FOODS, rng.integers(3, 10), replace=False) for _ in range(n)]
    sizes = np.array([len(row) for row in foods], np.int32)
    grams = rng.exponential(100, sizes.sum()) if weighed else np.full(sizes.sum(), np.nan)
    return RecipeSets(
        recipe_ids=[f"{prefix}{i}" for i in range(n)],
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        foods=np.concatenate(foods).astype(np.int32),
        grams=grams.astype(np.float32),
        num_lines=sizes,
        num_mapped=sizes,
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def sets(rng):
    return random_sets(rng)


# Completion


def test_a_query_is_its_recipe_without_one_food(sets):
    queries = completion.completion_queries(sets, num_foods=NUM_FOODS)
    given, lengths = queries.padded()
    for i in range(len(sets)):
        shown = given[i, : lengths[i]].tolist()
        assert queries.hidden[i] not in shown
        assert {*shown, queries.hidden[i]} == set(sets.foods_of(i).tolist())
        assert shown == sorted(shown)
        assert (given[i, lengths[i] :] == NUM_FOODS).all()


def test_a_recipes_query_depends_on_no_other_recipe_and_on_no_order(sets):
    queries = completion.completion_queries(sets, num_foods=NUM_FOODS)
    hidden = dict(zip(queries.recipe_ids, queries.hidden.tolist(), strict=True))
    keep = np.arange(len(sets)) % 3 == 0
    part = sets.select(keep)
    reversed_foods = np.concatenate([part.foods_of(i)[::-1] for i in range(len(part))])
    turned = RecipeSets(**{**part.__dict__, "foods": reversed_foods})
    again = completion.completion_queries(turned, num_foods=NUM_FOODS)
    assert again.hidden.tolist() == [hidden[name] for name in again.recipe_ids]


def test_every_place_of_a_recipe_is_hidden_equally_often_and_the_seed_matters(rng):
    sets = random_sets(rng, 3000)
    queries = completion.completion_queries(sets, num_foods=NUM_FOODS)
    place = [
        np.searchsorted(np.sort(sets.foods_of(i)), queries.hidden[i]) / (sets.sizes[i] - 1)
        for i in range(len(sets))
    ]
    assert np.mean(place) == pytest.approx(0.5, abs=4 * np.std(place) / np.sqrt(len(place)))
    other = completion.completion_queries(sets, num_foods=NUM_FOODS, seed=1)
    assert np.mean(other.hidden == queries.hidden) < 0.5


def test_no_scored_recipe_has_the_foods_of_a_training_recipe(rng):
    sets = random_sets(rng, 300)
    twins = RecipeSets(**{**sets.__dict__, "recipe_ids": [f"twin{i}" for i in range(300)]})
    both = RecipeSets(
        recipe_ids=[*sets.recipe_ids, *twins.recipe_ids],
        offsets=np.concatenate([sets.offsets, sets.offsets[-1] + twins.offsets[1:]]),
        foods=np.tile(sets.foods, 2),
        grams=np.tile(sets.grams, 2),
        num_lines=np.tile(sets.num_lines, 2),
        num_mapped=np.tile(sets.num_mapped, 2),
    )
    training = both.select_split("train")
    seen = {frozenset(training.foods_of(i).tolist()) for i in range(len(training))}
    scored = completion.completion_recipes(both, "test")
    assert 0 < len(scored) < len(both.select_split("test"))
    assert not any(frozenset(scored.foods_of(i).tolist()) in seen for i in range(len(scored)))


def test_a_scorer_that_knows_the_answer_is_perfect_and_one_that_knows_nothing_is_not(sets):
    queries = completion.completion_queries(sets, num_foods=NUM_FOODS)
    answers = iter(queries.hidden)

    def know(rows, lengths):
        return np.eye(NUM_FOODS)[[next(answers) for _ in rows]]

    perfect = completion.evaluate_completion(know, queries, batch_size=100)
    assert perfect["recall_at_1"] == perfect["mrr"] == perfect["ndcg_at_10"] == 1.0
    blind = completion.evaluate_completion(lambda rows, _: np.zeros((len(rows), 40)), queries)
    assert blind["recall_at_10"] == 0.0
    assert blind["n"] == len(sets)


def test_scores_do_not_depend_on_the_batch_size(sets):
    queries = completion.completion_queries(sets, num_foods=NUM_FOODS)

    def score(rows, lengths):
        return np.sin(rows.sum(axis=1, keepdims=True) + np.arange(NUM_FOODS)) * lengths[:, None]

    reports = [completion.evaluate_completion(score, queries, batch_size=b) for b in (7, 1000)]
    assert reports[0] == reports[1]
    low, high = reports[0]["mrr_interval"]
    assert low < reports[0]["mrr"] < high


def test_completion_refuses_scores_of_another_shape_and_recipes_without_queries(sets):
    queries = completion.completion_queries(sets, num_foods=NUM_FOODS)
    with pytest.raises(ValueError, match=r"shape \(256, 41\), must be \(256, 40\)"):
        completion.evaluate_completion(lambda rows, _: np.zeros((len(rows), 41)), queries)
    none = sets.select(np.zeros(len(sets), bool))
    with pytest.raises(DataError, match="no recipe fits the protocol"):
        completion.completion_queries(none, num_foods=NUM_FOODS)


# Amounts


@pytest.fixture
def amounts(sets):
    return amounts_protocol.amount_queries(sets, num_foods=NUM_FOODS)


def truth(queries):
    """A predictor that answers the queries in their order."""
    answers = iter(queries.proportions)
    return lambda foods, lengths: np.stack([next(answers) for _ in foods])


def uniform(foods, lengths):
    return (foods < NUM_FOODS) / lengths[:, None]


def test_amount_queries_are_the_recipes_proportions(sets, amounts):
    np.testing.assert_allclose(amounts.proportions.sum(axis=1), 1)
    for i in (0, 5, 17):
        np.testing.assert_array_equal(amounts.foods[i, : sets.sizes[i]], sets.foods_of(i))
        np.testing.assert_allclose(
            amounts.proportions[i, : sets.sizes[i]], sets.proportions_of(i), rtol=1e-6
        )
    assert (amounts.proportions[~amounts.present] == 0).all()


def test_amount_recipes_are_weighed_recipes_of_the_split(rng):
    sets = random_sets(rng)
    grams = sets.grams.copy()
    grams[sets.offsets[:300]] = np.nan
    half = RecipeSets(**{**sets.__dict__, "grams": grams})
    chosen = amounts_protocol.amount_recipes(half, "test")
    expected = sets.select(np.arange(600) >= 300).select_split("test")
    assert list(chosen.recipe_ids) == list(expected.recipe_ids)


def test_the_true_amounts_have_no_error_and_uniform_ones_do(amounts):
    exact = amounts_protocol.evaluate_proportions(truth(amounts), amounts, batch_size=50)
    assert exact["log_ratio_error"] == pytest.approx(0, abs=1e-12)
    assert exact["proportion_error"] == pytest.approx(0, abs=1e-12)
    naive = amounts_protocol.evaluate_proportions(uniform, amounts, batch_size=50)
    # Against a uniform guess the error is the spread of the log-proportions themselves.
    errors = [
        np.std(np.log(row[: int(length)]))
        for row, length in zip(amounts.proportions, amounts.lengths, strict=True)
    ]
    assert naive["log_ratio_error"] == pytest.approx(np.mean(errors))


def test_equal_samples_have_the_error_of_their_point(amounts):
    def sample(foods, lengths):
        return np.repeat(uniform(foods, lengths)[None], 5, axis=0)

    point = amounts_protocol.evaluate_proportions(uniform, amounts)
    samples = amounts_protocol.evaluate_samples(sample, amounts)
    assert samples["crps"] == pytest.approx(point["proportion_error"])
    assert samples["coverage"] == 0.0


def test_samples_from_the_true_distribution_cover_at_their_level_and_score_best(sets, rng):
    # Exponential grams, whatever the food: independent draws of the same law as `random_sets`.
    queries = amounts_protocol.amount_queries(sets, num_foods=NUM_FOODS)

    def sampler(power):
        def sample(foods, lengths):
            grams = rng.exponential(size=(99, *foods.shape)) ** power
            grams = np.where(foods < NUM_FOODS, grams, 0.0)
            return grams / grams.sum(axis=-1, keepdims=True)

        return sample

    narrow, honest, wide = (
        amounts_protocol.evaluate_samples(sampler(power), queries) for power in (0.3, 1.0, 3.0)
    )
    low, high = honest["coverage_interval"]
    assert low - 0.01 < 0.8 < high + 0.01
    assert narrow["coverage"] < 0.6
    for measure in ("crps", "crps_log_ratio", "pinball_loss"):
        assert honest[measure] < min(narrow[measure], wide[measure])


def test_amounts_on_padding_or_that_do_not_sum_to_one_are_refused(amounts):
    def on_padding(foods, lengths):
        return np.full(foods.shape, 1 / foods.shape[1])

    def sigmoids(foods, lengths):
        return np.where(foods < NUM_FOODS, 0.5, 0.0)

    def missing(foods, lengths):
        return np.where(foods < NUM_FOODS, np.nan, 0.0)

    with pytest.raises(ValueError, match="padding was given a proportion of"):
        amounts_protocol.evaluate_proportions(on_padding, amounts)
    with pytest.raises(ValueError, match=r"sum to 4\.5, must be 1"):
        amounts_protocol.evaluate_proportions(sigmoids, amounts)
    with pytest.raises(ValueError, match="sum to nan, must be 1"):
        amounts_protocol.evaluate_proportions(missing, amounts)
    with pytest.raises(ValueError, match=r"must end in \(256, 9\)"):
        amounts_protocol.evaluate_proportions(lambda f, n: uniform(f, n)[:, :-1], amounts)


def test_unweighed_recipes_are_no_amount_queries(rng):
    with pytest.raises(DataError, match="recipe r0 has a food without a positive weight"):
        amounts_protocol.amount_queries(random_sets(rng, 4, weighed=False), num_foods=NUM_FOODS)


# Generation


def test_samples_of_one_distribution_cannot_be_told_apart(rng):
    bits = rng.random((600, NUM_FOODS)) < 0.2
    for classifier in ("logistic", "boosting"):
        auc, (low, high) = generation_quality.two_sample_auc(
            bits[:300], bits[300:], classifier=classifier
        )
        assert 0.4 < auc < 0.6
        assert low < auc < high


def test_foods_that_ought_to_go_together_are_missed_by_both_classifiers(rng):
    """The same food frequencies, but in one sample foods come in pairs."""
    halves = rng.random((400, 2, NUM_FOODS // 2)) < 0.3
    halves[200:, 1] = halves[200:, 0]
    bits = halves.reshape(400, NUM_FOODS)
    for classifier in ("logistic", "boosting"):
        auc, _ = generation_quality.two_sample_auc(bits[:200], bits[200:], classifier=classifier)
        assert auc > 0.8


def test_a_label_does_not_choose_the_pairs(rng):
    bits = rng.random((30, NUM_FOODS)) < 0.3
    features = generation_quality.pair_features(bits, num_pairs=25)
    shuffled = generation_quality.pair_features(bits[::-1], num_pairs=25)
    np.testing.assert_array_equal(features, shuffled[::-1])
    together = np.triu(bits.astype(int).T @ bits, 1)
    np.testing.assert_array_equal(
        np.sort(features[:, NUM_FOODS:].sum(axis=0)), np.sort(np.sort(together.ravel())[-25:])
    )


def test_pairs_that_never_occur_are_no_features():
    bits = np.eye(4, dtype=bool)
    bits[0, 1] = True
    assert generation_quality.pair_features(bits, num_pairs=5).shape == (4, 4 + 1)


def test_near_copies_have_nine_of_ten_foods_and_at_least_five():
    training = np.zeros((2, NUM_FOODS), bool)
    training[0, :10] = training[1, 20:24] = True
    sets = np.zeros((4, NUM_FOODS), bool)
    sets[0, :9] = True  # 9 of 10 shared
    sets[1, :8] = True  # 8 of 10 shared
    sets[2, 20:24] = True  # a copy, but of 4 foods
    sets[3, :10] = True
    np.testing.assert_array_equal(
        generation_quality.near_copies(sets, training), [True, False, False, True]
    )


def test_broken_rules_are_counted(rng):
    real, training = random_sets(rng, 30, prefix="real"), random_sets(rng, 50, prefix="train")
    generated = np.full((20, 6), NUM_FOODS)
    for row in generated:
        row[:5] = rng.choice(np.arange(2, NUM_FOODS), 5, replace=False)
    generated[0, 1] = generated[0, 0]
    generated[:3, 4] = 1
    copied = training.foods_of(int(np.argmax(training.sizes == 5)))
    generated[7] = generated[8] = [*copied, NUM_FOODS]
    forbidden = [1] if 1 not in copied else [0]
    report = generation_quality.evaluate_generation(
        generated, real=real, training=training, num_foods=NUM_FOODS, forbidden=forbidden
    )
    assert report["n"] == 20
    assert report["repeat_share"] == 1 / 20
    assert report["forbidden_share"] == (3 / 20 if forbidden == [1] else 0)
    assert report["near_copy_share"] == 2 / 20
    assert report["near_copy_share_of_real"] == 0
    assert report["distinct_share"] == 19 / 20
    assert report["length_mean"] == 5
    drawn = generation_quality.sample_recipes(real, 20, num_foods=NUM_FOODS, seed=0)
    expected = np.abs((drawn < NUM_FOODS).sum(axis=1) - 5).mean()
    assert report["length_wasserstein"] == pytest.approx(expected)


def test_real_recipes_are_drawn_without_replacement(rng):
    sets = random_sets(rng, 30)
    drawn = generation_quality.sample_recipes(sets, 12, num_foods=NUM_FOODS, seed=0)
    again = generation_quality.sample_recipes(sets, 12, num_foods=NUM_FOODS, seed=0)
    np.testing.assert_array_equal(drawn, again)
    assert len(np.unique(drawn, axis=0)) == 12
    assert len(generation_quality.sample_recipes(sets, 99, num_foods=NUM_FOODS, seed=0)) == 30


def test_two_samples_need_a_set_a_fold(rng):
    bits = rng.random((9, NUM_FOODS)) < 0.3
    with pytest.raises(ValueError, match="5 folds need as many sets, got 5 and 4"):
        generation_quality.two_sample_auc(bits[:5], bits[5:])
