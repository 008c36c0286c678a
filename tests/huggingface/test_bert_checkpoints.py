"""BERT from a folder: the function of plain formulas; what is not known is refused by its value."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bert_folder import CONFIG, draw_tensors, plain_states, write_bert_folder
from safetensors.numpy import load_file, save_file
from tolerances import assert_close

from recipe_jax.huggingface import ModelFolderError, load_bert_encoder
from recipe_jax.sharding import make_mesh

TENSORS = draw_tensors()
TOKENS = np.array([[2, 5, 9, 4, 3, 0], [2, 7, 3, 0, 0, 0], [2, 4, 4, 8, 15, 3]], np.int32)
LENGTHS = np.array([5, 3, 6], np.int32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_bert_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    return tmp_path


def assert_same_params(folder: Path, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, load_bert_encoder(folder).params, expected.params)


def test_states_are_those_of_the_formulas(whole):
    found = load_bert_encoder(whole)
    states = jax.jit(lambda p, t, n: found.fn.bind(p)(t, n))(found.params, TOKENS, LENGTHS)
    for row, length in enumerate(LENGTHS):
        expected = plain_states(TENSORS, TOKENS[row, :length].tolist())
        assert_close(states[row, :length], expected)


def test_names_of_any_age_are_one_checkpoint(folder):
    expected = load_bert_encoder(folder)
    path = folder / "model.safetensors"
    heads = {
        "cls.predictions.bias": np.zeros(3, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 12), np.float32),
        "bert.embeddings.position_ids": np.arange(40)[None],
    }
    prefixed = {f"bert.{name}": array for name, array in TENSORS.items()}
    save_file(prefixed | heads, path)
    assert_same_params(folder, expected)
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): array
        for name, array in prefixed.items()
    }
    assert old.keys() != prefixed.keys()
    save_file(old, path)
    assert_same_params(folder, expected)
    without = {name: array for name, array in TENSORS.items() if not name.startswith("pooler")}
    save_file(without | {"embeddings.position_ids": np.arange(40)[None]}, path)
    assert_same_params(folder, expected)


def test_parameters_lie_on_the_mesh(whole):
    plain = load_bert_encoder(whole)
    sharded = load_bert_encoder(whole, mesh=make_mesh("fsdp=2,tensor=2", jax.devices()[:4]))
    up = sharded.params["stack"]["blocks"]["feed_forward"]["up"]["kernel"]
    assert up.addressable_shards[0].data.size < up.size
    jax.tree.map(np.testing.assert_array_equal, plain.params, sharded.params)


def test_half_precision_is_kept_unless_asked_otherwise(folder):
    half = {name: array.astype(np.float16) for name, array in TENSORS.items()}
    save_file(half, folder / "model.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(load_bert_encoder(folder).params)} == {
        jnp.dtype("float16")
    }
    wide = load_bert_encoder(folder, param_dtype="float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.params)} == {jnp.dtype("float32")}
    kept = load_bert_encoder(folder)
    states = [jax.jit(m.fn.bind(m.params))(TOKENS, LENGTHS) for m in (kept, wide)]
    assert states[0].dtype == jnp.float32
    assert_close(states[0], states[1])


@pytest.mark.parametrize(
    ("name", "ours"),
    [("gelu_new", "gelu_tanh"), ("relu", "relu"), ("swish", "silu"), ("gelu_python", "gelu")],
)
def test_activations_have_our_names(folder, name, ours):
    change_config(folder, hidden_act=name, layer_norm_eps=1e-5)
    cfg = load_bert_encoder(folder).cfg
    assert (cfg.transformer.activation, cfg.transformer.norm_eps) == (ours, 1e-5)


def change_config(folder: Path, **changes) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value != "removed"}
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


QUERY = "encoder.layer.1.attention.self.query.weight"
BROKEN = {
    "model_type='roberta' must be 'bert'": lambda f: change_config(f, model_type="roberta"),
    "model_type=None must be 'bert'": lambda f: change_config(f, model_type="removed"),
    "position_embedding_type='relative_key' must be 'absolute'": (
        lambda f: change_config(f, position_embedding_type="relative_key")
    ),
    "is_decoder=True must be False": lambda f: change_config(f, is_decoder=True),
    "pruned_heads={'0': [1]} must be {}": lambda f: change_config(f, pruned_heads={"0": [1]}),
    "quantization_config={'bits': 8} must be None": lambda f: change_config(
        f, quantization_config={"bits": 8}
    ),
    "auto_map={'AutoModel': 'mine.Mine'} must be None": lambda f: change_config(
        f, auto_map={"AutoModel": "mine.Mine"}
    ),
    "hidden_act='mish' must be one of ['gelu', 'gelu_new'": lambda f: change_config(
        f, hidden_act="mish"
    ),
    "hidden_act=['gelu'] must be one of": lambda f: change_config(f, hidden_act=["gelu"]),
    "key 'hidden_size' is missing": lambda f: change_config(f, hidden_size="removed"),
    "vocab_size=0 must be a whole number": lambda f: change_config(f, vocab_size=0),
    "layer_norm_eps=0 must be a finite number above 0": lambda f: change_config(
        f, layer_norm_eps=0
    ),
    "hidden_size=12 must be a multiple of num_attention_heads=5": lambda f: change_config(
        f, num_attention_heads=5
    ),
    "tensor 'encoder.layer.2.attention.self.key.weight' is missing": lambda f: change_config(
        f, num_hidden_layers=3
    ),
    "has the shape [40, 12], config.json asks for [512, 12]": lambda f: change_config(
        f, max_position_embeddings="removed"
    ),
    f"tensor '{QUERY}' is missing, config.json asks for [12, 12]": lambda f: change_tensors(
        f, lambda t: t.pop(QUERY)
    ),
    f"tensors 'bert.{QUERY}' and '{QUERY}' are both '{QUERY}'": lambda f: change_tensors(
        f, lambda t: t.update({f"bert.{QUERY}": t[QUERY]})
    ),
    "tensor 'bert.linear.weight' is not part of the model in config.json": (
        lambda f: change_tensors(f, lambda t: t.update({"bert.linear.weight": t[QUERY]}))
    ),
    f"tensor '{QUERY}' holds values that are not finite": lambda f: change_tensors(
        f, lambda t: t.update({QUERY: t[QUERY] * np.nan})
    ),
    "model.safetensors: no such file; pytorch_model.bin is pickled": lambda f: (
        f / "model.safetensors"
    ).rename(f / "pytorch_model.bin"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_fit_is_refused_in_one_line(folder, message):
    BROKEN[message](folder)
    with pytest.raises(ModelFolderError, match=re.escape(message)) as caught:
        load_bert_encoder(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
