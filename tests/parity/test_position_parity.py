"""Positions and embeddings of transformers and torch: rotation, slopes, tables, tied logits."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close
from torch_weights import assert_parity, built, normal, randomized

from recipe_jax.layers.embeddings import PositionEmbedding, TokenEmbedding
from recipe_jax.layers.positions import (
    Learned,
    LinearScaling,
    Llama3Scaling,
    Rope,
    Sinusoidal,
    alibi_bias,
    alibi_slopes,
    rotary_frequencies,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

B, T, H, D, E, V = 2, 5, 3, 16, 12, 11
HEADS = normal(0, B, T, H, D)
INDICES = np.array([[0, 1, 2, 3, 4], [7, 3, 30, 41, 59]], np.int32)
TOKENS = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALINGS = {
    "default": ({"rope_type": "default", "rope_theta": 500.0}, Rope(base=500.0)),
    "linear": (
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0},
        Rope(scaling=LinearScaling(3.0)),
    ),
    "llama3": (
        {"rope_type": "llama3", "rope_theta": 5_000.0} | LLAMA3,
        Rope(base=5_000.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)),
    ),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_rotation_in_halves_is_that_of_llama(kind):
    import transformers
    from transformers.models.llama import modeling_llama

    parameters, rope = SCALINGS[kind]
    config = transformers.LlamaConfig(
        hidden_size=H * D, num_attention_heads=H, rope_parameters=parameters
    )
    rotary = modeling_llama.LlamaRotaryEmbedding(config)
    frequencies = rotary_frequencies(D, base=rope.base)
    if rope.scaling is not None:
        unscaled, frequencies = frequencies, rope.scaling.scale(frequencies)
        assert np.abs(frequencies / unscaled - 1).max() > 0.5
    assert_close(frequencies, rotary.inv_freq.numpy(), "elementwise")

    def theirs(heads):
        cos, sin = rotary(heads, torch.tensor(INDICES))
        rotated, _ = modeling_llama.apply_rotary_pos_emb(
            heads.transpose(1, 2), heads.transpose(1, 2), cos, sin
        )
        return rotated.transpose(1, 2)

    assert_parity(lambda _, heads: rope.rotate(heads, jnp.asarray(INDICES)), theirs, HEADS)


def by_gptj(heads):
    """Sines and cosines from its table."""
    from transformers.models.gptj import modeling_gptj

    table = modeling_gptj.create_sinusoidal_positions(64, D)[torch.tensor(INDICES)]
    sines, cosines = table.split(D // 2, dim=-1)
    return modeling_gptj.apply_rotary_pos_emb(heads, sines, cosines)


def by_complex_numbers(heads):
    """As llama2.c was trained: a pair is a complex number, a rotation its product with another."""
    frequencies = 10_000.0 ** (-torch.arange(0, D, 2) / D)
    angles = torch.tensor(INDICES)[..., None] * frequencies
    turns = torch.polar(torch.ones_like(angles), angles)[:, :, None]
    pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


@pytest.mark.parametrize("theirs", [by_gptj, by_complex_numbers])
def test_rotation_of_neighbours(theirs):
    rope = Rope(interleaved=True)
    assert_parity(lambda _, heads: rope.rotate(heads, jnp.asarray(INDICES)), theirs, HEADS)


def test_slopes_and_biases_are_those_of_bloom_and_mpt():
    """Powers of two and what lies between them, up to the 112 heads of BLOOM."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    for num_heads in (1, 2, 3, 5, 6, 8, 12, 16, 20, 32, 40, 112):
        slopes = alibi_slopes(num_heads)
        bloom = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)
        assert_close(slopes, bloom[:, 0, 1].numpy(), "elementwise")
        bias = alibi_bias(slopes, jnp.array([[T - 1]]), jnp.arange(T)[None])
        assert_close(bias[0], build_mpt_alibi_tensor(num_heads, T).numpy(), "elementwise")


def test_sinusoidal_positions_are_those_of_distilbert():
    from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

    table = torch.empty(60, E)
    create_sinusoidal_embeddings(60, E, table)
    assert_parity(
        lambda _, x: Sinusoidal().encode(x, jnp.asarray(INDICES)),
        lambda x: x + table[torch.tensor(INDICES)],
        normal(2, B, T, E),
    )


def test_learned_positions_are_an_embedding():
    """A row that two tokens look up gets the sum of their gradients."""
    theirs = randomized(torch.nn.Embedding(60, E))
    fn = built(lambda rngs: PositionEmbedding(Learned(60), E, rngs=rngs))
    for indices in (INDICES, INDICES % 3, None):
        rows = np.arange(T)[None] if indices is None else indices
        ours = None if indices is None else jnp.asarray(indices)
        assert_parity(
            lambda params, x, ours=ours: fn.bind(params)(x, ours),
            lambda x, rows=rows: x + theirs(torch.tensor(rows)),
            normal(3, B, T, E),
            module=theirs,
            convert=lambda arrays: {"table": arrays["weight"]},
        )


def test_embeddings_are_scaled_on_the_way_in_and_tied_unscaled_on_the_way_out():
    theirs = randomized(torch.nn.Embedding(V, E))
    fn = built(lambda rngs: TokenEmbedding(V, E, scale=E**0.5, rngs=rngs))

    def tied(x):
        inner = torch.tanh(x + E**0.5 * theirs(torch.tensor(TOKENS)))
        return torch.nn.functional.linear(inner, theirs.weight)

    def ours(params, x):
        module = fn.bind(params)
        return module.logits(jnp.tanh(x + module(jnp.asarray(TOKENS))))

    assert_parity(
        ours,
        tied,
        normal(4, B, T, E),
        module=theirs,
        convert=lambda arrays: {"table": arrays["weight"]},
    )
