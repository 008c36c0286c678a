"""Faults of earlier systems of this kind, each with a test that names it.

Where a fault can live in one place only, its test stands beside that place; `ELSEWHERE` names it.
"""

import ast
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from named_tests import missing_tests
from pickle_trap import Trap
from tolerances import assert_close
from two_cakes import EMBEDDING, MOLECULES, TRANSFORMER, V, build, padded

from experiments.recipes import evaluate, generation_quality
from experiments.recipes import train as training
from experiments.recipes.generate import PRETRAINED
from experiments.recipes.prepared import Prepared, read_prepared
from recipe_jax.data.composition import read_food_features
from recipe_jax.data.files import DataError
from recipe_jax.decoding import Sampling, SetConstraint, sample_sets
from recipe_jax.functional import abstract
from recipe_jax.huggingface import ModelFolderError, load_model, make_module
from recipe_jax.models import (
    amounts,
    autoregressive_amounts,
    encoder_decoder_generator,
    ingredient_generator,
    joint_recipes,
    masked_set_generator,
)

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "padding in the loss": (
        "models/test_ingredient_generator.py::test_padding_is_in_no_loss",
        "models/test_encoder_decoder_generator.py::test_padding_and_pantry_are_in_no_loss",
        "models/test_masked_set_generator.py::test_padding_and_visible_foods_are_in_no_loss",
        "models/test_amounts.py::test_grams_at_padding_change_neither_loss_nor_gradient",
        "models/test_autoregressive_amounts.py::test_padding_may_hold_anything",
        "models/test_joint_recipes.py::test_padding_may_hold_anything",
    ),
    "foods repeated": (
        "test_decoding.py::test_every_set_obeys_every_rule_and_has_the_probability_it_reports",
        "test_beam_search.py::"
        "test_sets_are_distinct_obey_every_rule_and_have_the_probability_they_report",
        "test_mask_predict.py::test_every_set_obeys_every_rule",
        "test_joint_decoding.py::test_foods_obey_the_constraint_and_the_prompt_comes_first",
    ),
    "amounts that do not sum to one, amounts on padding": (
        "models/test_amounts.py::test_samples_sum_to_one_and_padding_gets_nothing",
        "models/test_autoregressive_amounts.py::test_samples_sum_to_one_and_padding_gets_nothing",
        "test_joint_decoding.py::test_proportions_sum_to_one_and_padding_gets_nothing",
        "models/test_simplex.py::test_padding_may_hold_anything_and_gets_nothing",
        "experiments/test_protocols.py::"
        "test_amounts_on_padding_or_that_do_not_sum_to_one_are_refused",
    ),
    "amounts that depend on positions": (
        "models/test_amounts.py::"
        "test_the_model_commutes_with_permutations_so_positions_mean_nothing",
        "models/test_autoregressive_amounts.py::test_the_order_of_earlier_members_changes_nothing",
    ),
}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_the_tests_of_a_fault_are_there(fault: str):
    assert not missing_tests(ELSEWHERE[fault])


# Padding counted in the loss, through a misused `reduce` argument.

SHAPE = {"embedding": EMBEDDING, "transformer": TRANSFORMER}
GIVEN = jnp.array([1], jnp.int32)


def generator_terms(loss):
    cfg = ingredient_generator.GeneratorConfig(**SHAPE)

    def terms(model, batch):
        return loss(model(MOLECULES, batch.foods), batch)

    return lambda: ingredient_generator.IngredientGenerator(cfg, rngs=nnx.Rngs(0)), terms


def encoder_decoder_terms():
    cfg = encoder_decoder_generator.EncoderDecoderConfig(**SHAPE, encoder_layers=1)

    def terms(model, batch):
        logits = model(MOLECULES, batch.foods, GIVEN)
        return encoder_decoder_generator.encoder_decoder_loss(logits, batch, GIVEN)

    return lambda: encoder_decoder_generator.EncoderDecoderGenerator(cfg, rngs=nnx.Rngs(0)), terms


def masked_set_terms():
    cfg = masked_set_generator.MaskedSetConfig(**SHAPE)

    def terms(model, batch):
        visible = jnp.arange(batch.foods.shape[1])[None] < GIVEN[:, None]
        found = model(MOLECULES, batch.foods, visible, batch.lengths - GIVEN)
        return masked_set_generator.masked_set_loss(found, batch, GIVEN)

    return lambda: masked_set_generator.MaskedSetGenerator(cfg, rngs=nnx.Rngs(0)), terms


def amounts_terms():
    cfg = amounts.AmountsConfig(**SHAPE, num_components=2)

    def terms(model, batch):
        mixture = model(MOLECULES, batch.foods, batch.lengths)
        return amounts.amounts_loss(mixture, batch, mean_weight=0.5)

    return lambda: amounts.AmountsModel(cfg, rngs=nnx.Rngs(0)), terms


