"""Recipes per second in training: ours on bucketed batches, plain PyTorch on padded ones.

    python -m benchmarks.train_step --data DIR --record benchmarks/records/train_step.json

The same recipes, initial parameters, optimizer (AdamW) and dropout on both sides, float32, two
threads, two processes that take turns: ours bucketed, torch padded, ours padded, torch bucketed.
Beside them: the rate of both libraries' matrix product, whether both give the same loss, seconds to
compile all shapes, and the share of training time in which the data kept the device waiting.
Needs the extra `[parity]`.
"""

import dataclasses
import functools
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.timing import (
    Answer,
    Remote,
    alternate,
    matmul_gigaflops,
    percentiles,
    seconds_of,
)
from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.data.batching import BUCKETS, EpochPlan, pad_recipes
from recipe_jax.data.recipes import RecipeSets

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
MATMUL_SIZE = 1024
LOSS_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        data: a prepared folder; the sample inside the package if not given.
        rounds: rounds of each contestant that count, after one that does not.
        steps: training steps in a round.
        fit_steps: steps of a real training loop, in which waiting for data is measured.
        batch_size: recipes per step.
        embed_dim: width.
        num_layers: depth.
        num_heads: attention heads.
        dropout: of the transformer's sublayers, on both sides.
        threads: processor cores of each process, of which one works at a time.
        record: write the results to this file.
    """

    data: Path | None = None
    rounds: int = 9
    steps: int = 20
    fit_steps: int = 100
    batch_size: int = 128
    embed_dim: int = 160
    num_layers: int = 2
    num_heads: int = 5
    dropout: float = 0.15
    threads: int = 2
    record: Path | None = None


class Workload(NamedTuple):
    """What both contestants train on.

    Attributes:
        cfg: the model's configuration, a `GeneratorConfig`.
        params: initial parameters.
        molecules: of the foods.
        bucketed: batches as our training reads them.
        padded: the same recipes in the same batches, all padded to the largest size.
        sets: all training recipes, for the real training loop.
        fit_steps: see `Flags`.
    """

    cfg: Any
    params: Any
    molecules: Molecules
    bucketed: Sequence[RecipeBatch]
    padded: Sequence[RecipeBatch]
    sets: RecipeSets
    fit_steps: int


def make_workload(flags: Flags) -> Workload:
    """Read the data, draw the batches and the initial parameters."""
    import jax

    from experiments.recipes import train
    from experiments.recipes.prepared import read_prepared
    from recipe_jax.functional import purify
    from recipe_jax.huggingface import make_module

    prepared = read_prepared(flags.data)
    shape = train.Flags(
        embed_dim=flags.embed_dim,
        num_layers=flags.num_layers,
        num_heads=flags.num_heads,
        dropout=flags.dropout,
    )
    task = train.make_task(shape, prepared)
    _, params = purify(make_module(task.model_type, task.cfg))
    sets, num_foods = task.training, len(prepared.foods)
    plan = EpochPlan(sets.sizes, batch_size=flags.batch_size, buckets=BUCKETS, seed=0)
    drawn = [plan.batch(i) for i in range(flags.steps)]

    def pad(size: int | None) -> list[RecipeBatch]:
        return [
            pad_recipes(
                sets,
                rows,
                num_foods=num_foods,
                size=size or bucket,
                rng=np.random.default_rng(i),
            )
            for i, (rows, bucket) in enumerate(drawn)
        ]

    return Workload(
        cfg=task.cfg,
        params=jax.device_get(params),
        molecules=prepared.molecules,
        bucketed=pad(None),
        padded=pad(BUCKETS[-1]),
        sets=sets,
        fit_steps=flags.fit_steps,
    )


def ours(workload: Workload) -> Answer:
    """Our training step; every shape is compiled before this returns."""
    import jax
    import jax.numpy as jnp
    import optax
    from recipe_kernels import attention

    from recipe_jax.functional import purify
    from recipe_jax.huggingface import make_module
    from recipe_jax.models.ingredient_generator import remaining_set_loss
    from recipe_jax.training.state import init_state
    from recipe_jax.training.step import make_train_step

    fn, _ = purify(make_module("ingredient_generator", workload.cfg, attend=attention))
    molecules = jax.tree.map(jnp.asarray, workload.molecules)

    def objective(params: Any, batch: RecipeBatch, key: Any) -> tuple[Any, Any]:
        terms = remaining_set_loss(fn.bind(params)(molecules, batch.foods, key=key), batch)
        return terms.total.sum() / terms.choices.sum(), {}

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    step = make_train_step(objective, optimizer)

    def initial_state() -> Any:
        params = jax.tree.map(jnp.asarray, workload.params)
        return init_state(params, optimizer, jax.random.key(0))

    state = initial_state()

    def train(batches: Sequence[RecipeBatch]) -> None:
        nonlocal state
        for batch in batches:
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    matrix = jnp.ones((MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(jnp.matmul)
    words: dict[str, Callable[[], Any]] = {
        "loss": lambda: float(jax.jit(objective)(workload.params, workload.padded[0], None)[0]),
        "matmul": lambda: matmul_gigaflops(
            lambda: product(matrix, matrix).block_until_ready(), MATMUL_SIZE
        ),
        "bucketed": lambda: seconds_of(lambda: train(workload.bucketed)),
        "padded": lambda: seconds_of(lambda: train(workload.padded)),
        "fit": lambda: _fit(step, initial_state(), workload),
    }
    for batch in {batch.foods.shape: batch for batch in workload.bucketed}.values():
        train([batch])
    train(workload.padded[:1])
    return lambda word: words[word]()


def _fit(step: Any, state: Any, workload: Workload) -> dict[str, float]:
    """What the real training loop says of its time, read batches included."""
    import jax

    from recipe_jax.data.batching import recipe_batches
    from recipe_jax.training.loop import FitPlan, fit

    jax.clear_caches()  # so that every shape compiles again
    batches = recipe_batches(
        workload.sets,
        num_foods=workload.cfg.embedding.num_foods,
        batch_size=len(workload.bucketed[0].lengths),
        seed=0,
    )
    plan = FitPlan(num_steps=workload.fit_steps, show_progress=False)
    with tempfile.TemporaryDirectory() as run:
        return dict(fit(step, state, batches, run=Path(run) / "run", plan=plan).timing)


def torch_peer(workload: Workload) -> Answer:
    """The same step in plain PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.torch_generator import remaining_set_nats, torch_generator

    model = torch_generator(workload.cfg, workload.molecules, workload.params)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def tensors(batches: Sequence[RecipeBatch]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.tensor(b.foods).long(), torch.tensor(b.lengths).long()) for b in batches]

    def train(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        model.train()
        for foods, lengths in batches:
            optimizer.zero_grad(set_to_none=True)
            remaining_set_nats(model(foods), foods, lengths).backward()
            optimizer.step()

    def loss() -> float:
        model.eval()
        with torch.no_grad():
            foods, lengths = padded[0]
            return float(remaining_set_nats(model(foods), foods, lengths))

    bucketed, padded = tensors(workload.bucketed), tensors(workload.padded)
    matrix = torch.ones(MATMUL_SIZE, MATMUL_SIZE)
    words: dict[str, Callable[[], Any]] = {
        "loss": loss,
        "matmul": lambda: matmul_gigaflops(lambda: matrix @ matrix, MATMUL_SIZE),
        "bucketed": lambda: seconds_of(lambda: train(bucketed)),
        "padded": lambda: seconds_of(lambda: train(padded)),
        "versions": lambda: {"torch": torch.__version__, "torch_threads": torch.get_num_threads()},
    }
    return lambda word: words[word]()


def measure(flags: Flags) -> dict[str, Any]:
    """Run both contestants in turns.

    Raises:
        ValueError: if the two do not give the same loss from the same parameters.
    """
    workload = make_workload(flags)
    with (
        Remote(ours, workload, threads=flags.threads) as jax_process,
        Remote(torch_peer, workload, threads=flags.threads) as torch_process,
    ):
        losses = jax_process("loss"), torch_process("loss")
        if abs(losses[0] - losses[1]) > LOSS_TOLERANCE * abs(losses[1]):
            raise ValueError(f"the models differ: ours loses {losses[0]} nats, torch {losses[1]}")
        contestants = {
            f"{name} {word}": functools.partial(process, word)
            for word_of_ours in ("bucketed", "padded")
            for name, process, word in (
                ("ours", jax_process, word_of_ours),
                ("torch", torch_process, "padded" if word_of_ours == "bucketed" else "bucketed"),
            )
        }
        matmul = {
            "ours matmul": functools.partial(jax_process, "matmul"),
            "torch matmul": functools.partial(torch_process, "matmul"),
        }
        started = time.perf_counter()
        samples = alternate(contestants | matmul, rounds=flags.rounds)
        seconds = time.perf_counter() - started
        return summarise(samples, num_recipes=flags.steps * flags.batch_size) | {
            "loss_ours": losses[0],
            "loss_torch": losses[1],
            "benchmark_seconds": seconds,
            "fit": jax_process("fit"),
            **torch_process("versions"),
        }


def summarise(samples: dict[str, list[float]], *, num_recipes: int) -> dict[str, Any]:
    """Recipes per second from seconds per round, and the ratio that counts.

    Args:
        samples: seconds per round by contestant; `… matmul` is 10^9 operations per second.
        num_recipes: trained on in a round.
    """
    rates = {
        name: [num_recipes / seconds for seconds in rounds]
        for name, rounds in samples.items()
        if not name.endswith(" matmul")
    }
    ratios = [a / b for a, b in zip(rates["ours bucketed"], rates["torch padded"], strict=True)]
    return {
        "ours_over_torch": percentiles(ratios)._asdict(),
        "recipes_per_second": {name: percentiles(r)._asdict() for name, r in rates.items()},
        "matmul_gigaflops": {
            name: percentiles(samples[f"{name} matmul"])._asdict() for name in ("ours", "torch")
        },
    }


def print_results(results: dict[str, Any]) -> None:
    """A table for people, on stderr."""
    table = Table("training", "recipes/s p50", "p20", "p80")
    for name, rate in results["recipes_per_second"].items():
        table.add_row(name, *(f"{rate[p]:.0f}" for p in ("p50", "p20", "p80")))
    console = Console(stderr=True)
    console.print(table)
    matmul, fit = results["matmul_gigaflops"], results["fit"]
    console.print(f"ours bucketed / torch padded: {results['ours_over_torch']['p50']:.2f}")
    console.print(
        f"matmul: ours {matmul['ours']['p50']:.0f}, torch {matmul['torch']['p50']:.0f} GFLOP/s"
    )
    console.print(
        f"compile: {fit['compile_seconds']:.1f} s; waiting for data: {fit['data_wait_share']:.1%}"
    )


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    if importlib.util.find_spec("torch") is None:
        print("train_step: torch is missing: pip install 'recipe-jax[parity]'", file=sys.stderr)
        return 2
    try:
        results = measure(flags)
    except (ValueError, OSError) as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 2
    print_results(results)
    if flags.record is not None:
        from experiments.record import command_line, make_record, write_record

        given = {k: v for k, v in dataclasses.asdict(flags).items() if k not in ("data", "record")}
        command = command_line("benchmarks.train_step", flags)
        write_record(flags.record, make_record(command, flags=given, **results))
    rates = {name: rate["p50"] for name, rate in results["recipes_per_second"].items()}
    print(
        json.dumps(
            {
                "ours_over_torch": results["ours_over_torch"]["p50"],
                "recipes_per_second": rates,
                "compile_seconds": results["fit"]["compile_seconds"],
                "data_wait_share": results["fit"]["data_wait_share"],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
