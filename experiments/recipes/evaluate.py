"""Score a trained model on held-out recipes, beside its baselines.

Receipt: see experiments/README.md for the commands, times and metrics of the committed runs.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from recipe_kernels import attention
from rich.console import Console
from rich.table import Table

from experiments.commands import check_least
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
from experiments.recipes.drawing import DEFAULT_PASSES, GENERATORS, generate_sets
from experiments.recipes.generation_quality import evaluate_generation
from experiments.recipes.prepared import Prepared, read_prepared
from experiments.recipes.scoring import (
    AMOUNT_MODELS,
    LIKELIHOOD_MODELS,
    amount_functions,
    completion_score,
)
from experiments.record import command_line, make_record, write_record
from recipe_jax.functional import abstract
from recipe_jax.huggingface import LoadedModel, load_model, make_module

NUM_GENERATED = 1000
SCORED_AT_ONCE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to score on what.

    Attributes:
        checkpoint: a run folder or a model folder; several are scored one after the other.
        data: a prepared folder; the sample inside the package if not given.
        split: the recipes to score on.
        baselines: fit and score the baselines too.
        num_orders: reading orders that a completion is averaged over.
        num_candidates: foods per completion, the most probable ones, that are ranked by the
            likelihood of the whole set they complete; 0 ranks all by their own probability.
        num_samples: draws per recipe for intervals of amounts.
        passes: of a masked-set generator, scored beside a single pass.
        seed: of hidden foods and of every draw.
        record: write the results to this file.
    """

    checkpoint: tuple[Path, ...]
    data: Path | None = None
    split: Literal["validation", "test"] = "test"
    baselines: bool = True
    num_orders: int = 12
    num_candidates: int = 24
    num_samples: int = 200
    passes: int = DEFAULT_PASSES
    seed: int = 0
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, num_orders=1, num_candidates=0, num_samples=2, passes=1)


def run(flags: Flags) -> dict[str, Any]:
    """Score, print the tables, and write the record."""
    prepared = read_prepared(flags.data)
    results: dict[str, Any] = {}
    for checkpoint in flags.checkpoint:
        model = load_checkpoint(checkpoint, prepared)
        tables: dict[str, Any] = {}
        if model.model_type in GENERATORS:
            tables |= evaluate_generator(model, prepared, flags)
        if model.model_type in AMOUNT_MODELS:
            tables |= evaluate_amounts(model, prepared, flags)
        results[str(checkpoint)] = tables
    for name, tables in results.items():
        for task, table in tables.items():
            print_table(f"{name}: {task}, {flags.split} recipes of {prepared.source}", table)
    if flags.record is not None:
        command = command_line("experiments.recipes evaluate", flags, always=("split", "seed"))
        found = {"data": prepared.source if flags.data is None else "DIR", "results": results}
        write_record(flags.record, make_record(command, **found))
    return headline(results)


def load_checkpoint(
    path: Path, prepared: Prepared | None = None, *, kinds: Sequence[str] = ()
) -> LoadedModel:
    """The model of a run folder or model folder, checked against the data's vocabulary.

    Args:
        path: a run folder or model folder.
        prepared: the data whose vocabulary the model must know.
        kinds: the `model_type`s it may be of; any if none is given.

    Raises:
        ModelFolderError: no model, or a broken one.
        ValueError: a model of other foods, or of another kind.
    """
    model = load_model(path / "model" if (path / "model").is_dir() else path)
    if kinds and model.model_type not in kinds:
        article = "an" if kinds[0][0] in "aeiou" else "a"
        one = " or ".join(kinds)
        raise ValueError(f"{path}: model_type={model.model_type!r} must be {article} {one}")
    if prepared is not None and model.foods != prepared.foods:
        raise ValueError(
            f"{path}: the model knows {len(model.foods)} foods, which are not the "
            f"{len(prepared.foods)} of {prepared.source}; train on this data or prepare it again"
        )
    fn, _ = abstract(lambda: make_module(model.model_type, model.cfg, attend=attention))
    return model._replace(fn=fn)


