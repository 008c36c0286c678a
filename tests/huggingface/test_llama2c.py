"""Checkpoints of llama2.c: written here by its layout, and the published stories260K."""

import os
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_language_model import VOCAB_SIZE, tiny_config, tiny_model

from recipe_jax.functional import flat_params
from recipe_jax.huggingface import (
    ModelFolderError,
    load_language_model,
    load_llama2c,
    save_language_model,
)
from recipe_jax.huggingface.tokenizers import load_llama2c_tokenizer, tokenizer_files
from recipe_jax.layers.positions import Rope
from recipe_jax.token_decoding import generate

STORY = (
    " was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
    "red ball."
)


def write_llama2c(path: Path, cfg, params) -> None:
    """The legacy export written out: every matrix as its output by its input."""
    t, leaves = cfg.transformer, {path: np.asarray(x) for path, x in flat_params(params).items()}
    block = ("stack", "blocks")

    def matrix(*name: str, num_summed: int = 1) -> bytes:
        weight = leaves[*block, *name]
        rows = int(np.prod(weight.shape[1 : 1 + num_summed]))
        return weight.reshape(len(weight), rows, -1).swapaxes(1, 2).tobytes()

    sign = 1 if cfg.tied else -1
    shape = (t.embed_dim, t.mlp_dim, t.num_layers, t.num_heads, t.num_kv_heads)
    data = struct.pack("<7i", *shape, sign * cfg.vocab_size, cfg.max_positions)
    data += leaves["embedding", "table"].tobytes()
    data += leaves[*block, "attention_norm", "scale"].tobytes()
    data += matrix("attention", "query") + matrix("attention", "key") + matrix("attention", "value")
    data += matrix("attention", "output", num_summed=2)
    data += leaves[*block, "feed_forward_norm", "scale"].tobytes()
    data += matrix("feed_forward", "gate", "kernel") + matrix("feed_forward", "down", "kernel")
    data += matrix("feed_forward", "up", "kernel")
    data += leaves["stack", "final_norm", "scale"].tobytes()
    data += bytes(4 * cfg.max_positions * (t.embed_dim // t.num_heads))
    if not cfg.tied:
        data += leaves["head", "kernel"].T.tobytes()
    path.write_bytes(data)


def legacy_config(tied: bool):
    return tiny_config(
        tied=tied, positions=Rope(interleaved=True), norm_eps=1e-5, head_dim=None, embed_dim=24
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_legacy_file_comes_back(tmp_path, tied):
    cfg = legacy_config(tied)
    _, params = tiny_model(cfg)
    write_llama2c(tmp_path / "model.bin", cfg, params)
    found = load_llama2c(tmp_path / "model.bin")
    assert found.cfg == cfg and (found.begin, found.ends) == (1, (2,))
    expected = flat_params(params)
    for path, leaf in flat_params(found.params).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-4], "but its header asks for"),
        (lambda data: data[:10], "10 bytes are no llama2.c checkpoint"),
        (lambda data: b"PK\x03\x04" + data[4:], "is no llama2.c header"),
        (lambda data: data[:12] + struct.pack("<i", 5) + data[16:], "num_heads=5"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, change, message):
    path = tmp_path / "model.bin"
    cfg = legacy_config(True)
    write_llama2c(path, cfg, tiny_model(cfg)[1])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelFolderError, match=message):
        load_llama2c(path)
    with pytest.raises(ModelFolderError, match="cannot be read"):
        load_llama2c(tmp_path / "missing.bin")


@pytest.fixture(scope="module")
def stories() -> Path:
    return Path(os.environ["RECIPE_JAX_DATA"]) / "llama_stories260k"


def continue_story(model, tokenizer) -> str:
    prompt = jnp.asarray([tokenizer("Zoo")["input_ids"]], jnp.int32)
    lengths = jnp.array([prompt.shape[1]])
    found = generate(model.fn, model.params, prompt, lengths, max_new_tokens=60, ends=model.ends)
    tokens = [*prompt[0].tolist(), *found.tokens[0, : found.lengths[0]].tolist()]
    return tokenizer.decode(tokens, skip_special_tokens=True).removeprefix("Zoo")


@pytest.mark.real_data
def test_stories260k_tells_its_published_story(stories, tmp_path):
    model = load_llama2c(stories / "stories260K.bin")
    tokenizer = load_llama2c_tokenizer(stories / "tok512.bin")
    assert continue_story(model, tokenizer).startswith(STORY)
    # As a Hugging Face folder, with halves in place of pairs, it tells the same.
    files = tokenizer_files(tokenizer)
    save_language_model(tmp_path / "stories", model, card="# Stories", tokenizer_files=files)
    again = load_language_model(tmp_path / "stories")
    assert continue_story(again, tokenizer) == continue_story(model, tokenizer)


@pytest.mark.real_data
def test_nothing_in_the_story_model_is_left_at_random(stories):
    """Each of its 260,032 numbers is used: the vocabulary of 512 is shared with the output."""
    model = load_llama2c(stories / "stories260K.bin")
    sizes = {path: leaf.size for path, leaf in flat_params(model.params).items()}
    assert sum(sizes.values()) == 260_032 and model.cfg.vocab_size == 512 != VOCAB_SIZE
