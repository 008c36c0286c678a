"""Llama, Qwen2 and Qwen3 of the transformers library: logits, greedy texts, and back again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipe_jax.batches import TokenBatch
from recipe_jax.functional import flat_params
from recipe_jax.huggingface import load_language_model, save_language_model
from recipe_jax.huggingface.tensor_layouts import LAYOUTS
from recipe_jax.models.causal_language_model import next_token_loss
from recipe_jax.token_decoding import TokenSampling, generate

pytestmark = pytest.mark.parity
V, NEW = 97, 128
SHAPE = {
    "vocab_size": V,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("LlamaConfig", {}),
    "llama, multi-head": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama, multi-query": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama 3": ("LlamaConfig", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "llama, linear scaling": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "llama, biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    # The shape of SmolLM2-135M in small: three query heads for each key head, tied.
    "smollm2": (
        "LlamaConfig",
        {
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "hidden_size": 72,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        },
    ),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A random checkpoint as transformers writes it: its model, its folder, and ours."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    kind, changes = CASES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SHAPE | changes)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:  # scales of one and biases of zero would hide a mistake
                parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(folder, max_shard_size="60KB")
    return theirs, load_language_model(folder), folder


def draw(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(1).integers(3, V, (rows, columns))


def their_logits(theirs, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return theirs(torch.tensor(tokens)).logits.numpy()


def test_logits_agree(case):
    theirs, ours, _ = case
    tokens = draw(2, 200)  # beyond the length before llama3 scaling
    logits = jax.jit(lambda p, t: ours.fn.bind(p)(t))(ours.params, jnp.asarray(tokens))
    expected = their_logits(theirs, tokens)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_gradients_agree(case):
    import torch

    theirs, ours, _ = case
    tokens = draw(2, 40).astype(np.int32)
    places = np.broadcast_to(np.arange(40, dtype=np.int32), tokens.shape)
    ones = np.ones_like(tokens)
    batch = TokenBatch(*map(jnp.asarray, (tokens, ones, places, ones.astype(np.float32))))

    def objective(params):
        terms = next_token_loss(ours.fn.bind(params), batch)
        return terms.nats.sum() / terms.tokens.sum()

    loss, grads = jax.jit(jax.value_and_grad(objective))(ours.params)
    theirs.zero_grad()
    expected = theirs(torch.tensor(tokens).long(), labels=torch.tensor(tokens).long()).loss
    expected.backward()
    np.testing.assert_allclose(float(loss), float(expected.detach()), rtol=1e-5)
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    for path, grad in flat_params(grads).items():
        layout = LAYOUTS[path]
        layers = range(SHAPE["num_hidden_layers"]) if layout.per_layer else [None]
        for layer in layers:
            name = layout.tensor.format(layer=layer)
            found = layout.to_theirs(np.asarray(grad if layer is None else grad[layer]))
            scale = np.abs(gradients[name]).max()
            np.testing.assert_allclose(found / scale, gradients[name] / scale, atol=2e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_texts_of_ragged_prompts_are_identical(case, penalty):
    import torch

    theirs, ours, _ = case
    lengths, prompt = np.array([3, 7, 1]), draw(3, 7)
    found = generate(
        ours.fn,
        ours.params,
        jnp.asarray(prompt),
        jnp.asarray(lengths),
        max_new_tokens=NEW,
        sampling=TokenSampling(temperature=0.0, repetition_penalty=penalty),
    )
    for row, length in enumerate(lengths):
        expected = theirs.generate(
            torch.tensor(prompt[row : row + 1, :length]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )[0, length:]
        assert found.tokens[row].tolist() == expected.tolist()


def test_what_we_write_transformers_loads_with_the_same_logits(case, tmp_path):
    import transformers

    theirs, ours, _ = case
    save_language_model(tmp_path, ours, card="# A model", max_file_bytes=40_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = draw(2, 50)
    np.testing.assert_array_equal(their_logits(again, tokens), their_logits(theirs, tokens))
