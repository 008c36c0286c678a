import json

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from experiments.recipes import amount_baselines, baselines, completion_baselines
from recipe_jax.data.foods import read_foods, write_foods
from recipe_jax.data.recipes import RecipeSets, read_recipe_sets

NUM_FOODS = 12


def sets_of(foods, grams=None):
    sizes = np.array([len(row) for row in foods], np.int32)
    flat = np.full(sizes.sum(), np.nan) if grams is None else np.concatenate(grams)
    return RecipeSets(
        recipe_ids=[f"r{i}" for i in range(len(foods))],
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        foods=np.concatenate(foods).astype(np.int32),
        grams=flat.astype(np.float32),
        num_lines=sizes,
        num_mapped=sizes,
    )


def padded(*rows):
    width = max(map(len, rows))
    foods = np.array([[*row, *[NUM_FOODS] * (width - len(row))] for row in rows], np.int32)
    return foods, np.array([len(row) for row in rows], np.int32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def training(rng):
    return sets_of([rng.choice(NUM_FOODS, rng.integers(3, 7), replace=False) for _ in range(80)])


def bits_of(sets):
    bits = np.zeros((len(sets), NUM_FOODS))
    for i in range(len(sets)):
        bits[i, sets.foods_of(i)] = 1
    return bits


# Completion


def test_popularity_counts_recipes(training):
    scores = completion_baselines.fit_popularity(training, num_foods=NUM_FOODS).score(
        *padded([0, 1], [2])
    )
    np.testing.assert_array_equal(scores, np.tile(bits_of(training).sum(axis=0), (2, 1)))


def test_naive_bayes_is_bayes_rule_worked_by_hand():
    training = sets_of([[0, 1], [0, 1], [0, 2], [3, 2]])
    model = completion_baselines.fit_naive_bayes(training, num_foods=4, damping=0.0, smoothing=1e-9)
    scores = model.score(np.array([[0]], np.int32), np.array([1], np.int32))[0]
    # P(food) P(0 | food) / P(0), where P(food) = (count + .5) / (recipes + 1).
    posterior = np.array([2.5 * 1.0, 2.5 * 0.5]) / 3.5
    np.testing.assert_allclose(np.exp(scores[1:3]), posterior)
    assert scores[3] == scores.min()


def test_damping_divides_the_evidence_of_naive_bayes(training):
    def fit(damping):
        return completion_baselines.fit_naive_bayes(training, num_foods=NUM_FOODS, damping=damping)

    given, lengths = padded([0, 1, 2, 3], [4, 5])
    plain, mean = fit(0.0), fit(1.0)
    evidence = plain.score(given, lengths) - plain.log_prior
    np.testing.assert_allclose(
        mean.score(given, lengths), plain.log_prior + evidence / lengths[:, None]
    )


def test_ease_is_the_ridge_regression_of_each_food_on_the_others(training):
    """Steck's closed form has a zero diagonal and minimises the penalised square error."""
    weights = completion_baselines.fit_ease(training, num_foods=NUM_FOODS, penalty=7.0).weights
    assert (np.diag(weights) == 0).all()
    bits = bits_of(training)
    for food in range(NUM_FOODS):
        others = np.arange(NUM_FOODS) != food
        ridge = Ridge(alpha=7.0, fit_intercept=False, tol=1e-12)
        ridge.fit(bits[:, others], bits[:, food])
        np.testing.assert_allclose(weights[others, food], ridge.coef_, atol=1e-8)


def test_ease_scores_add_the_weights_of_what_is_given(training):
    model = completion_baselines.fit_ease(training, num_foods=NUM_FOODS)
    scores = model.score(*padded([3, 5, 7], [2]))
    np.testing.assert_allclose(scores[0], model.weights[[3, 5, 7]].sum(axis=0))
    np.testing.assert_allclose(scores[1], model.weights[2])


def test_ease_needs_a_penalty(training):
    with pytest.raises(ValueError, match=r"penalty=0\.0 must be positive"):
        completion_baselines.fit_ease(training, num_foods=NUM_FOODS, penalty=0.0)


def test_nearest_recipes_vote_with_their_cubed_cosine(training):
    model = completion_baselines.fit_nearest_recipes(
        training, num_foods=NUM_FOODS, neighbours=80, exponent=3.0
    )
    bits = bits_of(training)
    query = np.zeros((1, NUM_FOODS))
    query[0, [1, 4, 6]] = 1
    oracle = NearestNeighbors(n_neighbors=80, metric="cosine", algorithm="brute").fit(bits)
    distances, rows = oracle.kneighbors(query)
    expected = ((1 - distances[0, :, None]) ** 3 * bits[rows[0]]).sum(axis=0)
    np.testing.assert_allclose(model.score(*padded([1, 4, 6]))[0], expected, rtol=1e-5)


def test_only_the_nearest_recipes_vote():
    training = sets_of([[0, 1, 2], [0, 1, 3], [0, 4, 5], [6, 7, 8]])
    model = completion_baselines.fit_nearest_recipes(training, num_foods=NUM_FOODS, neighbours=2)
    scores = model.score(*padded([0, 1]))[0]
    assert scores[2] == scores[3] > 0
    assert (scores[4:] == 0).all()


@pytest.mark.parametrize("name", ["popularity", "naive_bayes", "ease", "nearest_recipes"])
def test_scores_are_those_of_a_set(name, training):
    """The order of what is given and the padding beside it mean nothing."""
    model = getattr(completion_baselines, f"fit_{name}")(training, num_foods=NUM_FOODS)
    once = model.score(*padded([3, 9, 1]))
    turned = model.score(*padded([1, 3, 9], [0, 2, 4, 5, 6, 7]))
    np.testing.assert_allclose(once[0], turned[0], rtol=1e-6)


def test_popular_sets_hold_distinct_foods_in_their_frequencies(rng):
    popularity = completion_baselines.Popularity(counts=np.array([6.0, 3.0, 1.0, 0.0]))
    lengths = np.array([1, 3] * 2000, np.int32)
    drawn = completion_baselines.sample_popular_sets(popularity, lengths, rng=rng)
    np.testing.assert_array_equal((drawn < 4).sum(axis=1), lengths)
    assert all(sorted(row) == [0, 1, 2] for row in drawn[1::2].tolist())
    shares = np.bincount(drawn[::2, 0], minlength=4) / 2000
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1, 0.0], atol=0.05)


