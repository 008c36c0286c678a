"""Model folders: what is written comes back, and what does not fit is refused by name."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recipe_jax.batches import Molecules
from recipe_jax.functional import purify
from recipe_jax.huggingface import (
    ModelFolderError,
    Precision,
    from_json,
    load_model,
    make_module,
    save_model,
    to_json,
)
from recipe_jax.layers.positions import Learned
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import GeneratorConfig

FOODS = ("salt", "sugar", "butter", "egg", "flour")


def config(**changes: object) -> GeneratorConfig:
    embedding = FoodEmbeddingConfig(num_foods=5, num_components=3, num_compounds=4, embed_dim=8)
    transformer = TransformerConfig(num_layers=2, embed_dim=8, num_heads=2)
    return GeneratorConfig(embedding=embedding, transformer=transformer, max_foods=4, **changes)


@pytest.fixture
def molecules() -> Molecules:
    rng = np.random.default_rng(0)
    return Molecules(
        # In Fortran order, as a transposed table is: the file must not depend on strides.
        composition=np.asfortranarray(rng.normal(size=(5, 3)).astype(np.float32)),
        observed=(rng.random((5, 3)) > 0.3).astype(np.float32),
        flavour=(rng.random((5, 4)) > 0.5).astype(np.float32),
        has_flavour=np.array([1, 0, 1, 1, 0], np.float32),
    )


@pytest.fixture
def folder(tmp_path: Path, molecules: Molecules) -> Path:
    cfg = config()
    _, params = purify(make_module("ingredient_generator", cfg, seed=3))
    save_model(
        tmp_path / "model", cfg=cfg, params=params, foods=FOODS, molecules=molecules, card="# A"
    )
    return tmp_path / "model"


def test_a_saved_model_gives_the_same_logits(folder: Path, molecules: Molecules):
    fn, params = purify(make_module("ingredient_generator", config(), seed=3))
    loaded = load_model(folder)
    foods = jnp.array([[0, 2, 4, 5]])
    expected = fn.bind(params)(jax.tree.map(jnp.asarray, molecules), foods)
    actual = loaded.fn.bind(loaded.params)(loaded.molecules, foods)
    assert loaded.foods == FOODS and loaded.cfg == config()
    np.testing.assert_array_equal(actual, expected)
    for stored, given in zip(loaded.molecules, molecules, strict=True):
        np.testing.assert_array_equal(stored, given)


@pytest.mark.parametrize(("precision", "steps"), [("float16", 2048), ("int8", 254)])
def test_a_lower_precision_moves_parameters_by_half_a_step(
    tmp_path: Path, molecules: Molecules, precision: Precision, steps: int
):
    _, params = purify(make_module("ingredient_generator", config()))
    save_model(
        tmp_path,
        cfg=config(),
        params=params,
        foods=FOODS,
        molecules=molecules,
        card="",
        precision=precision,
    )
    for old, new in zip(
        jax.tree.leaves(params), jax.tree.leaves(load_model(tmp_path).params), strict=True
    ):
        largest = np.abs(old).max(axis=-1, keepdims=True)
        assert np.all(np.abs(new - old) <= 1.1 * largest / steps + 1e-6)


def test_a_configuration_survives_json_with_its_positions():
    cfg = config(positions=Learned(max_positions=5))
    assert from_json(GeneratorConfig, json.loads(json.dumps(to_json(cfg)))) == cfg


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_foreign_model_type_is_named(folder: Path):
    rewrite(folder, model_type="llama")
    with pytest.raises(ModelFolderError, match=r"config.json: model_type='llama' must be one of"):
        load_model(folder)


def test_an_unknown_configuration_key_is_named(folder: Path):
    config = json.loads((folder / "config.json").read_text())["config"]
    rewrite(folder, config=config | {"num_experts": 8})
    with pytest.raises(ModelFolderError, match="no field 'num_experts'"):
        load_model(folder)


def test_a_truncated_file_is_refused(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match=r"model.safetensors: not a whole safetensors file"):
        load_model(folder)


def change_tensor(folder: Path, name: str, value: np.ndarray | None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(name)
    save_file(tensors | ({} if value is None else {name: value}), path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "tensor 'params/end' is missing"),
        (np.zeros(9, np.float32), r"tensor 'params/end' is float32\[9\], must be float32\[8\]"),
        (np.zeros(8, np.float64), r"tensor 'params/end' is float64\[8\]"),
        (np.full(8, np.nan, np.float32), "tensor 'params/end' holds values that are not finite"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder: Path, value: np.ndarray | None, message: str):
    change_tensor(folder, "params/end", value)
    with pytest.raises(ModelFolderError, match=message):
        load_model(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelFolderError, match="no such file"):
        load_model(tmp_path)
