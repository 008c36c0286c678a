import json

import numpy as np
import pytest
from flax import nnx

from experiments.recipes.__main__ import main
from experiments.recipes.prepared import molecules_of
from recipe_jax.data.composition import read_food_features
from recipe_jax.functional import purify
from recipe_jax.huggingface import make_module, save_model
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.amounts import AmountsConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import GeneratorConfig, IngredientGenerator


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """An untrained generator as a run folder, an untrained model of amounts as a model folder."""
    folder = tmp_path_factory.mktemp("explain")
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
    for name, kind, cfg in (
        ("run/model", "ingredient_generator", GeneratorConfig(**shape)),
        ("amounts", "amounts", AmountsConfig(**shape, num_components=1)),
    ):
        _, params = purify(make_module(kind, cfg))
        save_model(
            folder / name,
            cfg=cfg,
            params=params,
            foods=features.foods,
            molecules=molecules_of(features),
            card="untrained",
        )
    return folder


def explain(capsys, *arguments):
    code = main(["explain", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_explains_a_choice_its_substitutes_and_pairings(checkpoints, capsys):
    code, out, err = explain(
        capsys,
        *("--checkpoint", checkpoints / "run", "--amounts", checkpoints / "amounts"),
        *("--foods", "flour", "butter", "--choice", "egg", "--substitute", "butter"),
        *("--pairings", "tomato", "--top", 3, "--num-orders", 2),
    )
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    total = sum(nats for _, nats in found["ingredients"])
    moved = found["log_odds"] - found["average_log_odds"]
    assert total == pytest.approx(moved, rel=0.01, abs=1e-3)
    assert sum(nats for _, nats in found["sources"]) == pytest.approx(total, abs=1e-4)
    assert found["completeness_error"] < 0.005
    assert {food for food, _, _ in found["compounds"]} <= {"flour", "butter"}
    assert {food for food, _, _ in found["own_compounds"]} == {"egg"}
    sizes = [abs(nats) for _, _, nats in found["compounds"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found["substitutes"]) == 3
    assert not {"flour", "butter"} & {row["food"] for row in found["substitutes"]}
    assert all("of the weight, was" in row["changes"] for row in found["substitutes"])
    lifts = [row["lift"] for row in found["pairings"]]
    assert lifts == sorted(lifts, reverse=True)
    assert "what the molecules of tomato favour" in " ".join(err.split())


def test_compounds_that_a_food_lacks_are_named_so(checkpoints, capsys):
    _, out, _ = explain(
        capsys,
        *("--checkpoint", checkpoints / "run", "--foods", "butter"),
        *("--top", 2000, "--num-orders", 2),
    )
    found = json.loads(out.splitlines()[-1])
    features = read_food_features()
    butter = features.foods.index("butter")
    named = {name for _, name, _ in found["compounds"]}
    for compound, present in zip(features.compound_names, features.flavour[butter], strict=True):
        assert (compound if present else f"no {compound}") in named
    for component, value in zip(features.component_names, features.components[butter], strict=True):
        assert (f"low {component}" if value < 0 else component) in named


def test_measures_completeness_and_writes_a_record(checkpoints, tmp_path, capsys):
    record = tmp_path / "record.json"
    code, out, err = explain(
        capsys,
        *("--checkpoint", checkpoints / "run", "--measure", 2, "--num-orders", 2),
        *("--record", record),
    )
    assert code == 0, err
    headline = json.loads(out.splitlines()[-1])
    written = json.loads(record.read_text())
    assert written["results"] == {name: headline[name] for name in ("foods", "choice")}
    assert "--measure 2" in written["command"]
    for result in written["results"].values():
        assert result["n"] == 2
        assert 0 <= result["completeness_error_median"] <= result["completeness_error_p99"] < 0.005
        assert result["steps_max"] >= 16
    assert headline["completeness_error_p99"] == max(
        result["completeness_error_p99"] for result in written["results"].values()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to explain: give --foods, --pairings or --measure"),
        (
            ["--foods", "flour", "butta"],
            "'butta' is no food of the vocabulary; the nearest: butter",
        ),
        (["--foods", "flour", "flour"], "names 'flour' twice"),
        (["--foods", "flour", "--choice", "flour"], "--choice 'flour' is already one of the foods"),
        (["--foods", "flour", "--substitute", "egg"], "--substitute 'egg' must be one of --foods"),
        (["--pairings", "tomatoe"], "'tomatoe' is no food of the vocabulary; the nearest: tomato"),
        (["--foods", "flour", "--top", "0"], "--top 0 must be at least 1"),
        (["--measure", "0"], "--measure 0 must be at least 1"),
        (["--foods", "flour", "--record", "x.json"], "--record is for --measure"),
    ],
)
def test_bad_flags_are_one_line(checkpoints, capsys, arguments, message):
    code, out, err = explain(capsys, "--checkpoint", checkpoints / "run", *arguments)
    assert code == 2
    assert out == ""
    assert message in err.splitlines()[-1]


def test_refuses_too_many_foods(checkpoints, capsys):
    foods = read_food_features().foods[:25]
    code, _, err = explain(capsys, "--checkpoint", checkpoints / "run", "--foods", *foods)
    assert code == 2
    assert "--foods names 25 foods" in err


def test_refuses_a_model_of_amounts(checkpoints, capsys):
    code, _, err = explain(capsys, "--checkpoint", checkpoints / "amounts", "--foods", "flour")
    assert code == 2
    assert "model_type='amounts' must be 'ingredient_generator'" in err


def test_refuses_molecules_that_the_model_did_not_learn_from(tmp_path, capsys):
    features = read_food_features()
    cfg = GeneratorConfig(
        embedding=FoodEmbeddingConfig(
            num_foods=len(features.foods),
            num_components=len(features.component_names),
            num_compounds=len(features.compound_names),
            embed_dim=8,
        ),
        transformer=TransformerConfig(num_layers=1, embed_dim=8, num_heads=1),
    )
    _, params = purify(IngredientGenerator(cfg, rngs=nnx.Rngs(0)))
    molecules = molecules_of(features)
    save_model(
        tmp_path,
        cfg=cfg,
        params=params,
        foods=features.foods,
        molecules=molecules._replace(composition=np.zeros_like(molecules.composition)),
        card="other molecules",
    )
    code, _, err = explain(capsys, "--checkpoint", tmp_path, "--foods", "flour")
    assert code == 2
    assert "not the molecules that the model learned from" in err