# Amounts


def planted_recipes(rng, weight, deviation=0.0, n=600):
    """Grams = recipe's scale x food's weight x log-normal noise."""
    foods = [rng.choice(NUM_FOODS, rng.integers(3, 7), replace=False) for _ in range(n)]
    grams = [
        np.exp(rng.normal(5, 1) + weight[row] + deviation * rng.standard_normal(len(row)))
        for row in foods
    ]
    return sets_of(foods, grams)


def test_food_means_recover_planted_weights_whatever_the_recipes_scale(rng):
    weight = rng.standard_normal(NUM_FOODS)
    model = amount_baselines.fit_food_means(
        planted_recipes(rng, weight), num_foods=NUM_FOODS, shrinkage=0.0, rounds=200
    )
    np.testing.assert_allclose(
        model.log_weight - model.log_weight.mean(), weight - weight.mean(), atol=1e-5
    )
    np.testing.assert_allclose(model.log_deviation, 0, atol=1e-5)


def test_food_means_recover_the_planted_deviation(rng):
    recipes = planted_recipes(rng, np.zeros(NUM_FOODS), deviation=0.7, n=4000)
    model = amount_baselines.fit_food_means(recipes, num_foods=NUM_FOODS)
    np.testing.assert_allclose(model.log_deviation, 0.7, rtol=0.05)


def test_a_food_never_weighed_has_the_weight_of_its_recipe(rng):
    weight = rng.standard_normal(NUM_FOODS)
    recipes = planted_recipes(rng, weight)
    with_new = amount_baselines.fit_food_means(recipes, num_foods=NUM_FOODS + 1)
    assert with_new.log_weight[NUM_FOODS] == 0
    assert np.isfinite(with_new.log_deviation[NUM_FOODS])


