"""Checkpoints of the Llama family out and in, onto any mesh; what does not fit is refused."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_language_model import VOCAB_SIZE, tiny_config, tiny_model
from tolerances import assert_close

from recipe_jax.functional import flat_params
from recipe_jax.huggingface import (
    LanguageModel,
    ModelFolderError,
    load_language_model,
    save_language_model,
)
from recipe_jax.huggingface.checkpoint_tensors import INDEX, ONE_FILE
from recipe_jax.layers.positions import Alibi, LinearScaling, Llama3Scaling, Rope
from recipe_jax.sharding import make_mesh, param_shardings

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 9)), jnp.int32)
CONFIGS = {
    "llama": tiny_config(),
    "tied": tiny_config(tied=True),
    "llama3": tiny_config(positions=Rope(5e5, Llama3Scaling(original_max_positions=16))),
    "linear": tiny_config(positions=Rope(1e4, LinearScaling(4.0))),
    "attention bias": tiny_config(bias="attention"),
    "all biases": tiny_config(bias="all"),
    "qwen2": tiny_config(bias="qkv", head_dim=2),
    "qwen2, heads of another width": tiny_config(bias="qkv"),
    "qwen3": tiny_config(qk_norm=True),
}


def model_of(cfg) -> LanguageModel:
    return LanguageModel(cfg, *tiny_model(cfg), begin=1, ends=(2, 7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_language_model(tmp_path / "model", model_of(CONFIGS["llama"]), card="# A model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, name):
    model = model_of(CONFIGS[name])
    save_language_model(tmp_path / "model", model, card="# A model")
    found = load_language_model(tmp_path / "model")
    assert found.cfg == model.cfg and found.fn == model.fn
    assert (found.begin, found.ends) == (1, (2, 7))
    expected, actual = flat_params(model.params), flat_params(found.params)
    assert actual.keys() == expected.keys()
    for path, leaf in actual.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=str(path))


def test_interleaved_pairs_become_halves_with_the_same_logits(tmp_path):
    model = model_of(tiny_config(positions=Rope(interleaved=True), qk_norm=True, bias="attention"))
    save_language_model(tmp_path / "model", model, card="")
    found = load_language_model(tmp_path / "model")
    assert not found.cfg.positions.interleaved
    assert_close(found.fn.bind(found.params)(TOKENS), model.fn.bind(model.params)(TOKENS))


def test_special_tokens_beyond_the_vocabulary_are_left_out(folder):
    change_config(folder, bos_token_id=13, eos_token_id=[5, 13])
    found = load_language_model(folder)
    assert (found.begin, found.ends) == (None, (5,))


def test_several_files_and_one_hold_the_same(tmp_path, folder):
    model = load_language_model(folder)
    save_language_model(tmp_path / "many", model, card="", max_file_bytes=3000)
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3 and not (tmp_path / "many" / ONE_FILE).exists()
    one = load_file(folder / ONE_FILE)
    many = {k: v for file in files for k, v in load_file(tmp_path / "many" / file).items()}
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in one.values())
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all((one[name] == many[name]).all() for name in one)
    # Written over, the other way round, nothing of the old model is left.
    save_language_model(tmp_path / "many", model, card="")
    found = {path.name for path in (tmp_path / "many").iterdir()}
    assert found == {ONE_FILE, "config.json", "generation_config.json", "README.md"}


def test_a_model_written_over_another_ends_with_its_own_tokens(folder):
    model = load_language_model(folder)
    save_language_model(folder, model._replace(begin=3, ends=(4,)), card="")
    found = load_language_model(folder)
    assert (found.begin, found.ends) == (3, (4,))


def test_every_device_gets_its_shard_and_nothing_else(folder):
    plain = load_language_model(folder)
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    sharded = load_language_model(folder, mesh=mesh)
    shardings = param_shardings(sharded.fn.axes, sharded.fn.shapes, mesh)
    for leaf, wanted in zip(
        jax.tree.leaves(sharded.params), jax.tree.leaves(shardings), strict=True
    ):
        assert leaf.sharding == wanted
    query = sharded.params["stack"]["blocks"]["attention"]["query"]
    assert query.addressable_shards[0].data.shape == (2, 6, 3, 4)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(sharded.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("stored", "dtype"), [("BF16", ml_dtypes.bfloat16), ("F16", np.float16)])
def test_half_precision_is_kept_unless_asked_otherwise(tmp_path, folder, stored, dtype):
    model = load_language_model(folder)
    save_language_model(tmp_path / "half", model, card="", dtype=stored)
    kept = load_language_model(tmp_path / "half")
    wide = load_language_model(tmp_path / "half", param_dtype="float32")
    for whole, half, again in zip(
        *(jax.tree.leaves(m.params) for m in (model, kept, wide)), strict=True
    ):
        assert half.dtype == dtype and again.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(whole).astype(dtype), half)
        np.testing.assert_array_equal(np.asarray(half, np.float32), again)
    # Weights are widened where they are used: both are one function.
    logits = [m.fn.bind(m.params)(TOKENS) for m in (kept, wide)]
    np.testing.assert_array_equal(*logits)


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "removed"}))
    (folder / "generation_config.json").unlink(missing_ok=True)  # its tokens would go before


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / ONE_FILE)
    change(tensors)
    save_file(tensors, folder / ONE_FILE)


NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
LARGEST = 2**31 - 1


def rope(**fields):
    """A change of how the checkpoint's rotary positions are scaled."""
    return lambda folder: change_config(folder, rope_parameters=fields)


