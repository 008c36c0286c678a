"""Every model as a value of the same commands: rules hold, numbers add up, whatever is loaded."""

from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import headline, refused

from experiments.recipes.drawing import GENERATORS, draw_sets, make_constraint
from experiments.recipes.evaluate import load_checkpoint
from experiments.recipes.prepared import molecules_of
from experiments.recipes.scoring import (
    AMOUNT_MODELS,
    LIKELIHOOD_MODELS,
    amount_functions,
    completion_score,
    size_groups,
)
from recipe_jax.data.composition import read_food_features
from recipe_jax.diets import check
from recipe_jax.functional import abstract
from recipe_jax.huggingface import RECIPE_MODELS, make_module, save_model
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.amounts import AmountsConfig
from recipe_jax.models.amounts_ensemble import AmountsEnsembleConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.set_likelihood import completion_log_likelihoods


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained model of every type."""
    root = tmp_path_factory.mktemp("models")
    features = read_food_features()
    shape = {
        "embedding": FoodEmbeddingConfig(
            num_foods=len(features.foods),
            num_components=len(features.component_names),
            num_compounds=len(features.compound_names),
            embed_dim=8,
        ),
        "transformer": TransformerConfig(num_layers=1, embed_dim=8, num_heads=1),
    }
    for name, (config, _) in RECIPE_MODELS.items():
        cfg = (
            AmountsEnsembleConfig(model=AmountsConfig(**shape), num_models=2)
            if config is AmountsEnsembleConfig
            else config(**shape)
        )
        _, shapes = abstract(lambda name=name, cfg=cfg: make_module(name, cfg))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape) / 4, shapes)
        save_model(
            root / name,
            cfg=cfg,
            params=params,
            foods=features.foods,
            molecules=molecules_of(features),
            card="untrained",
        )
    return {name: root / name for name in RECIPE_MODELS}


REQUEST = ["generate", "--pantry", "tomato", "basil", "--diet", "vegan", "--without", "garlic"]


@pytest.mark.parametrize(
    ("generator", "more"),
    [
        *((name, []) for name in GENERATORS),
        ("masked_set_generator", ["--passes", "1"]),
        ("ingredient_generator", ["--beams", "4"]),
        ("joint_recipes", ["--beams", "3"]),
    ],
)
def test_the_pantry_and_the_rules_hold_for_every_generator(
    generator: str, more: list[str], folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    printed = headline(capsys, *REQUEST, "--generator", folders[generator], *more)
    assert len(printed["recipes"]) == printed["num"] == 3
    for recipe in printed["recipes"]:
        foods = list(recipe["grams"])
        assert foods[:2] == ["tomato", "basil"] and len(set(foods)) == len(foods)
        assert 5 <= len(foods) <= 14 and "garlic" not in foods
        assert all(finding.status == "free" for finding in check(foods, "vegan"))
        assert sum(recipe["grams"].values()) == pytest.approx(1000.0, abs=1.0)
        assert (recipe["log_probability"] is None) == (generator == "masked_set_generator")


def test_amounts_may_come_from_another_model(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    arguments = [*REQUEST, "--generator", folders["joint_recipes"]]
    own = headline(capsys, *arguments)["recipes"]
    other = headline(capsys, *arguments, "--amounts", folders["autoregressive_amounts"])["recipes"]
    for mine, theirs in zip(own, other, strict=True):
        assert list(mine["grams"]) == list(theirs["grams"])
        assert mine["grams"] != theirs["grams"]


@pytest.mark.parametrize(
    ("generator", "more", "message"),
    [
        ("masked_set_generator", ["--beams", "4"], "--beams: a masked-set generator has no order"),
        ("ingredient_generator", ["--beams", "2"], "--beams 2 must be at least the 3 sets"),
        ("masked_set_generator", ["--passes", "0"], "--passes 0 must be at least 1"),
        ("autoregressive_amounts", [], "model_type='autoregressive_amounts' must be an ingredient"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    generator: str,
    more: list[str],
    message: str,
    folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
):
    assert message in refused(capsys, *REQUEST, "--generator", folders[generator], *more)


def test_sets_keep_their_rows_whatever_group_they_are_computed_in():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 25, 150).astype(np.int32)
    foods = np.full((150, 24), 507, np.int32)
    for row, length in enumerate(lengths):
        foods[row, :length] = rng.permutation(507)[:length]
    seen = []
    for rows, group, counts in size_groups(foods, lengths, num_foods=507):
        assert group.shape[0] == 64 and group.shape[1] in (6, 9, 12, 16, 25)
        for row, members, count in zip(rows, group, counts, strict=False):
            assert count == lengths[row] and (members[count:] == 507).all()
            assert members[:count].tolist() == foods[row, :count].tolist()
        assert (group[len(rows) :] == 507).all() and not counts[len(rows) :].any()
        seen.extend(rows)
    assert sorted(seen) == list(range(150))


def test_a_score_does_not_depend_on_the_other_queries(folders: dict[str, Path]):
    model = load_checkpoint(folders["ingredient_generator"])
    score = completion_score(model.fn, model.params, model.molecules, num_orders=2)
    foods = np.array([[5, 9, 2, 7, 1, 3, 8], [4, 6, *[507] * 5], [0, *[507] * 6]], np.int32)
    lengths = np.array([7, 2, 1], np.int32)
    alone = np.concatenate([score(foods[[i]], lengths[[i]]) for i in range(3)])
    np.testing.assert_allclose(score(foods, lengths), alone, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LIKELIHOOD_MODELS)
def test_the_best_candidates_are_ranked_by_the_sets_they_complete(
    name: str, folders: dict[str, Path]
):
    model = load_checkpoint(folders[name])
    parts = model.fn, model.params, model.molecules
    foods = np.array([[5, 9, 2, 7], [4, 6, 507, 507]], np.int32)
    lengths = np.array([4, 2], np.int32)
    plain = completion_score(*parts, num_orders=2)(foods, lengths)
    ranked = completion_score(*parts, num_orders=2, num_candidates=5)(foods, lengths)
    best = np.argsort(-plain, axis=1)[:, :5].astype(np.int32)
    assert (np.sort(np.argsort(-ranked, axis=1)[:, :5]) == np.sort(best)).all()
    likelihoods = completion_log_likelihoods(*parts, foods, best, num_orders=2)
    for row in range(2):
        by_likelihood = best[row, np.argsort(-likelihoods[row])]
        assert np.argsort(-ranked[row])[:5].tolist() == by_likelihood.tolist()
        others = np.setdiff1d(np.arange(507), best[row])
        np.testing.assert_array_equal(ranked[row, others], plain[row, others])


@pytest.mark.parametrize("name", AMOUNT_MODELS)
def test_any_model_of_amounts_gives_proportions(name: str, folders: dict[str, Path]):
    model = load_checkpoint(folders[name])
    predict, sample = amount_functions(model, num_samples=400, seed=0)
    foods = np.array([[4, 6, 1], [7, 2, 507]], np.int32)
    lengths = np.array([3, 2], np.int32)
    samples, point = sample(foods, lengths), predict(foods, lengths)
    np.testing.assert_allclose(samples.sum(axis=2), 1.0, atol=1e-5)
    np.testing.assert_allclose(point.sum(axis=1), 1.0, atol=1e-5)
    assert not samples[:, 1, 2].any() and not point[1, 2]
    # The point estimate's log-ratios are the samples' mean.
    logs = np.log(samples[:, 0] / samples[:, 0, :1])
    expected = np.log(point[0] / point[0, 0])
    spread = 4 * logs.std(axis=0) / 20 + 1e-4
    assert (np.abs(logs.mean(axis=0) - expected) < spread).all()
    np.testing.assert_array_equal(sample(foods, lengths), samples)


def test_generating_from_what_generates_nothing_is_refused(folders: dict[str, Path]):
    model = load_checkpoint(folders["amounts"])
    rules = make_constraint(np.ones(507, bool), min_foods=3, max_foods=5)
    with pytest.raises(ValueError, match="model_type='amounts' must be one of"):
        draw_sets(model, [], 2, constraint=rules, seed=0)


def test_a_flag_refused_by_its_own_rule_is_one_line(capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, "train", "--model", "masked-set", "--positions", "rope")
    assert line.startswith("train: --positions rope: --model masked-set knows no positions")
    assert "--minutes 9.0 must be" in refused(capsys, "demo", "--minutes", "9")