def test_food_means_refuse_unweighed_and_single_foods():
    with pytest.raises(ValueError, match="positive grams"):
        amount_baselines.fit_food_means(sets_of([[0, 1]]), num_foods=NUM_FOODS)
    with pytest.raises(ValueError, match="at least 2 foods"):
        amount_baselines.fit_food_means(sets_of([[0]], [[1.0]]), num_foods=NUM_FOODS)


def two_kinds_of_cake(n=50):
    """Food 0 weighs 8 parts beside food 2 and 1 part beside food 3."""
    foods, grams = [[0, 1, 2], [0, 1, 3]] * n, [[8.0, 2.0, 2.0], [1.0, 2.0, 2.0]] * n
    return sets_of(foods, grams)


def test_nearest_amounts_know_the_kind_of_cake_that_means_blur():
    recipes = two_kinds_of_cake()
    nearest = amount_baselines.fit_nearest_amounts(recipes, num_foods=NUM_FOODS)
    means = amount_baselines.fit_food_means(recipes, num_foods=NUM_FOODS)
    foods, lengths = padded([0, 1, 2], [0, 1, 3])
    truth = np.array([[8, 2, 2], [1, 2, 2]]) / np.array([[12], [5]])
    np.testing.assert_allclose(nearest.proportions(foods, lengths), truth, atol=0.01)
    assert np.abs(means.proportions(foods, lengths) - truth).max() > 0.05


def test_foods_that_no_neighbour_holds_back_off_to_their_means():
    recipes = two_kinds_of_cake()
    nearest = amount_baselines.fit_nearest_amounts(recipes, num_foods=NUM_FOODS, neighbours=3)
    foods, lengths = padded([4, 5, 6])
    np.testing.assert_allclose(nearest.proportions(foods, lengths), 1 / 3)


def test_shrinkage_draws_nearest_amounts_to_the_means():
    recipes = two_kinds_of_cake()
    foods, lengths = padded([0, 1, 2])
    means = amount_baselines.fit_food_means(recipes, num_foods=NUM_FOODS)
    fits = [
        amount_baselines.fit_nearest_amounts(recipes, num_foods=NUM_FOODS, shrinkage=shrinkage)
        for shrinkage in (0.1, 50.0, 1e9)
    ]
    free, drawn, back = (fit.proportions(foods, lengths)[0, 0] for fit in fits)
    assert back == pytest.approx(means.proportions(foods, lengths)[0, 0])
    assert back < drawn < free


@pytest.mark.parametrize("name", ["uniform", "food_means", "nearest_amounts"])
def test_proportions_sum_to_one_leave_padding_empty_and_follow_their_foods(name, rng):
    recipes = planted_recipes(rng, rng.standard_normal(NUM_FOODS), deviation=0.5)
    model = {
        "uniform": lambda: amount_baselines.UniformAmounts(),
        "food_means": lambda: amount_baselines.fit_food_means(recipes, num_foods=NUM_FOODS),
        "nearest_amounts": lambda: amount_baselines.fit_nearest_amounts(
            recipes, num_foods=NUM_FOODS
        ),
    }[name]()
    foods, lengths = padded([3, 1, 7, 0, 5], [2, 4, 11])
    proportions = model.proportions(foods, lengths)
    np.testing.assert_allclose(proportions.sum(axis=1), 1)
    assert (proportions[1, 3:] == 0).all()
    order = [4, 2, 0, 1, 3]
    turned = model.proportions(*padded(foods[0, order].tolist()))
    np.testing.assert_allclose(turned[0], proportions[0, order], rtol=1e-6)


def test_samples_of_food_means_lie_around_them_with_their_deviation(rng):
    model = amount_baselines.FoodMeans(
        log_weight=np.arange(NUM_FOODS, dtype=float), log_deviation=np.full(NUM_FOODS, 0.3)
    )
    foods, lengths = padded([2, 3, 4, 5], [1, 0])
    samples = model.sample(foods, lengths, num_samples=4000, rng=rng)
    np.testing.assert_allclose(samples.sum(axis=-1), 1)
    assert (samples[:, 1, 2:] == 0).all()
    ratio = np.log(samples[:, 1, 0] / samples[:, 1, 1])
    assert ratio.mean() == pytest.approx(1.0, abs=0.03)
    assert ratio.std() == pytest.approx(0.3 * np.sqrt(2), rel=0.05)