BROKEN = {
    "config.json: model_type='gpt2' must be one of ['llama', 'qwen2', 'qwen3']": (
        lambda f: change_config(f, model_type="gpt2")
    ),
    "config.json: model_type=['llama'] must be one of": lambda f: change_config(
        f, model_type=["llama"]
    ),
    "config.json: key 'hidden_size' is missing": lambda f: change_config(f, hidden_size="removed"),
    f"hidden_size=-4 must be a whole number from 1 to {LARGEST}": lambda f: change_config(
        f, hidden_size=-4
    ),
    f"vocab_size=True must be a whole number from 1 to {LARGEST}": lambda f: change_config(
        f, vocab_size=True
    ),
    "num_attention_heads=6 must be a multiple of num_key_value_heads=4": lambda f: change_config(
        f, num_key_value_heads=4
    ),
    "hidden_size=12 must be a multiple of num_attention_heads=5, unless head_dim is given": (
        lambda f: change_config(f, num_attention_heads=5, num_key_value_heads=5, head_dim=None)
    ),
    "head_dim=5 must be even: features turn in pairs": lambda f: change_config(f, head_dim=5),
    "rms_norm_eps='x' must be a finite number above 0": lambda f: change_config(
        f, rms_norm_eps="x"
    ),
    "rms_norm_eps=nan must be a finite number above 0": lambda f: change_config(
        f, rms_norm_eps=float("nan")
    ),
    "tie_word_embeddings='false' must be true or false": lambda f: change_config(
        f, tie_word_embeddings="false"
    ),
    "attention_bias=1 must be true or false": lambda f: change_config(f, attention_bias=1),
    "rope_theta=-1.0 must be a finite number above 0": rope(rope_theta=-1.0),
    "factor='two' must be a finite number above 0": rope(rope_type="linear", factor="two"),
    "low_freq_factor=4.0 must be below high_freq_factor=4.0": rope(
        rope_type="llama3", factor=2.0, low_freq_factor=4.0, high_freq_factor=4.0
    ),
    f"original_max_position_embeddings='x' must be a whole number from 1 to {LARGEST}": rope(
        rope_type="llama3",
        factor=2.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings="x",
    ),
    "rope_parameters=[1] must be an object": lambda f: change_config(f, rope_parameters=[1]),
    "layer_types=3 must be a list": lambda f: change_config(f, layer_types=3),
    "config.json: eos_token_id=['</s>'] must be a token, or a list of them": (
        lambda f: change_config(f, eos_token_id=["</s>"])
    ),
    "config.json: bos_token_id='<s>' must be a token": lambda f: change_config(
        f, bos_token_id="<s>"
    ),
    "generation_config.json: eos_token_id=-1 must be a token, or a list of them": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": -1}')
    ),
    "generation_config.json: must hold a JSON object, not a list": (
        lambda f: (f / "generation_config.json").write_text("[]")
    ),
    # So many that their names alone would fill the memory.
    "tensor 'model.layers.2.self_attn.k_proj.weight' is missing, config.json asks for [8, 12]": (
        lambda f: change_config(f, num_hidden_layers=LARGEST)
    ),
    "hidden_act='gelu' must be 'silu'": lambda f: change_config(f, hidden_act="gelu"),
    "rope_type='yarn' must be one of ('default', 'linear', 'llama3')": rope(
        rope_type="yarn", factor=2.0
    ),
    "rope_parameters has the key 'full_attention', must be for all layers": rope(
        full_attention={"rope_type": "linear", "factor": 2.0}
    ),
    "rope_type='llama3' needs the key 'factor'": rope(rope_type="llama3"),
    "layer_types holds 'sliding_attention', must be 'full_attention'": lambda f: change_config(
        f, layer_types=["full_attention", "sliding_attention"]
    ),
    "quantization_config={'bits': 4} must be None": lambda f: change_config(
        f, quantization_config={"bits": 4}
    ),
    "config.json: not readable as JSON": lambda f: (f / "config.json").write_text("{"),
    "config.json: not readable as JSON (maximum recursion depth": (
        lambda f: (f / "config.json").write_text("[" * 100_000)
    ),
    "config.json: must hold a JSON object, not a list": (
        lambda f: (f / "config.json").write_text("[]")
    ),
    "model.safetensors: no such file": lambda f: (f / ONE_FILE).unlink(),
    "model.safetensors: not a whole safetensors file (": lambda f: (f / ONE_FILE).write_bytes(
        (f / ONE_FILE).read_bytes()[:-8]
    ),
    "model.safetensors: not a whole safetensors file (Error": lambda f: (f / ONE_FILE).write_bytes(
        (10**12).to_bytes(8, "little") + b"{}"
    ),
    f"tensor '{NORM}' is missing, config.json asks for [12]": lambda f: change_tensors(
        f, lambda t: t.pop(NORM)
    ),
    "tensor 'model.extra.weight' is not part of the model in config.json": lambda f: change_tensors(
        f, lambda t: t.update({"model.extra.weight": t[NORM]})
    ),
    f"tensor '{QUERY}' has the shape [12, 24], config.json asks for [24, 12]": lambda f: (
        change_tensors(f, lambda t: t.update({QUERY: t[QUERY].T.copy()}))
    ),
    f"tensor '{NORM}' has dtype I32, must be one of ['BF16', 'F16', 'F32']": (
        lambda f: change_tensors(f, lambda t: t.update({NORM: t[NORM].astype(np.int32)}))
    ),
    f"tensor '{QUERY}' holds values that are not finite": lambda f: change_tensors(
        f, lambda t: t.update({QUERY: t[QUERY] * np.nan})
    ),
    "'lm_head.weight' must equal": lambda f: change_config(f, tie_word_embeddings=True),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_fit_is_refused_in_one_line(folder, message):
    BROKEN[message](folder)
    with pytest.raises(ModelFolderError, match=re.escape(message)) as caught:
        load_language_model(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_must_fit_its_files(tmp_path, folder):
    save_language_model(
        tmp_path / "many", load_language_model(folder), card="", max_file_bytes=3000
    )
    path = tmp_path / "many" / INDEX
    index = json.loads(path.read_text())

    def with_map(**changes):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | changes}))
        with pytest.raises(ModelFolderError) as caught:
            load_language_model(tmp_path / "many")
        return str(caught.value)

    assert "'../elsewhere' must be a file of this folder" in with_map(x="../elsewhere")
    assert "['a'] must be a file of this folder" in with_map(x=["a"])
    file = index["weight_map"][NORM]
    assert with_map(x=file) == f"{path}: tensor 'x' is not in {file}"
    other = next(name for name in index["weight_map"].values() if name != file)
    holds = f"{path.parent / file}: holds tensor {NORM!r}, which {INDEX} says is"
    assert with_map(**{NORM: other}) == f"{holds} in {other}"
    # The same tensor in two files: which one counts is not for their order to say.
    tensors = load_file(path.parent / other)
    save_file(tensors | {NORM: np.ones(12, np.float32)}, path.parent / other)
    holds = f"{path.parent / other}: holds tensor {NORM!r}, which {INDEX} says is"
    assert with_map() == f"{holds} in {file}"
    save_file(tensors | {"y": np.ones(12, np.float32)}, path.parent / other)
    assert with_map() == f"{holds.replace(NORM, 'y')} nowhere"
    save_file(tensors, path.parent / other)
    (tmp_path / "many" / index["weight_map"][NORM]).unlink()
    assert "no such file" in with_map()


