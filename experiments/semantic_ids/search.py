"""Find items by text: every system ranks the whole catalogue for every query, in one table.

python -m experiments.semantic_ids search --task recipe-titles --split test

With `--choose` hyperparameters are chosen on validation and written to a record, which every other
call reads.  The last line on stdout is one JSON object.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64
from rich.console import Console
from rich.table import Table

from experiments.commands import check_least, check_seed
from experiments.record import command_line, make_record, write_record
from experiments.semantic_ids.blending import ascend, standardized
from experiments.semantic_ids.text_baselines import (
    ExpandedBm25,
    TextChoices,
    as_json,
    blended,
    choices_path,
    fit_expanded_bm25,
    fit_nearest_texts,
    fit_text_baselines,
    read_text_choices,
)
from experiments.semantic_ids.text_queries import (
    SplitName,
    TaskName,
    TextQueries,
    TextScorer,
    read_text_queries,
    text_metrics,
    text_ranks,
)
from recipe_jax.data.bm25 import Bm25Config, fit_bm25
from recipe_jax.metrics import ndcg_at_k

K1S = (0.15, 0.3, 0.6, 1.2)
BS = (0.25, 0.5, 0.75, 1.0)
DIMS = (128, 512)
NEIGHBOURS = (10, 30, 100)
EXPANSIONS = (0.1, 0.3, 1.0)
Fit: TypeAlias = Callable[..., TextScorer]
"""Settings to a system that has them."""

METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "ndcg_at_10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is asked.

    Attributes:
        task: recipe-titles asks for recipes by titles that were taken from them; of PantryPilot's
            recipes, requests ask by people's sentences, pantries by lists of foods and wishes.
        split: which part is asked; choose on validation, look at test once.
        queries: at most so many, a random sample.
        seed: of the sample.
        encoder: the folder of a sentence encoder, for one system more.
        runs: run folders of `tune`, language models that know IDs of all these items; those that
            learned of the asked items' words cannot be told from others here.
        choose: choose hyperparameters and weights of a blend on validation and record them.
        choices: the record of --choose; that of the task among the project's records if not given.
        record: write the results to this file.
    """

    task: TaskName = "recipe-titles"
    split: SplitName = "validation"
    queries: int = 2000
    seed: int = 0
    encoder: Path | None = None
    runs: tuple[Path, ...] = ()
    choose: bool = False
    choices: Path | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, queries=2)
        check_seed(self.seed)
        if self.choose and self.split == "test":
            raise ValueError("--choose looks at validation alone: leave --split test to the end")


def run(flags: Flags) -> dict[str, Any]:
    """Choose, or score; print, write the record."""
    asked = read_text_queries(
        flags.task, split=flags.split, num_queries=flags.queries, seed=flags.seed
    )
    print(
        f"data: {len(asked.queries)} queries of {flags.task}, {flags.split}, "
        f"{len(asked.items.ids)} items",
        file=sys.stderr,
    )
    choices_file = flags.choices or choices_path(flags.task)
    about = {
        "task": flags.task,
        "split": flags.split,
        "num_items": len(asked.items.ids),
        "items": asked.items.fingerprint,
        "num_left_out": asked.num_left_out,
    }
    if flags.choose:
        choices, reached, sweep = choose(asked, flags.encoder)
        headline = {**about, "n": len(asked.queries), "ndcg_at_10": reached}
        headline["choices"] = as_json(choices)
        write(dataclasses.replace(flags, choices=None), choices_file, {**headline, "sweep": sweep})
        return headline
    choices = read_text_choices(choices_file)
    scorers = fit_text_baselines(asked, choices, encoder=flags.encoder)
    models = language_scorers(flags.runs, asked)
    rows = score_all({**scorers, **models, "blend": blended(scorers, choices)}, asked)
    print_scores(f"{flags.task}, {flags.split}, {len(asked.items.ids)} items", rows)
    headline = {**about, **rows["blend"], "choices": as_json(choices)}
    headline["baselines"] = {name: found for name, found in rows.items() if name != "blend"}
    if flags.record is not None:
        write(flags, flags.record, headline)
    return headline


def write(flags: Flags, path: Path, results: Mapping[str, Any]) -> None:
    """A record of the command and what it found."""
    command = command_line("experiments.semantic_ids search", flags, always=("task", "queries"))
    write_record(path, make_record(command, seed=flags.seed, **results))


