"""Model folders: what is written comes back, and what does not fit is refused by name."""

import errno
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import draw_parameters
from safetensors.numpy import load_file, save_file

from recipe_jax.batches import Molecules
from recipe_jax.functional import abstract, purify
from recipe_jax.huggingface import (
    MODELS,
    RECIPE_MODELS,
    ModelFolderError,
    Precision,
    from_json,
    load_model,
    load_module,
    make_module,
    save_model,
    save_module,
    to_json,
)
from recipe_jax.layers.low_rank import LowRank
from recipe_jax.layers.positions import Alibi, Learned, LinearScaling, NoPositions, Rope
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.amounts import AmountsConfig
from recipe_jax.models.amounts_ensemble import AmountsEnsembleConfig
from recipe_jax.models.autoregressive_amounts import AutoregressiveAmountsConfig
from recipe_jax.models.bert_encoder import BertEncoderConfig
from recipe_jax.models.causal_language_model import CausalLanguageModelConfig
from recipe_jax.models.encoder_decoder_generator import EncoderDecoderConfig
from recipe_jax.models.encoder_decoder_transformer import EncoderDecoderTransformerConfig
from recipe_jax.models.feed_forward_network import FeedForwardNetworkConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig
from recipe_jax.models.generative_recommender import GenerativeRecommenderConfig
from recipe_jax.models.gram_bins import GramBins
from recipe_jax.models.ingredient_generator import GeneratorConfig
from recipe_jax.models.joint_recipes import JointRecipesConfig
from recipe_jax.models.masked_set_generator import MaskedSetConfig
from recipe_jax.models.residual_codebooks import ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVaeConfig
from recipe_jax.models.sasrec import SasrecConfig

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


@pytest.mark.parametrize(
    "positions", [Learned(max_positions=5), Rope(base=50.0, scaling=LinearScaling(2.0))]
)
def test_a_configuration_survives_json_with_its_positions(positions: NoPositions):
    cfg = config(positions=positions)
    assert from_json(GeneratorConfig, json.loads(json.dumps(to_json(cfg)))) == cfg


# Values that differ from the defaults, nested ones too: a lost one would show.
SHAPE = {name: getattr(config(), name) for name in ("embedding", "transformer", "max_foods")}
BINS = GramBins(num_bins=7, min_grams=0.5, max_grams=90.0)
AMOUNTS = AmountsConfig(**SHAPE, num_components=3, mean_weight=0.5)
CONFIGS = {
    "ingredient_generator": GeneratorConfig(**SHAPE),
    "encoder_decoder_generator": EncoderDecoderConfig(**SHAPE, encoder_layers=1),
    "masked_set_generator": MaskedSetConfig(**SHAPE),
    "joint_recipes": JointRecipesConfig(**SHAPE, bins=BINS, hidden_rate=0.5),
    "amounts": AMOUNTS,
    "amounts_ensemble": AmountsEnsembleConfig(model=AMOUNTS, num_models=2),
    "autoregressive_amounts": AutoregressiveAmountsConfig(**SHAPE, bins=BINS, num_decoder_layers=1),
}


@pytest.mark.parametrize("model_type", RECIPE_MODELS)
def test_every_recipe_model_survives_its_folder(
    model_type: str, tmp_path: Path, molecules: Molecules
):
    cfg = CONFIGS[model_type]
    fn, shapes = abstract(lambda: make_module(model_type, cfg))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    given = {"cfg": cfg, "params": params, "foods": FOODS, "molecules": molecules, "card": ""}
    save_model(tmp_path / "whole", **given)
    loaded = load_model(tmp_path / "whole")
    assert (loaded.model_type, loaded.cfg, loaded.fn) == (model_type, cfg, fn)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    save_model(tmp_path / "small", **given, precision="int8")
    for old, new in zip(
        jax.tree.leaves(params), jax.tree.leaves(load_model(tmp_path / "small").params), strict=True
    ):
        largest = np.abs(old).max(axis=-1, keepdims=True)
        assert np.all(np.abs(new - old) <= 1.1 * largest / 254 + 2e-3)