def test_what_older_checkpoints_hold_besides_is_no_matter(folder):
    """Rotary frequencies follow from the configuration, and an equal head from the table."""
    expected = load_language_model(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda t: t.update({name: np.ones(2, np.float32)}))
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    change_config(folder, tie_word_embeddings=True, rope_parameters="removed", rope_theta=1e4)
    found = load_language_model(folder)
    assert found.cfg.tied and found.cfg.positions == expected.cfg.positions
    assert "head" not in found.params


def test_what_is_said_twice_is_read_as_transformers_reads_it(folder):
    scaled = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    change_config(folder, rope_scaling=scaled, rope_theta=5e4, original_max_position_embeddings=16)
    scaling = Llama3Scaling(factor=2.0, original_max_positions=16)
    assert load_language_model(folder).cfg.positions == Rope(5e4, scaling)


def test_no_number_of_key_heads_is_that_of_query_heads(tmp_path):
    cfg = tiny_config(bias="qkv", num_kv_heads=6)
    save_language_model(tmp_path, model_of(cfg), card="")
    change_config(tmp_path, num_key_value_heads=None)
    assert load_language_model(tmp_path).cfg.transformer.attention.kv_heads == 6


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (tiny_config(activation="gelu"), "activation='gelu' must be 'swiglu'"),
        (tiny_config(norm="layer"), "norm='layer' must be 'rms'"),
        (tiny_config(positions=Alibi()), "must be Rope"),
        (tiny_config(bias="all", qk_norm=True), "bias='all' must be"),
    ],
)
def test_a_model_of_no_family_is_not_written(tmp_path, cfg, message):
    with pytest.raises(ModelFolderError, match=message):
        save_language_model(tmp_path / "model", model_of(cfg), card="")
    assert not (tmp_path / "model").exists()


def test_a_disk_that_is_full_leaves_the_old_model(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = load_language_model(folder)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "config" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ModelFolderError, match="No space left on device"):
        save_language_model(folder, model, card="other")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