def language_scorers(runs: Sequence[Path], asked: TextQueries) -> dict[str, TextScorer]:
    """Language models of `tune` by the names of their run folders.

    Raises:
        ValueError: a model that has no ID of an item that is asked about.
        DataError: no such model there.
    """
    if not runs:
        return {}
    # Needs the extra [language], which the others do not.
    from experiments.semantic_ids import language_recommending as language

    models = {run.name: language.load_language_recommender(run) for run in runs}
    ids = asked.items.ids
    return {name: language.query_scorer(model, ids) for name, model in models.items()}


def score_all(scorers: Mapping[str, TextScorer], asked: TextQueries) -> dict[str, dict[str, Any]]:
    """Metrics of every system by name."""
    return {name: text_metrics(text_ranks(score, asked)) for name, score in scorers.items()}


def choose(
    asked: TextQueries, encoder: Path | None
) -> tuple[TextChoices, float, list[dict[str, Any]]]:
    """The settings with the highest NDCG at 10, each system's by itself, and then the weights.

    Returns:
        The choices, what their blend reaches, and everything that was tried.
    """
    texts, sweep = asked.items.texts, []

    def record(name: str, ranks: Float64[np.ndarray, "u"], **values: Any) -> float:
        ndcg = float(ndcg_at_k(ranks, 10).mean())
        sweep.append({"name": name, **values, "ndcg_at_10": ndcg})
        print(f"tried: {sweep[-1]}", file=sys.stderr)
        return ndcg

    def best(name: str, fit: Fit, **values: Sequence[Any]) -> dict[str, Any]:
        settings = [
            dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
        ]
        return max(settings, key=lambda it: record(name, text_ranks(fit(**it), asked), **it))

    words = fit_bm25(texts)
    chosen = best("bm25", lambda **it: words.with_settings(Bm25Config(**it)).scores, k1=K1S, b=BS)
    chosen |= best("nearest_texts", lambda **it: fit_nearest_texts(texts, **it).scores, dim=DIMS)
    choices = TextChoices(**chosen)
    if asked.known.queries:
        choices = dataclasses.replace(choices, **choose_expansion(asked, choices, best))
    scorers = fit_text_baselines(asked, choices, encoder=encoder)
    del scorers["bm25_as_usual"]
    tables = {name: standardized(score(asked.queries)) for name, score in scorers.items()}

    def weighed(weights: Mapping[str, float]) -> float:
        total = np.zeros((len(asked.queries), len(asked.items.ids)), np.float32)
        for name, weight in weights.items():
            total += weight * tables[name]
        ranks = text_ranks(lambda queries: total, asked, queries_at_once=len(total))
        return record("blend", ranks, weights=dict(weights))

    alone = {name: weighed({name: 1.0}) for name in tables}
    weights, ndcg = ascend(sorted(alone, key=lambda name: -alone[name]), weighed)
    return dataclasses.replace(choices, blend=weights), ndcg, sweep


def choose_expansion(
    asked: TextQueries, choices: TextChoices, best: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """How expanded queries are scored, then how far they are expanded.

    Args:
        asked: queries of validation.
        choices: where to begin.
        best: tries every setting of a system, and returns the best.
    """
    fitted = fit_expanded_bm25(asked, choices)

    def scored(expanded_k1: float, expanded_b: float) -> ExpandedBm25:
        settings = Bm25Config(k1=expanded_k1, b=expanded_b)
        return dataclasses.replace(fitted, items=fitted.items.with_settings(settings))

    chosen = best("bm25_expanded", lambda **it: scored(**it).scores, expanded_k1=K1S, expanded_b=BS)
    scoring = scored(**chosen)
    return chosen | best(
        "bm25_expanded",
        lambda **it: dataclasses.replace(scoring, **it).scores,
        num_neighbours=NEIGHBOURS,
        expansion=EXPANSIONS,
    )


def print_scores(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A table on stderr: a row for each system."""
    table = Table(title=title)
    for column in ("", *METRICS, "interval of recall_at_10", "n"):
        table.add_column(column, justify="right" if column in METRICS else "left")
    for name, found in rows.items():
        low, high = found["recall_at_10_interval"]
        figures = (f"{found[metric]:.4f}" for metric in METRICS)
        table.add_row(name, *figures, f"{low:.4f} to {high:.4f}", str(found["n"]))
    Console(stderr=True, width=140).print(table)
