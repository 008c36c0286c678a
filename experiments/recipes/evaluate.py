"""Score a trained model on held-out recipes, beside its baselines.

Receipt: see experiments/README.md for the commands, times and metrics of the committed runs.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Int32
from rich.console import Console
from rich.table import Table

from experiments.recipes.amounts_protocol import (
    amount_queries,
    amount_recipes,
    evaluate_proportions,
    evaluate_samples,
)
from experiments.recipes.baselines import BaselineConfig, amount_table, completion_table
from experiments.recipes.completion import (
    completion_queries,
    completion_recipes,
    evaluate_completion,
)
from experiments.recipes.generation_quality import evaluate_generation
from experiments.recipes.prepared import Prepared, read_prepared
from experiments.recipes.scoring import completion_score
from experiments.record import make_record, write_record
from recipe_jax.decoding import Sampling, SetConstraint, sample_sets
from recipe_jax.huggingface import LoadedModel, load_model
from recipe_jax.models.amounts import Mixture, mean_log_ratios, sample_proportions
from recipe_jax.models.simplex import member_mask, proportions

NUM_GENERATED = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to score on what.

    Attributes:
        checkpoint: a run folder or a model folder; several are scored one after the other.
        data: a prepared folder; the sample inside the package if not given.
        split: the recipes to score on.
        baselines: fit and score the baselines too.
        num_orders: reading orders that a completion is averaged over.
        num_samples: draws per recipe for intervals of amounts.
        seed: of hidden foods and of every draw.
        record: write the results to this file.
    """

    checkpoint: tuple[Path, ...]
    data: Path | None = None
    split: Literal["validation", "test"] = "test"
    baselines: bool = True
    num_orders: int = 8
    num_samples: int = 200
    seed: int = 0
    record: Path | None = None


def run(flags: Flags) -> dict[str, Any]:
    """Score, print the tables, and write the record."""
    prepared = read_prepared(flags.data)
    results: dict[str, Any] = {}
    for checkpoint in flags.checkpoint:
        model = load_checkpoint(checkpoint, prepared)
        score = evaluate_amounts if model.model_type == "amounts" else evaluate_generator
        results[str(checkpoint)] = score(model, prepared, flags)
    for name, tables in results.items():
        for task, table in tables.items():
            print_table(f"{name}: {task}, {flags.split} recipes of {prepared.source}", table)
    if flags.record is not None:
        command = "python -m experiments.recipes evaluate --checkpoint " + " ".join(
            map(str, flags.checkpoint)
        )
        described = {k: v for k, v in dataclasses.asdict(flags).items() if k not in _PATHS}
        write_record(flags.record, make_record(command, flags=described, results=results))
    return headline(results)


_PATHS = ("checkpoint", "data", "record")


def load_checkpoint(
    path: Path, prepared: Prepared | None = None, *, kind: str | None = None
) -> LoadedModel:
    """The model of a run folder or model folder, checked against the data's vocabulary.

    Args:
        path: a run folder or model folder.
        prepared: the data whose vocabulary the model must know.
        kind: the `model_type` it must be of.

    Raises:
        ModelFolderError: no model, or a broken one.
        ValueError: a model of other foods, or of another kind.
    """
    model = load_model(path / "model" if (path / "model").is_dir() else path)
    if kind is not None and model.model_type != kind:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"{path}: model_type={model.model_type!r} must be {article} {kind}")
    if prepared is not None and model.foods != prepared.foods:
        raise ValueError(
            f"{path}: the model knows {len(model.foods)} foods, which are not the "
            f"{len(prepared.foods)} of {prepared.source}; train on this data or prepare it again"
        )
    return model


def evaluate_generator(model: LoadedModel, prepared: Prepared, flags: Flags) -> dict[str, Any]:
    """Completion beside its baselines, and how real the generated recipes look."""
    num_foods = len(prepared.foods)
    queries = completion_queries(
        completion_recipes(prepared.sets, flags.split), num_foods=num_foods, seed=flags.seed
    )
    score = completion_score(
        model.fn, model.params, model.molecules, num_orders=flags.num_orders, seed=flags.seed
    )
    completion: dict[str, Any] = {"model": evaluate_completion(score, queries)}
    if flags.baselines:
        cfg = BaselineConfig(data=Path(), split=flags.split, seed=flags.seed)
        completion |= completion_table(prepared.sets, cfg, num_foods=num_foods)[0]
    recipes = prepared.sets.select_completion()
    generated = generate_sets(model, NUM_GENERATED, seed=flags.seed)
    quality = evaluate_generation(
        generated,
        real=recipes.select_split(flags.split),
        training=recipes.select_split("train"),
        num_foods=num_foods,
        seed=flags.seed,
    )
    return {"completion": completion, "generation": {"model": quality}}


