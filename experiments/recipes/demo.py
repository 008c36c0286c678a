"""All of it in five minutes: complete pantries, train on the data at hand, write a report.

The pretrained models inside the package complete three pantries and explain their choices; then a
fresh generator learns from `$RECIPE_JAX_DATA`, or from the sample inside the package, and stands
beside its baselines.  Everything ends in one page, `RUN/report.html`.
"""

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.recipes import train as training
from experiments.recipes.evaluate import Flags as EvaluateFlags
from experiments.recipes.evaluate import evaluate_generator, load_checkpoint, print_table
from experiments.recipes.explain import explain_choice, features_of
from experiments.recipes.generate import PRETRAINED, Proposal, propose
from experiments.recipes.generate import Flags as GenerateFlags
from experiments.recipes.prepared import Prepared, read_prepared
from experiments.recipes.report import write_plots, write_report
from experiments.recipes.report_data import (
    AttentionMap,
    Attribution,
    Explanation,
    MethodRow,
    MetricColumn,
    MetricTable,
    Pairing,
    Pantry,
    Portion,
    Recipe,
    Report,
    Score,
    Substitute,
    TrainingRun,
)
from experiments.record import device
from recipe_jax.data.composition import FoodFeatures
from recipe_jax.data.files import DataError
from recipe_jax.data.prepare import prepare
from recipe_jax.diets import check
from recipe_jax.explain import attention_maps, pairings, substitutes
from recipe_jax.huggingface import LoadedModel
from recipe_jax.training.tracker import read_metrics

PANTRIES = (
    ("A tomato sauce for tonight, without dairy", ("tomato", "basil", "garlic"), (), "dairy"),
    ("Something from chickpeas, vegan", ("chickpea", "lemon juice"), (), "vegan"),
    ("A cake without nuts", ("flour", "butter", "egg"), ("walnut", "pecan", "almond"), None),
)
"""Name, required foods, forbidden foods and diet of each pantry."""

MAX_RECIPES = 10_000
"""The most recipes that a demo reads, however many there are."""

