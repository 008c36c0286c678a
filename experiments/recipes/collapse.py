"""Whether models of amounts collapse to means: how much their predictions vary, and their samples.

python -m experiments.recipes.collapse --data DIR --checkpoint RUN RUN

A model that knows only means gives every cake the mean cake's butter: over recipes, its amounts of
one food vary less than the true ones.  Samples of a distribution must vary as much as these, and
where the truth falls among them must be uniform.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32
from rich.console import Console
from rich.table import Table

from experiments.commands import parse
from experiments.recipes.amounts_protocol import AmountQueries, amount_queries, amount_recipes
from experiments.recipes.evaluate import load_checkpoint
from experiments.recipes.prepared import read_prepared
from experiments.recipes.scoring import amount_functions
from experiments.record import check_writable, command_line, make_record, write_record
from recipe_jax.metrics import central_interval, centred_log_ratios, wasserstein_distance

BATCH_SIZE = 128
NUM_BINS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is compared on what.

    Attributes:
        checkpoint: run folders or model folders of models of amounts.
        data: a prepared folder; the sample inside the package if not given.
        split: of the recipes.
        min_recipes: a food counts if at least so many recipes hold it.
        num_recipes: recipes that are drawn from the split; all, where there are fewer.
        num_samples: draws for each recipe.
        seed: of the draws.
        record: write the results to this file.
    """

    checkpoint: tuple[Path, ...]
    data: Path | None = None
    split: Literal["train", "validation", "test"] = "validation"
    min_recipes: int = 40
    num_recipes: int = 1500
    num_samples: int = 60
    seed: int = 0
    record: Path | None = None


def run(flags: Flags) -> dict[str, Any]:
    """Compare, print, write the record.

    Raises:
        ValueError: no food in enough recipes, or a model of another vocabulary.
    """
    names = [place.name for place in flags.checkpoint]
    if len(set(names)) < len(names):
        raise ValueError(f"--checkpoint names {names}: two of the same name would be one row")
    prepared = read_prepared(flags.data)
    recipes = amount_recipes(prepared.sets, flags.split)
    chosen = np.random.default_rng(flags.seed).permutation(len(recipes))[: flags.num_recipes]
    recipes = recipes.select(np.isin(np.arange(len(recipes)), chosen))
    queries = amount_queries(recipes, num_foods=len(prepared.foods))
    results = {}
    for place in flags.checkpoint:
        model = load_checkpoint(place, prepared)
        predict, sample = amount_functions(model, num_samples=flags.num_samples, seed=flags.seed)
        found = [
            (predict(foods, lengths), sample(foods, lengths))
            for foods, lengths in _batches(queries)
        ]
        point = np.concatenate([pair[0] for pair in found])
        samples = np.concatenate([pair[1] for pair in found], axis=1)
        results[place.name] = measure(queries, point, samples, min_recipes=flags.min_recipes)
    _print(results)
    if flags.record is not None:
        command = command_line("experiments.recipes.collapse", flags, always=("checkpoint",))
        write_record(flags.record, make_record(command, results=results))
    return results


def measure(
    queries: AmountQueries,
    point: Float[np.ndarray, "n m"],
    samples: Float[np.ndarray, "samples n m"],
    *,
    min_recipes: int,
) -> dict[str, Any]:
    """Spread, distance and calibration of one model's amounts, on centred log-ratios.

    Args:
        queries: true proportions.
        point: the model's point estimates.
        samples: its draws.
        min_recipes: a food counts if at least so many recipes hold it.

    Returns:
        `point_spread` and `sample_spread`: deviation over recipes beside the truth's, the mean over
        foods; `point_distance` and `sample_distance`: Wasserstein distance from the truth, in nats;
        `pit_deviation`: half the sum of absolute differences between the histogram of the truth's
        rank among the samples and a flat one, 0 for perfect calibration; `interval_nats`: mean log
        ratio of the bounds of 80 % intervals; `num_foods`, `n`.

    Raises:
        ValueError: no food in enough recipes.
    """
    present = queries.present
    true = centred_log_ratios(queries.proportions, present)
    draws = centred_log_ratios(samples, np.broadcast_to(present, samples.shape))
    estimates = {"point": centred_log_ratios(point, present), "sample": draws[0]}
    foods = _common_foods(queries.foods, present, min_recipes)
    held = [present & (queries.foods == food) for food in foods]
    table: dict[str, Any] = {}
    for name, values in estimates.items():
        spreads = [values[where].std() / true[where].std() for where in held]
        distances = [wasserstein_distance(values[where], true[where]) for where in held]
        table[f"{name}_spread"] = float(np.mean(spreads))
        table[f"{name}_distance"] = float(np.mean(distances))
    low, high = central_interval(draws, 0.8)
    return table | {
        "pit_deviation": pit_deviation(draws[:, present], true[present]),
        "interval_nats": float((high - low)[present].mean()),
        "num_foods": len(foods),
        "n": len(queries.lengths),
    }


def pit_deviation(samples: Float[np.ndarray, "samples k"], true: Float64[np.ndarray, "k"]) -> float:
    """How far the truth's rank among samples is from uniform (Gneiting et al. 2007, section 3.1).

    Half the sum of absolute differences of two histograms: 0 for uniform ranks, near 1 for ranks
    that are all alike.
    """
    ranks = (samples < true).mean(axis=0)
    shares = np.histogram(ranks, NUM_BINS, (0.0, 1.0))[0] / len(true)
    return float(np.abs(shares - 1 / NUM_BINS).sum() / 2)


def _common_foods(
    foods: Int32[np.ndarray, "n m"], present: Bool[np.ndarray, "n m"], min_recipes: int
) -> list[int]:
    numbers, counts = np.unique(foods[present], return_counts=True)
    found = [int(number) for number in numbers[counts >= min_recipes]]
    if not found:
        raise ValueError(f"no food is in min_recipes={min_recipes} recipes: ask for fewer")
    return found


def _batches(
    queries: AmountQueries,
) -> list[tuple[Int32[np.ndarray, "b m"], Int32[np.ndarray, "b"]]]:
    starts = range(0, len(queries.lengths), BATCH_SIZE)
    return [
        (queries.foods[start : start + BATCH_SIZE], queries.lengths[start : start + BATCH_SIZE])
        for start in starts
    ]


def _print(results: dict[str, dict[str, Any]]) -> None:
    names = list(next(iter(results.values())))
    table = Table("", *names)
    for place, row in results.items():
        cells = [
            f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in names
        ]
        table.add_row(place, *cells)
    Console(stderr=True, width=160).print(table)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        flags = parse(Flags, arguments, "python -m experiments.recipes.collapse", __doc__)
        if flags.record is not None:
            check_writable(flags.record)
        results = run(flags)
    except (ValueError, OSError) as error:
        print(f"collapse: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