def evaluate_amounts(model: LoadedModel, prepared: Prepared, flags: Flags) -> dict[str, Any]:
    """Errors of the point estimate, CRPS and coverage of the samples, beside the baselines."""
    num_foods = len(prepared.foods)
    queries = amount_queries(amount_recipes(prepared.sets, flags.split), num_foods=num_foods)
    predict, sample = amount_functions(model, num_samples=flags.num_samples, seed=flags.seed)
    table = {"model": evaluate_proportions(predict, queries) | evaluate_samples(sample, queries)}
    if flags.baselines:
        cfg = BaselineConfig(data=Path(), split=flags.split, seed=flags.seed)
        table |= amount_table(prepared.sets, cfg, num_foods=num_foods)
    return {"amounts": table}


def generate_sets(
    model: LoadedModel, count: int, *, seed: int, min_foods: int = 3
) -> Int[np.ndarray, "n m"]:
    """Recipes from nothing: foods, padded with the vocabulary's size."""
    v, size = len(model.foods), model.cfg.max_foods
    constraint = SetConstraint(
        allowed=jnp.ones(v, bool),
        min_foods=jnp.asarray(min_foods, jnp.int32),
        max_foods=jnp.asarray(size, jnp.int32),
    )
    decoded = sample_sets(
        model.fn,
        model.params,
        model.molecules,
        jnp.full((count, size), v, jnp.int32),
        jnp.zeros(count, jnp.int32),
        jax.random.key(seed),
        constraint=constraint,
        sampling=Sampling(),
    )
    return np.asarray(decoded.foods)


def amount_functions(model: LoadedModel, *, num_samples: int, seed: int) -> tuple[Any, Any]:
    """A model of amounts as the two functions that the protocol asks for."""

    @functools.partial(jax.jit, static_argnums=0)
    def mixture(
        fn: Any, params: Any, foods: Int[jax.Array, "b m"], lengths: Int[jax.Array, "b"]
    ) -> Mixture:
        return fn.bind(params)(model.molecules, foods, lengths)

    def predict(
        foods: Int32[np.ndarray, "b m"], lengths: Int32[np.ndarray, "b"]
    ) -> Float[np.ndarray, "b m"]:
        found = mixture(model.fn, model.params, foods, lengths)
        members = member_mask(jnp.asarray(lengths), foods.shape[1])
        return np.asarray(proportions(mean_log_ratios(found), members))

    def sample(
        foods: Int32[np.ndarray, "b m"], lengths: Int32[np.ndarray, "b"]
    ) -> Float[np.ndarray, "samples b m"]:
        found = mixture(model.fn, model.params, foods, lengths)
        drawn = sample_proportions(
            found, jnp.asarray(lengths), jax.random.key(seed), num_samples=num_samples
        )
        return np.asarray(drawn)

    return predict, sample


def print_table(title: str, columns: Mapping[str, Mapping[str, Any]]) -> None:
    """One table, a column a method; intervals are left to the record."""
    metrics = dict.fromkeys(name for values in columns.values() for name in values)
    table = Table("", *columns, title=title)
    for metric in (name for name in metrics if not name.endswith("_interval")):
        cells = [values.get(metric, "") for values in columns.values()]
        table.add_row(metric, *(f"{x:.4f}" if isinstance(x, float) else str(x) for x in cells))
    Console(stderr=True).print(table)


def headline(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The first model's metrics at the top, its baselines nested."""
    flat: dict[str, Any] = {}
    for tables in results.values():
        for table in tables.values():
            for name, value in table["model"].items():
                if not name.endswith("_interval"):
                    flat.setdefault(name, value)
            others = {k: v for k, v in table.items() if k != "model"}
            flat.setdefault("baselines", {}).update(others)
    if len(results) > 1:
        print(f"the JSON line holds the first of {len(results)} models", file=sys.stderr)
    return flat