BLOCKS = TransformerConfig(
    num_layers=2, embed_dim=8, num_heads=2, adapters=LowRank(rank=2, targets=("up",))
)
OTHERS = {
    "bert_encoder": BertEncoderConfig(vocab_size=9, transformer=BLOCKS, max_positions=7),
    "causal_language_model": CausalLanguageModelConfig(
        vocab_size=9, transformer=BLOCKS, positions=Alibi(), tied=True
    ),
    "encoder_decoder_transformer": EncoderDecoderTransformerConfig(
        vocab_size=9, transformer=BLOCKS, encoder_layers=1, source_vocab_size=7
    ),
    "feed_forward_network": FeedForwardNetworkConfig(in_dim=3, out_dim=2, hidden_dims=(4, 4)),
    "feed_forward_classifier": FeedForwardNetworkConfig(in_dim=3, out_dim=2, residual=True),
    "residual_codebooks": ResidualCodebooksConfig(in_dim=3, num_codes=4),
    "generative_recommender": GenerativeRecommenderConfig(
        sizes=(3, 4, 2), transformer=BLOCKS, encoder_layers=1, max_items=5
    ),
    "sasrec": SasrecConfig(
        num_items=9, transformer=BLOCKS, positions=Learned(6), max_items=6, temperature=0.1
    ),
    "rq_vae": RqVaeConfig(in_dim=3, latent_dim=2, hidden_dims=(4,), num_codes=4),
}


def test_every_model_is_one_or_the_other():
    assert {*RECIPE_MODELS, *OTHERS} == set(MODELS)


@pytest.mark.parametrize("model_type", OTHERS)
def test_every_other_model_survives_its_folder(model_type: str, tmp_path: Path):
    cfg = OTHERS[model_type]
    fn, params = draw_parameters(lambda rngs: MODELS[model_type][1](cfg, rngs=rngs))
    given = {"cfg": cfg, "params": params, "card": "", "files": {"tokenizer.json": b"{}"}}
    save_module(tmp_path / "model", **given, model_type=model_type, config={"classes": ["a"]})
    found = load_module(tmp_path / "model")
    assert (found.model_type, found.cfg, found.fn) == (model_type, cfg, fn)
    assert found.config["classes"] == ["a"]
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == b"{}"
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    with pytest.raises(ModelFolderError, match=f"model_type='{model_type}' must be"):
        load_model(tmp_path / "model")


def test_a_configuration_of_several_models_needs_a_name(tmp_path: Path):
    with pytest.raises(ValueError, match="model_type=None of a FeedForwardNetworkConfig must be"):
        save_module(tmp_path, cfg=OTHERS["feed_forward_network"], params={}, card="")


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": ["amounts"]}, "model_type=['amounts'] must be one of"),
        ({"config": [3]}, "config=[3] must be an object"),
        ({"config": {"num_dims": 3}}, "config: "),
    ],
)
def test_a_configuration_of_another_form_is_refused(folder: Path, changes, message: str):
    rewrite(folder, **changes)
    with pytest.raises(ModelFolderError) as caught:
        load_model(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: {message}")
    assert "\n" not in str(caught.value)


def test_a_number_that_is_none_is_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())["config"]
    embedding = config["embedding"] | {"embed_dim": 8.5}
    rewrite(folder, config=config | {"embedding": embedding})
    with pytest.raises(ModelFolderError, match=r"config\.json: config: ") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_value_type_is_named(folder: Path):
    config = json.loads((folder / "config.json").read_text())["config"]
    rewrite(folder, config=config | {"positions": {"type": "Wavelets"}})
    with pytest.raises(ModelFolderError, match=r"type='Wavelets' must be one of \['Alibi'"):
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


def test_a_full_disk_leaves_the_old_model_whole(
    folder: Path, molecules: Molecules, monkeypatch: pytest.MonkeyPatch
):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    loaded = load_model(folder)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "safetensors" in path.name:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ModelFolderError, match=r"model\.safetensors: could not be written \(No"):
        save_model(
            folder,
            cfg=loaded.cfg,
            params=loaded.params,
            foods=loaded.foods,
            molecules=molecules,
            card="another",
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
