"""How far our language models are from transformers' on the same checkpoints.

    python -m benchmarks.parity --record benchmarks/records/parity.json

Tiny random checkpoints that transformers writes, one for each thing in which the families differ,
in float32: logits of 2 x 200 tokens, gradients of 2 x 40 tokens, three ragged prompts continued
greedily by 128 tokens, and what we write, read by `AutoModelForCausalLM.from_pretrained`.
Differences are the largest ones, divided by the largest value of theirs; the goals are 1e-4 for
logits and identical texts.  `tests/parity` asserts stricter ones on the same checkpoints.  Needs
the extras `[parity,language]`.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.record import command_line, make_record, write_record
from recipe_jax.batches import TokenBatch
from recipe_jax.functional import flat_params
from recipe_jax.huggingface import LanguageModel, load_language_model, save_language_model
from recipe_jax.huggingface.tensor_layouts import LAYOUTS
from recipe_jax.models.causal_language_model import next_token_loss
from recipe_jax.token_decoding import TokenSampling, generate

VOCAB_SIZE, NEW_TOKENS = 97, 128
SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
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
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
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
"""Name -> configuration class of transformers, and what it changes of `SHAPE`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Where the results go.

    Attributes:
        record: write the results to this file.
    """

    record: Path | None = None


class Twins(NamedTuple):
    """One checkpoint, read by both.

    Attributes:
        theirs: the model of transformers that wrote it.
        ours: what we read.
    """

    theirs: Any
    ours: LanguageModel


def make_twins(name: str, folder: Path) -> Twins:
    """A random checkpoint of one of `CASES`, as transformers writes it, in several files."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    transformers.logging.disable_progress_bar()
    kind, changes = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SHAPE, **changes})
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:  # scales of one and biases of zero would hide a mistake
                parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(folder, max_shard_size="60KB")
    return Twins(theirs, load_language_model(folder))


def draw_tokens(rows: int, columns: int) -> np.ndarray:
    """The same tokens every time, none of them special."""
    return np.random.default_rng(1).integers(3, VOCAB_SIZE, (rows, columns))


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of a model of transformers."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def logit_difference(twins: Twins) -> float:
    """Of 2 x 200 tokens, beyond the length from which Llama 3 scales."""
    tokens = draw_tokens(2, 200)
    fn = twins.ours.fn
    logits = jax.jit(lambda p, t: fn.bind(p)(t))(twins.ours.params, jnp.asarray(tokens))
    return largest_difference(np.asarray(logits), their_logits(twins.theirs, tokens))


def gradient_differences(twins: Twins) -> Iterator[tuple[str, float]]:
    """Of each tensor of the checkpoint, by name, after the loss itself as `loss`."""
    import torch  # pyright: ignore[reportMissingImports]

    tokens = draw_tokens(2, 40).astype(np.int32)
    places = np.broadcast_to(np.arange(40, dtype=np.int32), tokens.shape)
    ones = np.ones_like(tokens)
    batch = TokenBatch(*map(jnp.asarray, (tokens, ones, places, ones.astype(np.float32))))

    def objective(params: Any) -> jax.Array:
        terms = next_token_loss(twins.ours.fn.bind(params), batch)
        return terms.nats.sum() / terms.tokens.sum()

    loss, grads = jax.jit(jax.value_and_grad(objective))(twins.ours.params)
    twins.theirs.zero_grad()
    expected = twins.theirs(torch.tensor(tokens).long(), labels=torch.tensor(tokens).long()).loss
    expected.backward()
    yield "loss", largest_difference(np.asarray(loss), expected.detach().numpy())
    theirs = {name: p.grad.numpy() for name, p in twins.theirs.named_parameters()}
    for path, grad in flat_params(grads).items():
        layout = LAYOUTS[path]
        for layer in range(grad.shape[0]) if layout.per_layer else [None]:
            name = layout.tensor.format(layer=layer)
            found = layout.to_theirs(np.asarray(grad if layer is None else grad[layer]))
            yield name, largest_difference(np.asarray(found), theirs[name])


def greedy_texts(twins: Twins, penalty: float = 1.0) -> Iterator[tuple[list[int], list[int]]]:
    """Ours, of three ragged prompts in one batch, and theirs, each by itself."""
    import torch  # pyright: ignore[reportMissingImports]

    lengths, prompt = np.array([3, 7, 1]), draw_tokens(3, 7)
    found = generate(
        twins.ours.fn,
        twins.ours.params,
        jnp.asarray(prompt),
        jnp.asarray(lengths),
        max_new_tokens=NEW_TOKENS,
        sampling=TokenSampling(temperature=0.0, repetition_penalty=penalty),
    )
    for row, length in enumerate(lengths):
        expected = twins.theirs.generate(
            torch.tensor(prompt[row : row + 1, :length]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )[0, length:]
        yield np.asarray(found.tokens[row]).tolist(), expected.tolist()


def export_difference(twins: Twins, folder: Path) -> float:
    """Of the logits of what we write, read by transformers, to those of the original."""
    import transformers

    save_language_model(folder, twins.ours, card="# A model", max_file_bytes=40_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = draw_tokens(2, 50)
    return largest_difference(their_logits(again, tokens), their_logits(twins.theirs, tokens))


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, divided by the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def measure_case(name: str) -> dict[str, Any]:
    """All differences of one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        twins = make_twins(name, Path(folder, "theirs"))
        texts = [pair for penalty in (1.0, 1.3) for pair in greedy_texts(twins, penalty)]
        return {
            "logits": logit_difference(twins),
            "gradients": max(difference for _, difference in gradient_differences(twins)),
            "identical_texts": sum(found == expected for found, expected in texts),
            "texts": len(texts),
            "logits_after_export": export_difference(twins, Path(folder, "ours")),
        }


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    results = {name: measure_case(name) for name in CASES}
    table = Table("", "logits", "gradients", "texts", "logits after export")
    for name, found in results.items():
        texts = f"{found['identical_texts']} of {found['texts']}"
        row = (f"{found[key]:.1e}" for key in ("logits", "gradients"))
        table.add_row(name, *row, texts, f"{found['logits_after_export']:.1e}")
    Console(stderr=True).print(table)
    if flags.record is not None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        command = command_line("benchmarks.parity", flags)
        record = make_record(command, new_tokens=NEW_TOKENS, checkpoints=results, **versions)
        write_record(flags.record, record)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, description=__doc__)))
