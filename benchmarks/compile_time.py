"""How the time to compile a language model grows with its depth.

    python -m benchmarks.compile_time --record benchmarks/records/compile_time.json

Tracing, lowering and compiling of a training step, of reading a prompt and of generating, for 4
layers and for 32 in turns, nothing cached.  Layers run under one scan, so that the ratio should
hardly differ from 1; the goal is at most 1.5.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.timing import alternate, limit_threads, percentiles, seconds_of
from experiments.record import command_line, make_record, write_record
from recipe_jax.batches import TokenBatch
from recipe_jax.functional import PureModule, abstract
from recipe_jax.layers.transformer import Remat, TransformerConfig
from recipe_jax.models.causal_language_model import (
    CausalLanguageModel,
    CausalLanguageModelConfig,
    next_token_loss,
)
from recipe_jax.token_decoding import generate, prefill
from recipe_jax.training.state import init_state
from recipe_jax.training.step import make_train_step

ROWS, TOKENS, NEW_TOKENS = 8, 256, 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        few: layers of the shallow model.
        many: layers of the deep one.
        remat: what the backward pass computes again.
        rounds: compilations of each that count, after one of each that does not.
        threads: processor cores.
        record: write the results to this file.
    """

    few: int = 4
    many: int = 32
    remat: Remat = "elementwise"
    rounds: int = 3
    threads: int = 2
    record: Path | None = None


def make_model(num_layers: int, remat: Remat) -> tuple[PureModule[CausalLanguageModel], Any]:
    """A Llama of the width that `benchmarks.language_model` has; shapes, no values."""
    transformer = TransformerConfig(
        num_layers=num_layers,
        embed_dim=256,
        num_heads=8,
        num_kv_heads=4,
        mlp_dim=688,
        activation="swiglu",
    )
    cfg = CausalLanguageModelConfig(vocab_size=8192, transformer=transformer)
    return abstract(lambda: CausalLanguageModel(cfg, remat=remat, rngs=nnx.Rngs(0)))


def compilations(num_layers: int, remat: Remat) -> dict[str, Callable[[], Any]]:
    """What is compiled, by name; each call starts from nothing."""
    fn, shapes = make_model(num_layers, remat)
    optimizer = optax.adamw(1e-3)

    def objective(params: Any, batch: TokenBatch, key: jax.Array) -> tuple[Any, Any]:
        terms = next_token_loss(fn.bind(params), batch)
        return terms.nats.sum() / terms.tokens.sum(), {}

    tokens = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    weights = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.float32)
    batch = TokenBatch(tokens=tokens, segments=tokens, positions=tokens, weights=weights)
    state = jax.eval_shape(lambda: init_state(zeros(shapes), optimizer, jax.random.key(0)))
    prompt = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    lengths = jax.ShapeDtypeStruct((ROWS,), jnp.int32)

    def continue_prompts(params: Any, prompt: jax.Array, lengths: jax.Array) -> Any:
        return generate(fn, params, prompt, lengths, max_new_tokens=NEW_TOKENS)

    def compile_of(function: Any, *given: Any) -> None:
        jax.clear_caches()
        function.lower(*given).compile()

    read = jax.jit(functools.partial(prefill, fn, capacity=TOKENS))
    return {
        "train": lambda: compile_of(make_train_step(objective, optimizer), state, batch),
        "read a prompt": lambda: compile_of(read, shapes, prompt, lengths),
        "generate": lambda: compile_of(jax.jit(continue_prompts), shapes, prompt, lengths),
    }


def zeros(shapes: Any) -> Any:
    """Arrays for a tree of shapes; under `eval_shape` they take no memory."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def measure(flags: Flags) -> dict[str, Any]:
    """Seconds to compile each, for both depths, in turns."""
    contestants = {
        f"{name} {depth}": functools.partial(seconds_of, work)
        for depth in (flags.few, flags.many)
        for name, work in compilations(depth, flags.remat).items()
    }
    seconds = alternate(contestants, rounds=flags.rounds)
    names = [name.removesuffix(f" {flags.few}") for name in seconds][: len(seconds) // 2]
    ratios = {
        name: [
            deep / shallow
            for deep, shallow in zip(
                seconds[f"{name} {flags.many}"], seconds[f"{name} {flags.few}"], strict=True
            )
        ]
        for name in names
    }
    return {
        "seconds": {name: percentiles(found)._asdict() for name, found in seconds.items()},
        "many_over_few": {name: percentiles(found)._asdict() for name, found in ratios.items()},
    }


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    limit_threads(flags.threads)
    results = measure(flags)
    table = Table("", "seconds p50", "p20", "p80")
    for name, found in results["seconds"].items():
        table.add_row(f"{name} layers", *(f"{found[p]:.2f}" for p in ("p50", "p20", "p80")))
    for name, found in results["many_over_few"].items():
        table.add_row(f"{name}, ratio", *(f"{found[p]:.2f}" for p in ("p50", "p20", "p80")))
    Console(stderr=True).print(table)
    if flags.record is not None:
        command = command_line("benchmarks.compile_time", flags)
        write_record(flags.record, make_record(command, threads=flags.threads, **results))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, description=__doc__)))
