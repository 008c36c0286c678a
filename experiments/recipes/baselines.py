"""The baselines' table: completion, amounts, and what the generation measures say of simple sets.

    python -m experiments.recipes.baselines --data DIR --split test --out RECORD.json

Fitted on training recipes; the strengths of EASE and of naive Bayes are chosen by MRR on validation
recipes, never on the split that is reported.  The table goes to stderr, one JSON line to stdout.
"""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.recipes import amount_baselines, completion_baselines
from experiments.recipes.amounts_protocol import (
    amount_queries,
    amount_recipes,
    evaluate_proportions,
    evaluate_samples,
)
from experiments.recipes.completion import (
    CompletionQueries,
    ScoreFn,
    completion_queries,
    completion_recipes,
    evaluate_completion,
)
from experiments.recipes.generation_quality import evaluate_generation, sample_recipes
from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.foods import read_foods
from recipe_jax.data.recipes import RecipeSets, read_recipe_sets

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
DAMPINGS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Fit and score every baseline."""

    data: Path
    """A folder that `prepare` wrote."""
    split: Literal["validation", "test"] = "validation"
    """The recipes that the table is about."""
    out: Path | None = None
    """Where the record goes, as JSON; none is written by default."""
    num_generated: int = 1000
    """Sets drawn for the generation measures."""
    num_samples: int = 200
    """Draws per recipe for the CRPS of amounts."""
    seed: int = 0
    """Of the hidden foods and of every draw."""


def completion_table(
    sets: RecipeSets, cfg: BaselineConfig, *, num_foods: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics of every completion baseline, and how their strengths were chosen."""
    training = sets.select_completion().select_split("train")
    queries = {
        split: completion_queries(
            completion_recipes(sets, split), num_foods=num_foods, seed=cfg.seed
        )
        for split in {"validation", cfg.split}
    }
    fit_bayes = functools.partial(
        completion_baselines.fit_naive_bayes, training, num_foods=num_foods
    )
    fit_ease = functools.partial(completion_baselines.fit_ease, training, num_foods=num_foods)
    bayes, dampings = best_by_mrr(
        DAMPINGS, lambda value: fit_bayes(damping=value).score, queries["validation"]
    )
    ease, penalties = best_by_mrr(
        PENALTIES, lambda value: fit_ease(penalty=value).score, queries["validation"]
    )
    popularity = completion_baselines.fit_popularity(training, num_foods=num_foods)
    nearest = completion_baselines.fit_nearest_recipes(training, num_foods=num_foods)
    scores: Mapping[str, ScoreFn] = {
        "popularity": popularity.score,
        "naive_bayes": bayes,
        "ease": ease,
        "nearest_recipes": nearest.score,
    }
    metrics = {
        name: evaluate_completion(score, queries[cfg.split]) for name, score in scores.items()
    }
    return metrics, {"naive_bayes_damping": dampings, "ease_penalty": penalties}


def best_by_mrr(
    values: Sequence[float], fit: Callable[[float], ScoreFn], queries: CompletionQueries
) -> tuple[ScoreFn, dict[str, float]]:
    """The fit of the value with the highest MRR, and each value's MRR."""
    fitted = {value: fit(value) for value in values}
    mrr = {value: evaluate_completion(score, queries)["mrr"] for value, score in fitted.items()}
    return fitted[max(mrr, key=lambda value: mrr[value])], {str(k): v for k, v in mrr.items()}


def amount_table(sets: RecipeSets, cfg: BaselineConfig, *, num_foods: int) -> dict[str, Any]:
    """Metrics of every amount baseline; those of samples only where it has a distribution."""
    training = amount_recipes(sets, "train")
    queries = amount_queries(amount_recipes(sets, cfg.split), num_foods=num_foods)
    means = amount_baselines.fit_food_means(training, num_foods=num_foods)
    nearest = amount_baselines.fit_nearest_amounts(training, num_foods=num_foods)
    sample = functools.partial(
        means.sample, num_samples=cfg.num_samples, rng=np.random.default_rng(cfg.seed)
    )
    return {
        "uniform": evaluate_proportions(amount_baselines.UniformAmounts().proportions, queries),
        "food_means": evaluate_proportions(means.proportions, queries)
        | evaluate_samples(sample, queries),
        "nearest_amounts": evaluate_proportions(nearest.proportions, queries),
    }


def generation_table(sets: RecipeSets, cfg: BaselineConfig, *, num_foods: int) -> dict[str, Any]:
    """The two ends of the generation measures: foods drawn by popularity, and training recipes."""
    recipes = sets.select_completion()
    training, real = recipes.select_split("train"), recipes.select_split(cfg.split)
    popularity = completion_baselines.fit_popularity(training, num_foods=num_foods)
    copies = sample_recipes(training, cfg.num_generated, num_foods=num_foods, seed=cfg.seed)
    lengths = (copies < num_foods).sum(axis=1).astype(np.int32)
    popular = completion_baselines.sample_popular_sets(
        popularity, lengths, rng=np.random.default_rng(cfg.seed)
    )
    return {
        name: evaluate_generation(
            generated, real=real, training=training, num_foods=num_foods, seed=cfg.seed
        )
        for name, generated in {"popular_sets": popular, "training_recipes": copies}.items()
    }


def run(cfg: BaselineConfig) -> dict[str, Any]:
    """Fit and score every baseline.

    Returns:
        The record: configuration, versions, choices and metrics by task and baseline.

    Raises:
        DataError: a prepared folder that is incomplete or broken.
    """
    started = time.perf_counter()
    foods = read_foods(cfg.data / "foods.parquet").names
    sets = read_recipe_sets(cfg.data, foods)
    completion, chosen = completion_table(sets, cfg, num_foods=len(foods))
    return {
        "command": f"python -m experiments.recipes.baselines --data DIR --split {cfg.split}",
        "config": {
            name: value
            for name, value in dataclasses.asdict(cfg).items()
            if name not in ("data", "out")
        },
        "num_recipes": len(sets),
        "mrr_on_validation": chosen,
        "completion": completion,
        "amounts": amount_table(sets, cfg, num_foods=len(foods)),
        "generation": generation_table(sets, cfg, num_foods=len(foods)),
        "versions": {
            name: importlib.metadata.version(name) for name in ("numpy", "scipy", "scikit-learn")
        }
        | {"python": platform.python_version()},
        "commit": _commit(),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }


def print_tables(record: Mapping[str, Any], console: Console) -> None:
    """One table a task, a column a baseline; intervals are left to the record."""
    for task in ("completion", "amounts", "generation"):
        baselines: dict[str, dict[str, Any]] = record[task]
        metrics = dict.fromkeys(name for values in baselines.values() for name in values)
        table = Table("", *baselines, title=f"{task}, {record['config']['split']} recipes")
        for metric in (name for name in metrics if not name.endswith("_interval")):
            cells = [values.get(metric, "") for values in baselines.values()]
            table.add_row(metric, *(f"{x:.4f}" if isinstance(x, float) else str(x) for x in cells))
        console.print(table)


def _commit() -> str | None:
    """The commit that the code is at; none outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 2 where data or files are at fault."""
    cfg = tyro.cli(BaselineConfig, args=arguments, description=__doc__)
    try:
        if cfg.out is not None and not cfg.out.parent.is_dir():
            raise DataError(f"--out {cfg.out}: the folder {cfg.out.parent} must exist")
        record = run(cfg)
        print_tables(record, Console(stderr=True))
        if cfg.out is not None:
            replace_file(cfg.out, (json.dumps(record, indent=1) + "\n").encode())
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({name: record[name] for name in ("completion", "amounts", "generation")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