LIMITS = (
    "Proposals are statistics of what people cook. Nobody has cooked these recipes.",
    "A diet or allergen is checked by rule, food by food; nothing more is claimed.",
    "Amounts are shares of a recipe's weight, learned from lines as they were written: frying oil "
    "and cooking water count in full.",
    "Attributions say what moved this model, not what makes foods taste good together.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """How long and where.

    Attributes:
        run: the folder for the trained model and the report.
        recipes: recipes to read from `$RECIPE_JAX_DATA`, at most 10,000.
        minutes: of training, at most 3.
        seed: of everything random.
    """

    run: Path = Path("runs/demo")
    recipes: int = 2_500
    minutes: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.recipes <= MAX_RECIPES:
            raise ValueError(f"--recipes {self.recipes} must be from 1 to {MAX_RECIPES}")
        if not 0 < self.minutes <= 3:
            raise ValueError(f"--minutes {self.minutes} must be above 0 and at most 3")


def run(flags: Flags) -> dict[str, Any]:
    """Run the demo; returns the fresh model's metrics."""
    started = time.perf_counter()
    generator, amounts = (
        load_checkpoint(PRETRAINED / "generator"),
        load_checkpoint(PRETRAINED / "amounts"),
    )
    features = features_of(generator)
    pantries = [complete_pantry(generator, amounts, features, flags, *row) for row in PANTRIES]
    prepared = demo_data(flags)
    print(f"training on {prepared.source}, for at most {flags.minutes:g} min", file=sys.stderr)
    headline, table, rows = train_and_score(flags, prepared)
    seconds = time.perf_counter() - started
    report = Report(
        title="Recipes from molecules",
        data=f"The fresh model below was trained on {prepared.source}; the recipes come from the "
        "pretrained models inside the package.",
        pantries=pantries,
        training=[training_curves(flags, rows, table)],
        tables=[completion_metrics(table)],
        attention=[attention_of(generator, pantries[0].recipes[0])],
        limits=LIMITS,
        facts={
            "Trained on": prepared.source,
            "Seed": str(flags.seed),
            "Device": device(),
            "Time": f"{seconds:.0f} s in all",
        },
    )
    write_report(flags.run / "report.html", report)
    write_plots(flags.run / "plots", report)
    print(f"report: {flags.run / 'report.html'}", file=sys.stderr)
    return {**headline, "report": str(flags.run / "report.html"), "demo_seconds": round(seconds, 1)}


def demo_data(flags: Flags) -> Prepared:
    """Recipes of `$RECIPE_JAX_DATA` where there are any, else the sample; says which and why."""
    root = os.environ.get("RECIPE_JAX_DATA")
    raw = Path(root or "") / "recipes" / "recipes.jsonl.zst"
    if not root or not raw.is_file():
        missing = "RECIPE_JAX_DATA is not set" if not root else f"there is no {raw}"
        print(f"data: {missing}", file=sys.stderr)
        return read_prepared(None)
    folder = flags.run / f"prepared-{flags.recipes}"
    try:
        if not (folder / "prepare.json").is_file():
            prepare(raw, folder, limit=flags.recipes)
    except DataError as error:
        print(f"data: {error}", file=sys.stderr)
        return read_prepared(None)
    prepared = read_prepared(folder)
    source = f"{len(prepared.sets):,} recipes of $RECIPE_JAX_DATA"
    return dataclasses.replace(prepared, source=source)


def complete_pantry(
    generator: LoadedModel,
    amounts: LoadedModel,
    features: FoodFeatures,
    flags: Flags,
    name: str,
    required: tuple[str, ...],
    forbidden: tuple[str, ...],
    diet: str | None,
) -> Pantry:
    """One recipe for a pantry, with the reasons of its choices."""
    request = GenerateFlags(
        pantry=required,
        without=forbidden,
        diet=() if diet is None else (diet,),
        num=1,
        seed=flags.seed,
    )
    (proposal,) = propose(generator, amounts, request)
    explanations, chances = explain_choices(generator, features, proposal, len(required))
    recipe = Recipe(
        portions=[
            Portion(food=food, grams=g, low_grams=low, high_grams=high, probability=chance)
            for food, g, low, high, chance in zip(
                proposal.foods, proposal.grams, proposal.low, proposal.high, chances, strict=True
            )
        ],
        findings=[] if diet is None else check(proposal.foods, diet),
        explanations=explanations,
        substitutes=substitutes_of(generator, proposal.foods, required[-1]),
        pairings=pairings_of(generator, required[0]),
    )
    return Pantry(name=name, required=required, forbidden=forbidden, diet=diet, recipes=[recipe])


def explain_choices(
    generator: LoadedModel, features: FoodFeatures, proposal: Proposal, num_given: int, top: int = 6
) -> tuple[list[Explanation], list[float | None]]:
    """Why each food after the pantry was chosen, and how probable it was."""
    explanations: list[Explanation] = []
    chances: list[float | None] = [None] * num_given
    for place in range(num_given, len(proposal.foods)):
        found = explain_choice(
            generator, features, proposal.foods[:place], proposal.foods[place], top=top
        )
        chances.append(found.probability)
        explanations.append(
            Explanation(
                food=found.choice,
                ingredients=[Attribution(name=n, value=v) for n, v in found.ingredients],
                compounds=[
                    Attribution(name=f"{compound} ({food})", value=value)
                    for food, compound, value in found.compounds
                ],
                completeness_error=found.completeness_error,
            )
        )
    return explanations, chances


def substitutes_of(
    generator: LoadedModel, foods: Sequence[str], replaced: str, top: int = 3
) -> list[Substitute]:
    """What could stand in the place of a food."""
    index = [generator.foods.index(food) for food in foods]
    target = generator.foods.index(replaced)
    found = substitutes(
        generator.fn, generator.params, generator.molecules, np.array(index), target
    )
    best = np.argsort(-found.score)[:top]
    logs = np.log(np.maximum(found.probability, 1e-9))
    return [
        Substitute(
            food=replaced,
            replacement=generator.foods[i],
            nats=float(logs[i] - logs[target]),
            change=f"composition {100 * float(found.similarity.cosine[i]):.0f} % alike",
        )
        for i in best
    ]


def pairings_of(generator: LoadedModel, food: str, top: int = 5) -> list[Pairing]:
    """The partners that a food's molecules favour."""
    found = pairings(
        generator.fn, generator.params, generator.molecules, generator.foods.index(food)
    )
    gain = np.asarray(found.lift)
    return [
        Pairing(food=food, partner=generator.foods[i], nats=float(gain[i]))
        for i in np.argsort(-gain)[:top]
    ]


def train_and_score(
    flags: Flags, prepared: Prepared
) -> tuple[dict[str, Any], Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """A fresh small generator on the data at hand, beside its baselines."""
    folder = flags.run / "generator"
    shutil.rmtree(folder, ignore_errors=True)
    small = training.Flags(
        run=folder,
        steps=4000 if len(prepared.sets) > 1000 else 400,
        minutes=flags.minutes,
        batch_size=64,
        embed_dim=96,
        num_layers=2,
        num_heads=3,
        dropout=0.2,
        seed=flags.seed,
        evaluate_every=200,
    )
    trained = training.run(small, prepared)
    model = load_checkpoint(folder, prepared)
    scoring = EvaluateFlags(
        checkpoint=(folder,), split="test", num_orders=4, num_candidates=15, seed=flags.seed
    )
    table = evaluate_generator(model, prepared, scoring)["completion"]
    print_table(f"completion, test recipes of {prepared.source}", table)
    headline = {
        "data": prepared.source,
        "steps": trained["step"],
        **{k: table["model"][k] for k in ("recall_at_1", "recall_at_10", "mrr", "n")},
        "baselines": {k: v for k, v in table.items() if k != "model"},
    }
    return headline, table, read_metrics(folder / "metrics.jsonl")


def completion_metrics(table: Mapping[str, Mapping[str, Any]]) -> MetricTable:
    """The completion table for the page."""
    keys = ("recall_at_1", "recall_at_10", "mrr")
    names = {"model": "this model, trained above"}
    return MetricTable(
        title="Find the hidden food",
        columns=[
            MetricColumn(key="recall_at_1", label="recall at 1", higher_is_better=True),
            MetricColumn(key="recall_at_10", label="recall at 10", higher_is_better=True),
            MetricColumn(key="mrr", label="mean reciprocal rank", higher_is_better=True),
        ],
        rows=[
            MethodRow(
                method=names.get(name, name.replace("_", " ")),
                n=values["n"],
                scores={key: _score(values, key) for key in keys},
                ours=name == "model",
            )
            for name, values in table.items()
        ],
        note="One food of each unseen recipe is hidden and all foods not in the rest are ranked; "
        "95 % intervals over recipes.",
    )


def training_curves(
    flags: Flags, rows: Sequence[Mapping[str, Any]], table: Mapping[str, Mapping[str, Any]]
) -> TrainingRun:
    """Loss and validation, with the baselines as lines."""
    return TrainingRun(
        title=f"A fresh generator, at most {flags.minutes:g} minutes",
        rows=rows,
        metric="recall_at_10",
        label="recall at 10, validation (higher is better)",
        baselines={
            name.replace("_", " "): values["recall_at_10"]
            for name, values in table.items()
            if name != "model"
        },
        loss_label="training loss (nats per choice)",
    )


def attention_of(generator: LoadedModel, recipe: Recipe) -> AttentionMap:
    """Which foods the last layer reads when the next food is told."""
    foods = [portion.food for portion in recipe.portions]
    index = np.array([generator.foods.index(food) for food in foods])
    read = attention_maps(generator.fn, generator.params, generator.molecules, index).read
    return AttentionMap(
        title="What the last layer reads before it chooses the next food",
        weights=np.asarray(jax.device_get(read[-1])),
        row_labels=[f"head {i + 1}" for i in range(read.shape[1])],
        column_labels=["start", *foods],
        row_name="attention head",
        column_name="token read",
    )


def _score(values: Mapping[str, Any], key: str) -> Score:
    low, high = values[f"{key}_interval"]
    return Score(mean=values[key], low=low, high=high)
