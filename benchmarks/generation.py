"""Seconds to generate 1,000 recipes, after compilation.

    python -m benchmarks.generation --checkpoint DIR --record benchmarks/records/generation.json

One batch, sampled from nothing at temperature 1, food by food with a key-value cache, until the
last recipe has chosen its end.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from benchmarks.timing import alternate, limit_threads, percentiles, seconds_of
from experiments.recipes.evaluate import load_checkpoint
from experiments.recipes.generate import PRETRAINED
from experiments.record import command_line, make_record, write_record
from recipe_jax.decoding import DecodedSets, Sampling, SetConstraint, sample_sets
from recipe_jax.huggingface import LoadedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        checkpoint: a run folder or a model folder; the pretrained model if not given.
        num: recipes in the batch.
        rounds: batches that count, after the one that compiles and one more.
        threads: processor cores.
        record: write the results to this file.
    """

    checkpoint: Path = PRETRAINED / "generator"
    num: int = 1000
    rounds: int = 9
    threads: int = 2
    record: Path | None = None


def measure(flags: Flags) -> dict[str, Any]:
    """Load the model, compile, generate in rounds of different seeds."""
    model = load_checkpoint(flags.checkpoint)
    lengths: list[float] = []

    def generate() -> None:
        decoded = generate_once(model, flags.num, seed=len(lengths))
        lengths.append(float(decoded.lengths.mean()))

    compile_seconds = seconds_of(generate)
    samples = alternate({"seconds": lambda: seconds_of(generate)}, rounds=flags.rounds)
    return {
        "num": flags.num,
        "seconds": percentiles(samples["seconds"])._asdict(),
        "first_call_seconds": compile_seconds,
        "mean_foods": sum(lengths) / len(lengths),
    }


def generate_once(model: LoadedModel, num: int, *, seed: int) -> DecodedSets:
    """Sets sampled from nothing; returns when they are there."""
    size = model.cfg.max_foods
    decoded = sample_sets(
        model.fn,
        model.params,
        model.molecules,
        jnp.zeros((num, 0), jnp.int32),
        jnp.zeros(num, jnp.int32),
        jax.random.key(seed),
        constraint=SetConstraint(
            allowed=jnp.ones(len(model.foods), bool),
            min_foods=jnp.asarray(3, jnp.int32),
            max_foods=jnp.asarray(size, jnp.int32),
        ),
        sampling=Sampling(),
    )
    return jax.block_until_ready(decoded)


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    limit_threads(flags.threads)
    try:
        results = measure(flags)
    except (ValueError, OSError) as error:
        print(f"generation: {error}", file=sys.stderr)
        return 2
    seconds = results["seconds"]
    print(
        f"{flags.num} recipes of {results['mean_foods']:.1f} foods: {seconds['p50']:.2f} s "
        f"(p20 {seconds['p20']:.2f}, p80 {seconds['p80']:.2f}); "
        f"the first call, which compiles: {results['first_call_seconds']:.1f} s",
        file=sys.stderr,
    )
    if flags.record is not None:
        command = command_line("benchmarks.generation", flags)
        write_record(flags.record, make_record(command, threads=flags.threads, **results))
    print(json.dumps({"seconds": seconds["p50"], "n": flags.num}))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
