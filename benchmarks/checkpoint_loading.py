"""Memory and time of reading a Hugging Face folder of more than 200 MB.

    python -m benchmarks.checkpoint_loading --record benchmarks/records/checkpoint_loading.json

A random Llama in float32 is written, and read in a fresh process each time, by ours and, where it
is installed, by transformers, in turns.  Memory is by how much reading raises the process's peak
(Linux: `VmHWM`), divided by the size of the weights' file; the goal is at most 1.3.  The file was
just written and lies in memory, so that seconds are those of reading, not of a disk.
"""

import dataclasses
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Answer, Remote, alternate, percentiles
from experiments.record import command_line, make_record, write_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        num_layers: depth of the model; 12 are 206 MB.
        rounds: fresh processes of each contestant.
        threads: processor cores of each process, of which one works at a time.
        record: write the results to this file.
    """

    num_layers: int = 12
    rounds: int = 5
    threads: int = 2
    record: Path | None = None


def write_checkpoint(folder: str, num_layers: int) -> Answer:
    """Write a random Llama, in a process of its own, which takes its memory along."""
    from flax import nnx

    from recipe_jax.functional import purify
    from recipe_jax.huggingface import save_language_model
    from recipe_jax.huggingface.language_models import LanguageModel
    from recipe_jax.layers.transformer import TransformerConfig
    from recipe_jax.models.causal_language_model import (
        CausalLanguageModel,
        CausalLanguageModelConfig,
    )

    transformer = TransformerConfig(
        num_layers=num_layers,
        embed_dim=512,
        num_heads=8,
        num_kv_heads=4,
        mlp_dim=1376,
        activation="swiglu",
    )
    cfg = CausalLanguageModelConfig(vocab_size=16384, transformer=transformer)
    fn, params = purify(CausalLanguageModel(cfg, rngs=nnx.Rngs(0)))
    model = LanguageModel(cfg, fn, params, begin=None, ends=())
    save_language_model(Path(folder), model, card="# Random weights")
    return lambda word: None


def ours(folder: str) -> Answer:
    """Our reader; JAX has started before anything is measured."""
    import jax
    import jax.numpy as jnp

    from recipe_jax.huggingface import load_language_model

    jnp.ones(1).block_until_ready()
    return lambda word: peak_and_seconds(
        lambda: jax.block_until_ready(load_language_model(folder).params)
    )


def theirs(folder: str) -> Answer:
    """The reader of transformers."""
    import transformers

    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM
    return lambda word: peak_and_seconds(lambda: model.from_pretrained(folder))


def peak_and_seconds(read: Callable[[], Any]) -> tuple[int, float]:
    """By how many bytes reading raises the peak of this process's memory, and its seconds."""
    before, started = peak_bytes(), time.perf_counter()
    kept = read()
    seconds = time.perf_counter() - started
    del kept
    return peak_bytes() - before, seconds


def peak_bytes() -> int:
    """The most memory this process has had, files that it has mapped included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status: no line VmHWM; this benchmark needs Linux")


def measure(flags: Flags) -> dict[str, Any]:
    """Both contestants in turns, each time in a fresh process."""
    contestants = [ours]
    if importlib.util.find_spec("torch") is not None:
        contestants.append(theirs)
    with tempfile.TemporaryDirectory() as folder:
        with Remote(write_checkpoint, folder, flags.num_layers, threads=flags.threads):
            size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))

        def read_anew(contestant: Callable[[str], Answer]) -> Any:
            with Remote(contestant, folder, threads=flags.threads) as process:
                return process("read")

        samples: dict[str, list[Any]] = alternate(
            {made.__name__: lambda made=made: read_anew(made) for made in contestants},
            rounds=flags.rounds,
        )
    return {
        "file_bytes": size,
        "peak_over_size": {
            name: percentiles([peak / size for peak, _ in found])._asdict()
            for name, found in samples.items()
        },
        "seconds": {
            name: percentiles([seconds for _, seconds in found])._asdict()
            for name, found in samples.items()
        },
    }


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    results = measure(flags)
    table = Table("", "peak / size p50", "p20", "p80", "seconds p50", "p20", "p80")
    for name in results["seconds"]:
        peak, seconds = results["peak_over_size"][name], results["seconds"][name]
        table.add_row(
            name, *(f"{x[p]:.2f}" for x in (peak, seconds) for p in ("p50", "p20", "p80"))
        )
    console = Console(stderr=True)
    console.print(f"weights: {results['file_bytes'] / 1e6:.1f} MB")
    console.print(table)
    if flags.record is not None:
        command = command_line("benchmarks.checkpoint_loading", flags)
        write_record(flags.record, make_record(command, threads=flags.threads, **results))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, description=__doc__)))