def autoregressive_terms():
    cfg = autoregressive_amounts.AutoregressiveAmountsConfig(**SHAPE, num_decoder_layers=1)

    def terms(model, batch):
        logits = model(MOLECULES, batch.foods, batch.lengths, batch.grams)
        return autoregressive_amounts.next_amount_loss(logits, batch, bins=cfg.bins)

    return lambda: autoregressive_amounts.AutoregressiveAmounts(cfg, rngs=nnx.Rngs(0)), terms


def joint_terms():
    cfg = joint_recipes.JointRecipesConfig(**SHAPE)

    def terms(model, batch):
        logits = model(MOLECULES, batch.foods, batch.grams)
        return joint_recipes.joint_loss(logits, batch, bins=cfg.bins)

    return lambda: joint_recipes.JointRecipes(cfg, rngs=nnx.Rngs(0)), terms


LOSSES = {
    "remaining set": lambda: generator_terms(ingredient_generator.remaining_set_loss),
    "next food": lambda: generator_terms(ingredient_generator.next_food_loss),
    "encoder-decoder": encoder_decoder_terms,
    "masked set": masked_set_terms,
    "amounts": amounts_terms,
    "autoregressive amounts": autoregressive_terms,
    "joint": joint_terms,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_padded_recipe_costs_what_it_costs_alone(name: str):
    """From the model to each of its terms: what is left of padding would be seen here."""
    make, terms = LOSSES[name]()
    fn, params = build(make)
    cost = jax.jit(lambda params, batch: terms(fn.bind(params), batch))
    recipe = [[3, 0, 5]], [[20.0, 300.0, 4.0]]
    alone, in_company = (padded(recipe[0], size, recipe[1]) for size in (3, 6))
    assert (in_company.foods[0, 3:] == V).all()
    expected = cost(params, alone)
    assert expected.total[0] > 0
    assert_close(cost(params, in_company), expected)
    dirty = in_company._replace(grams=in_company.grams.at[0, 3:].set(jnp.nan))
    assert_close(cost(params, dirty), expected)


@pytest.fixture(scope="module")
def sample() -> Prepared:
    return read_prepared(None)


@pytest.mark.parametrize("model", ["generator", "amounts"])
def test_the_mean_that_training_minimises_knows_no_padding(model: str, sample: Prepared):
    flags = training.Flags(model=model, embed_dim=16, num_layers=1, num_heads=2, dropout=0.0)
    task = training.make_task(flags, sample)
    fn, shapes = abstract(lambda: make_module(task.model_type, task.cfg))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    objective = jax.jit(task.objective(fn))
    recipes = [[3, 9, 5], [40, 2, 8, 30, 7]], [[20.0, 300.0, 4.0], [5.0, 70.0, 1.0, 100.0, 250.0]]
    narrow, wide = (padded(recipes[0], size, recipes[1]) for size in (5, 11))
    narrow, wide = (
        batch._replace(foods=jnp.where(batch.grams > 0, batch.foods, len(sample.foods)))
        for batch in (narrow, wide)
    )
    key = jax.random.key(0)
    assert_close(objective(params, wide, key), objective(params, narrow, key))


# Foods repeated in samples: "pepper, pepper, pepper".


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_wants_nothing_but_pepper_names_it_once(temperature: float):
    pepper, size = 3, 6
    cfg = ingredient_generator.GeneratorConfig(**SHAPE, max_foods=size)
    fn, params = build(lambda: ingredient_generator.IngredientGenerator(cfg, rngs=nnx.Rngs(0)))
    params = {**params, "bias": params["bias"].at[pepper].set(1e4)}
    found = sample_sets(
        fn,
        params,
        MOLECULES,
        jnp.full((32, size), V, jnp.int32),
        jnp.zeros(32, jnp.int32),
        jax.random.key(0),
        constraint=SetConstraint(jnp.ones(V, bool), jnp.int32(4), jnp.int32(size)),
        sampling=Sampling(temperature=temperature),
    )
    for foods, length in zip(np.asarray(found.foods), np.asarray(found.lengths), strict=True):
        assert foods[0] == pepper and length >= 4
        assert len(set(foods[:length])) == length


# Amounts: independent sigmoids that don't sum to 1, amounts given to padding, positions.


@functools.cache
def shipped_amounts():
    return load_model(PRETRAINED / "amounts")


def test_the_shipped_model_shares_out_one_recipe_whatever_its_order_and_padding():
    model = shipped_amounts()
    predict, sample = evaluate.amount_functions(model, num_samples=20, seed=0)
    cake = [model.foods.index(food) for food in ("flour", "butter", "sugar", "egg")]
    turned = [2, 0, 3, 1]
    rows = np.full((2, 7), len(model.foods), np.int32)
    rows[0, :4], rows[1, :4] = cake, np.array(cake)[turned]
    lengths = np.array([4, 4], np.int32)
    grams = predict(rows, lengths)
    assert_close(grams[1, :4], grams[0, turned])
    assert np.ptp(grams[0, :4]) > 0.05  # or any order would do
    for proportions in (grams, *sample(rows, lengths)):
        assert_close(proportions.sum(axis=1), np.ones(2, np.float32))
        assert (proportions[:, :4] > 0).all() and (proportions[:, 4:] == 0).all()


# Teacher-forced accuracy reported as generation quality.


def test_a_model_that_samples_badly_scores_badly_however_well_it_predicts_real_recipes(
    sample: Prepared, monkeypatch: pytest.MonkeyPatch
):
    perfect = {"recall_at_10": 1.0, "mrr": 1.0}
    pepper = np.full((40, 5), sample.foods.index("black pepper"), np.int32)
    monkeypatch.setattr(evaluate, "evaluate_completion", lambda *_, **__: perfect)
    monkeypatch.setattr(evaluate, "generate_sets", lambda *given, **options: pepper)
    # Classifiers take long and have tests of their own.
    monkeypatch.setattr(generation_quality, "two_sample_auc", lambda *_, **__: (1.0, [1.0, 1.0]))
    flags = evaluate.Flags(checkpoint=(), split="validation", baselines=False)
    tables = evaluate.evaluate_generator(load_model(PRETRAINED / "generator"), sample, flags)
    assert tables["completion"] == {"model": perfect, "model_by_next_food": perfect}
    (found,) = tables["generation"].values()
    assert found["n"] == 40 and found["length_mean"] == 5
    assert found["repeat_share"] == 1 and found["distinct_share"] == 1 / 40
    assert not {"recall_at_10", "mrr", "accuracy"} & set(found)


def test_amounts_are_scored_without_a_look_at_the_true_ones(sample: Prepared, monkeypatch):
    """What proposes amounts is given foods and their number; the true grams stay with the score."""
    seen = []

    def no_model(*given, **options):
        def even(foods, lengths):
            seen.append((foods, lengths))
            members = np.arange(foods.shape[1]) < lengths[:, None]
            return (members / lengths[:, None]).astype(np.float32)

        return even, lambda foods, lengths: np.stack([even(foods, lengths)] * 3)

    monkeypatch.setattr(evaluate, "amount_functions", no_model)
    flags = evaluate.Flags(checkpoint=(), split="train", baselines=False)
    table = evaluate.evaluate_amounts(shipped_amounts(), sample, flags)["amounts"]["model"]
    assert seen and all(array.dtype.kind == "i" for given in seen for array in given)
    assert table["log_ratio_error"] > 1  # even shares are wrong: the score compares with the truth


# Pickled arrays.

PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SOURCES = [
    path
    for folder in ("recipe_jax", "experiments", "kernels", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def unpickling(source: str) -> list[int]:
    """Lines that load a pickle or import what does; torch counts only where it loads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            found += [node.lineno for name in modules if name.split(".")[0] in PICKLERS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            of_numpy = called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False"
            if of_numpy or (called.startswith("torch.") and called.endswith(".load")):
                found.append(node.lineno)
    return found


def imports_torch(source: str) -> bool:
    modules = (line.split() for line in source.splitlines())
    return any(words[:1] in (["import"], ["from"]) and "torch" in words[1] for words in modules)


def test_no_module_can_load_a_pickle():
    assert len(SOURCES) > 50
    for path in SOURCES:
        source = path.read_text()
        assert not unpickling(source), path
        # Only what is measured against torch may know it.
        assert path.is_relative_to(ROOT / "benchmarks") or not imports_torch(source), path


@pytest.mark.parametrize(
    "line",
    [
        "import os, pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.jit.load(path)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_what_loads_a_pickle_is_found(line: str):
    assert unpickling(f"import numpy\n{line}") == [2]


def trapped(path: Path, trap: Path) -> bytes:
    """An archive of one pickled array, which would go off if it was loaded."""
    np.savez(path, components=np.array([Trap(trap)], object))
    with np.load(path, allow_pickle=True) as archive:
        _ = archive["components"]
    assert trap.exists()  # the trap works
    trap.unlink()
    return path.read_bytes()


def test_a_pickled_array_among_the_data_is_refused_unread(tmp_path: Path):
    path, trap = tmp_path / "composition.npz", tmp_path / "sprung"
    trapped(path, trap)
    with pytest.raises(DataError, match="not a composition table") as caught:
        read_food_features(path, foods=("egg",))
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_a_pickle_in_the_place_of_a_model_is_refused_unread(tmp_path: Path):
    folder, trap = tmp_path / "model", tmp_path / "sprung"
    folder.mkdir()
    (folder / "config.json").write_bytes((PRETRAINED / "amounts" / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(trapped(tmp_path / "arrays.npz", trap))
    with pytest.raises(ModelFolderError, match="not a whole safetensors file"):
        load_model(folder)
    assert not trap.exists()