def evaluate_generator(model: LoadedModel, prepared: Prepared, flags: Flags) -> dict[str, Any]:
    """Completion beside its baselines, and how real the generated recipes look."""
    num_foods = len(prepared.foods)
    queries = completion_queries(
        completion_recipes(prepared.sets, flags.split), num_foods=num_foods, seed=flags.seed
    )
    completion: dict[str, Any] = {}
    stages = {"model": 0}
    if flags.num_candidates and model.model_type in LIKELIHOOD_MODELS:
        stages = {"model": flags.num_candidates, "model_by_next_food": 0}
    for name, num_candidates in stages.items():
        score = completion_score(
            model.fn,
            model.params,
            model.molecules,
            num_orders=flags.num_orders,
            num_candidates=num_candidates,
            seed=flags.seed,
        )
        completion[name] = evaluate_completion(score, queries, about=f"completion, {name}")
    if flags.baselines:
        cfg = BaselineConfig(data=Path(), split=flags.split, seed=flags.seed)
        completion |= completion_table(prepared.sets, cfg, num_foods=num_foods)[0]
    recipes = prepared.sets.select_completion()

    def quality(num_passes: int) -> dict[str, Any]:
        return evaluate_generation(
            generate_sets(model, NUM_GENERATED, seed=flags.seed, num_passes=num_passes),
            real=recipes.select_split(flags.split),
            training=recipes.select_split("train"),
            num_foods=num_foods,
            seed=flags.seed,
        )

    generation = {"model": quality(flags.passes)}
    if model.model_type == "masked_set_generator":
        generation["model_in_one_pass"] = quality(1)
    return {"completion": completion, "generation": generation}


def evaluate_amounts(model: LoadedModel, prepared: Prepared, flags: Flags) -> dict[str, Any]:
    """Errors of the point estimate, CRPS and coverage of the samples, beside the baselines."""
    num_foods = len(prepared.foods)
    queries = amount_queries(amount_recipes(prepared.sets, flags.split), num_foods=num_foods)
    predict, sample = amount_functions(model, num_samples=flags.num_samples, seed=flags.seed)
    # Batches of one size: a model that only samples then draws each of them once.
    errors = evaluate_proportions(predict, queries, batch_size=SCORED_AT_ONCE)
    table = {"model": errors | evaluate_samples(sample, queries, batch_size=SCORED_AT_ONCE)}
    if flags.baselines:
        cfg = BaselineConfig(data=Path(), split=flags.split, seed=flags.seed)
        table |= amount_table(prepared.sets, cfg, num_foods=num_foods)
    return {"amounts": table}


def print_table(title: str, columns: Mapping[str, Mapping[str, Any]]) -> None:
    """One table, a column a method; intervals are left to the record."""
    metrics = dict.fromkeys(name for values in columns.values() for name in values)
    table = Table("", *columns, title=title)
    for metric in (name for name in metrics if not name.endswith("_interval")):
        cells = [values.get(metric, "") for values in columns.values()]
        table.add_row(metric, *(f"{x:.4f}" if isinstance(x, float) else str(x) for x in cells))
    Console(stderr=True).print(table)


def headline(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The first model's metrics at the top, other ways to use it and its baselines nested."""
    flat: dict[str, Any] = {}
    for tables in results.values():
        for table in tables.values():
            for name, value in table["model"].items():
                if not name.endswith("_interval"):
                    flat.setdefault(name, value)
            for name, values in table.items():
                if name.startswith("model_"):
                    flat.setdefault(name, values)
                elif name != "model":
                    flat.setdefault("baselines", {})[name] = values
    if len(results) > 1:
        print(f"the JSON line holds the first of {len(results)} models", file=sys.stderr)
    return flat
