"""How the time of an epoch grows with the number of recipes.

    python -m benchmarks.data_scaling --data DIR --record benchmarks/records/data_scaling.json

An epoch over 60,000 recipes against one over 15,000: reading its batches, and training on them.
Linear growth is a ratio of 4; the goal is at most 4.4.  Recipes of all splits are used, since the
training split alone is smaller: nothing here is evaluated.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.timing import alternate, limit_threads, percentiles, seconds_of
from experiments.recipes import train
from experiments.recipes.prepared import read_prepared
from experiments.record import command_line, make_record, write_record
from recipe_jax.data.batching import BUCKETS, EpochPlan, recipe_batches
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.functional import purify
from recipe_jax.huggingface import make_module
from recipe_jax.training.optimizers import muon_adamw
from recipe_jax.training.state import init_state
from recipe_jax.training.step import make_train_step

BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        data: a prepared folder.
        few: recipes of the short epoch.
        many: recipes of the long epoch.
        rounds: epochs of each that count, after one of each that does not.
        embed_dim: width of the model that is trained.
        num_layers: its depth.
        num_heads: its attention heads.
        threads: processor cores.
        record: write the results to this file.
    """

    data: Path
    few: int = 15_000
    many: int = 60_000
    rounds: int = 3
    embed_dim: int = 160
    num_layers: int = 3
    num_heads: int = 5
    threads: int = 2
    record: Path | None = None


def measure(flags: Flags) -> dict[str, Any]:
    """Epochs of both sizes, in turns.

    Raises:
        ValueError: if the folder holds fewer recipes than the long epoch.
    """
    prepared = read_prepared(flags.data)
    recipes = prepared.sets.select_completion(max_lines=train.MAX_FOODS)
    if len(recipes) < flags.many:
        raise ValueError(f"{flags.data}: {len(recipes)} recipes must be at least {flags.many}")
    shape = train.Flags(
        embed_dim=flags.embed_dim, num_layers=flags.num_layers, num_heads=flags.num_heads
    )
    task = train.make_task(shape, prepared)
    step = trainer(task)
    subsets = {
        num: recipes.select(np.arange(len(recipes)) < num) for num in (flags.few, flags.many)
    }
    contestants = {
        f"{what} {num}": functools.partial(epoch, subset, len(prepared.foods), do)
        for what, do in (("read", lambda batch: None), ("train", step))
        for num, subset in subsets.items()
    }
    samples = alternate(contestants, rounds=flags.rounds)
    seconds = {name: percentiles(values)._asdict() for name, values in samples.items()}
    ratios = {
        what: seconds[f"{what} {flags.many}"]["p50"] / seconds[f"{what} {flags.few}"]["p50"]
        for what in ("read", "train")
    }
    return {"seconds": seconds, "ratio": ratios}


def epoch(recipes: RecipeSets, num_foods: int, do: Callable[[Any], Any]) -> float:
    """Seconds of one epoch from a cold start of its iterator."""
    plan = EpochPlan(recipes.sizes, batch_size=BATCH_SIZE, buckets=BUCKETS, seed=0)
    batches = recipe_batches(recipes, num_foods=num_foods, batch_size=BATCH_SIZE, seed=0)

    def read_all() -> None:
        iterator, done = iter(batches), None
        for _ in range(plan.batches_per_epoch):
            done = do(next(iterator))
        jax.block_until_ready(done)

    return seconds_of(read_all)


def trainer(task: train.Task) -> Callable[[Any], Any]:
    """A function that trains on one batch, with the optimizer of `train`."""
    fn, params = purify(make_module(task.model_type, task.cfg))
    optimizer = muon_adamw(1e-3, fn.axes, weight_decay=0.05)
    update = make_train_step(task.objective(fn), optimizer)
    state = init_state(params, optimizer, jax.random.key(0, impl="rbg"))
    del params

    def step(batch: Any) -> Any:
        nonlocal state
        state, metrics = update(state, batch)
        return jax.block_until_ready(metrics.loss)

    return step


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    limit_threads(flags.threads)
    try:
        results = measure(flags)
    except (ValueError, OSError) as error:
        print(f"data_scaling: {error}", file=sys.stderr)
        return 2
    for name, seconds in results["seconds"].items():
        print(f"{name}: {seconds['p50']:.2f} s", file=sys.stderr)
    if flags.record is not None:
        command = command_line("benchmarks.data_scaling", flags)
        given = {k: v for k, v in dataclasses.asdict(flags).items() if k not in ("data", "record")}
        write_record(flags.record, make_record(command, flags=given, **results))
    print(json.dumps({"ratio": results["ratio"], "n": flags.many}))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