# The command

SMALL = ("--num-generated", "40", "--num-samples", "9")


@pytest.fixture
def prepared(tmp_path, rng):
    """A folder in the prepared format: 500 recipes over the first 30 foods of the package."""
    table = read_foods()
    write_foods(table, tmp_path / "foods.parquet")
    rows = []
    for i in range(500):
        kind = 15 * (i % 2)
        for line, food in enumerate(rng.choice(15, rng.integers(3, 8), replace=False)):
            rows.append((f"r{i}", line, table.names[kind + food], float(rng.exponential(50) + 1)))
    lines = pl.DataFrame(rows, schema=["recipe_id", "line", "food", "grams"], orient="row")
    lines.write_parquet(tmp_path / "ingredients.parquet")
    counts = lines.group_by("recipe_id", maintain_order=True).agg(num_lines=pl.len())
    counts.write_parquet(tmp_path / "recipes.parquet")
    return tmp_path


def test_the_command_writes_the_record_and_ends_with_one_line_of_json(prepared, capsys):
    record_path = prepared / "record.json"
    code = baselines.main(
        ["--data", str(prepared), "--split", "test", "--out", str(record_path), *SMALL]
    )
    printed = capsys.readouterr()
    assert code == 0
    record = json.loads(record_path.read_text())
    headline = json.loads(printed.out.strip().splitlines()[-1])
    assert headline["completion"] == record["completion"]
    assert set(record["completion"]) == {"popularity", "naive_bayes", "ease", "nearest_recipes"}
    assert set(record["amounts"]) == {"uniform", "food_means", "nearest_amounts"}
    # The two kinds of recipes share no food, so that any look at what is given beats popularity.
    mrr = {name: metrics["mrr"] for name, metrics in record["completion"].items()}
    assert min(mrr.pop("ease"), mrr.pop("nearest_recipes")) > mrr["popularity"] + 0.05
    assert record["generation"]["popular_sets"]["auc_logistic"] > 0.65
    assert str(prepared) not in record_path.read_text()
    assert "recall_at_10" in printed.err


def test_the_strengths_are_chosen_on_validation_recipes(prepared):
    sets = read_recipe_sets(prepared, read_foods().names)
    tables = {}
    for split in ("validation", "test"):
        cfg = baselines.BaselineConfig(data=prepared, split=split)
        tables[split] = baselines.completion_table(sets, cfg, num_foods=507)
    metrics, chosen = tables["validation"]
    assert tables["test"][1] == chosen
    assert tables["test"][0] != metrics
    assert metrics["ease"]["mrr"] == max(chosen["ease_penalty"].values())


def test_a_folder_that_is_not_prepared_is_one_line_and_exit_code_2(prepared, capsys):
    (prepared / "recipes.parquet").unlink()
    assert baselines.main(["--data", str(prepared)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "recipes.parquet: no such file" in error


def test_a_record_that_could_not_be_written_is_refused_before_the_work(prepared, capsys):
    out = prepared / "missing" / "record.json"
    assert baselines.main(["--data", str(prepared / "nothing"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the folder {out.parent} must exist" in error


def test_a_full_disk_costs_the_record_but_not_the_table(prepared, capsys, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(baselines, "run", lambda cfg: TINY_RECORD)
    monkeypatch.setattr(baselines, "replace_file", full)
    assert baselines.main(["--data", str(prepared), "--out", str(prepared / "r.json")]) == 2
    error = capsys.readouterr().err
    assert "0.2500" in error
    assert error.splitlines()[-1].startswith("error: [Errno 28] No space left on device")


TINY_RECORD = {
    "config": {"split": "test"},
    "completion": {"popularity": {"n": 8, "mrr": 0.25, "mrr_interval": [0.1, 0.4]}},
    "amounts": {},
    "generation": {},
}
