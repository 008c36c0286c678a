"""Rank every item for every user: trained models, baselines and their blend in one table.

python -m experiments.semantic_ids evaluate --data beauty --runs runs/sasrec-* --split test

Every recommender is fitted twice for the test: on the training items, and with the validation items
as well, once everything has been chosen.  Which is which stands in the table.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from experiments.commands import check_least
from experiments.record import command_line, make_record, write_record
from experiments.semantic_ids.blending import blend, mean_scorer
from experiments.semantic_ids.choices import Choices, as_json, fit_baselines, read_choices
from experiments.semantic_ids.datasets import Dataset, read_dataset, said
from experiments.semantic_ids.protocol import Scorer, metrics_of_seeds, target_ranks
from experiments.semantic_ids.published import PUBLISHED
from experiments.semantic_ids.trained import load_scorers
from recipe_jax.data.interactions import Histories, Queries

METRICS = ("recall_at_5", "ndcg_at_5", "recall_at_10", "ndcg_at_10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is scored on what.

    Attributes:
        data: `beauty`, `mealrec`, or the path of a file of histories.
        data_seed: of the items' order, and of what is left out of sets.
        split: which part is asked; choose on validation, look at test once.
        runs: run folders of trained models; those of one kind are seeds of one training.
        choices: the record of `choose`; that of the data among the project's records if not given.
        record: write the results to this file.
    """

    data: str = "beauty"
    data_seed: int = 0
    split: Literal["validation", "test"] = "validation"
    runs: tuple[Path, ...] = ()
    choices: Path | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, data_seed=0)


def run(flags: Flags) -> dict[str, Any]:
    """Score, print, write the record."""
    dataset = read_dataset(flags.data, seed=flags.data_seed)
    choices = read_choices(Path(flags.data).name, flags.choices)
    trained = load_scorers(flags.runs, dataset, may_know=flags.split == "test")
    split = dataset.split
    queries = split.test if flags.split == "test" else split.validation
    tables = {"train": score_all(split.train, trained.of_training, queries, dataset, choices)}
    if flags.split == "test":
        tables["train_and_validation"] = score_all(
            split.before_test,
            trained.of_validation,
            queries,
            dataset,
            choices,
            stand_ins=trained.of_training,
        )
    print_scores(f"{dataset.name}, {flags.split}", tables)
    last = list(tables)[-1]
    systems = {name: dict(rows) for name, rows in tables.items()}
    headline = {
        "data": dataset.name,
        "split": flags.split,
        "num_items": len(dataset.item_ids),
        "num_users_too_short": dataset.split.num_too_short,
        "learned_from": last,
        **systems[last].pop("blend"),
        "choices": as_json(choices),
        "baselines": systems,
    }
    if flags.data == "beauty":
        headline["published"] = PUBLISHED
    if flags.record is not None:
        command = command_line(
            "experiments.semantic_ids evaluate",
            dataclasses.replace(flags, data=said(flags.data)),
            always=("data",),
        )
        write_record(flags.record, make_record(command, **headline))
    return headline


def score_all(
    histories: Histories,
    trained: Mapping[str, list[Scorer]],
    queries: Queries,
    dataset: Dataset,
    choices: Choices,
    *,
    stand_ins: Mapping[str, list[Scorer]] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Metrics of every recommender by name.

    Args:
        histories: what baselines learn from.
        trained: models that learned from the same, by their type.
        queries: what is asked.
        dataset: where these are from.
        choices: of validation.
        stand_ins: models that learned from less, for the blend where `trained` has none.

    Raises:
        ValueError: a part of the blend that is not there.
    """
    n = len(dataset.item_ids)
    scorers = fit_baselines(histories, num_items=n, choices=choices)
    rows = {name: score_seeds([scorer], queries, n) for name, scorer in scorers.items()}
    rows |= {name: score_seeds(seeds, queries, n) for name, seeds in trained.items()}
    models = {**stand_ins, **trained}
    scorers |= {name: mean_scorer(seeds) for name, seeds in models.items()}
    weights = {name: weight for name, weight in choices.blend.items() if weight}
    missing = sorted(set(weights) - set(scorers))
    if missing:
        raise ValueError(f"the chosen blend needs {missing[0]!r}: name its trainings by --runs")
    rows["blend"] = score_seeds([blend(scorers, weights)], queries, n)
    return rows


def score_seeds(seeds: list[Scorer], queries: Queries, num_items: int) -> dict[str, Any]:
    """The protocol's metrics, the mean over seeds where there are several."""
    ranks = [target_ranks(score, queries, num_items=num_items) for score in seeds]
    return metrics_of_seeds(ranks)


def print_scores(title: str, tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """A table on stderr: a row for each recommender and what it was fitted on."""
    table = Table(title=title)
    for column in ("", "learned from", *METRICS, "interval of recall_at_5", "n", "seeds"):
        table.add_column(column, justify="right" if column in METRICS else "left")
    for learned, rows in tables.items():
        for name, found in rows.items():
            low, high = found["recall_at_5_interval"]
            table.add_row(
                name,
                learned.replace("_", " "),
                *(f"{found[metric]:.4f}" for metric in METRICS),
                f"{low:.4f} to {high:.4f}",
                str(found["n"]),
                str(found["num_seeds"]),
            )
    Console(stderr=True, width=140).print(table)
