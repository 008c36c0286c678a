"""Choose the baselines' hyperparameters and the weights of their blend, on validation alone.

python -m experiments.semantic_ids choose --data beauty --runs runs/sasrec-0 --record choices.json

Everything is fitted on the training items; `evaluate` reads the record.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments.commands import check_least
from experiments.record import command_line, make_record, write_record
from experiments.semantic_ids.baselines import (
    ItemToItem,
    fit_ease,
    fit_item_knn,
    fit_popularity,
    fit_transitions,
)
from experiments.semantic_ids.blending import choose_weights, mean_scorer
from experiments.semantic_ids.choices import RECORDS, Choices, as_json
from experiments.semantic_ids.datasets import Dataset, read_dataset, said
from experiments.semantic_ids.protocol import Scorer, target_ranks
from experiments.semantic_ids.trained import load_scorers
from recipe_jax.data.interactions import Histories, Queries
from recipe_jax.metrics import ndcg_at_k

DECAYS = (0.3, 0.5, 0.65, 0.8, 1.0)
EASE_PENALTIES = (100.0, 250.0, 500.0)
TRANSITION_PENALTIES = (15.0, 50.0)
LEARNING_DECAYS = (0.5, 0.8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is chosen from.

    Attributes:
        data: `beauty`, `mealrec`, or the path of a file of histories.
        data_seed: of the items' order, and of what is left out of sets.
        runs: trained models that may be in the blend, which learned no validation items.
        users: most users of validation to choose by, a random sample.
        record: write the choices to this file; where `evaluate` looks for it if not given.
    """

    data: str = "beauty"
    data_seed: int = 0
    runs: tuple[Path, ...] = ()
    users: int = 5000
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, users=2, data_seed=0)


def run(flags: Flags) -> dict[str, Any]:
    """Choose, print, write the record."""
    dataset = read_dataset(flags.data, seed=flags.data_seed)
    queries, n = dataset.split.validation, len(dataset.item_ids)
    if flags.users < len(queries.targets):
        rows = np.random.default_rng(1).permutation(len(queries.targets))[: flags.users]
        queries = queries.select(np.sort(rows))
    sweep = _Sweep(queries, n)
    scorers, choices = choose_baselines(dataset, sweep)
    scorers |= {
        name: mean_scorer(found)
        for name, found in load_scorers(flags.runs, dataset, may_know=False).of_training.items()
    }
    weights, reached = choose_weights(scorers, queries, num_items=n)
    choices = dataclasses.replace(choices, blend=weights)
    headline = {
        "n": len(queries.targets),
        "ndcg_at_10": reached,
        "choices": as_json(choices),
    }
    path = flags.record or RECORDS / f"semantic_ids_choices_{Path(flags.data).name}.json"
    command = command_line(
        "experiments.semantic_ids choose",
        dataclasses.replace(flags, data=said(flags.data)),
        always=("data",),
    )
    write_record(path, make_record(command, **headline, sweep=sweep.rows))
    return headline


class _Sweep:
    """NDCG at 10 of everything that was tried."""

    def __init__(self, queries: Queries, num_items: int):
        self.queries, self.num_items = queries, num_items
        self.rows: list[dict[str, Any]] = []

    def best_decay(self, name: str, fitted: ItemToItem, **values: float) -> tuple[float, float]:
        """The best decay of a fitted model and what it reaches."""
        decays = DECAYS if self.queries.histories.ordered else (1.0,)
        reached = {
            decay: self.measure(name, fitted.with_decay(decay).score, decay=decay, **values)
            for decay in decays
        }
        best = max(decays, key=lambda decay: reached[decay])
        return best, reached[best]

    def measure(self, name: str, score: Scorer, **values: float) -> float:
        """NDCG at 10, remembered."""
        ranks = target_ranks(score, self.queries, num_items=self.num_items)
        reached = float(ndcg_at_k(ranks, 10).mean())
        self.rows.append({"name": name, **values, "ndcg_at_10": reached})
        Console(stderr=True).print(self.rows[-1])
        return reached


class _Candidate(NamedTuple):
    """A fitted baseline, what it reaches, and the choices that it stands for."""

    reached: float
    score: Scorer
    values: Mapping[str, float]


def choose_baselines(dataset: Dataset, sweep: _Sweep) -> tuple[dict[str, Scorer], Choices]:
    """The best of every kind, EASE first, and their hyperparameters."""
    histories, n = dataset.split.train, len(dataset.item_ids)
    best = {
        "ease": max(_eases(histories, n, sweep), key=_reached),
        "item_knn": _item_knn(histories, n, sweep),
    }
    if histories.ordered:
        best["transitions"] = max(_transitions(histories, n, sweep), key=_reached)
    scorers = {name: candidate.score for name, candidate in best.items()}
    scorers["popularity"] = fit_popularity(histories, num_items=n).score
    choices = Choices()
    for candidate in best.values():
        choices = dataclasses.replace(choices, **candidate.values)
    return scorers, choices


def _reached(candidate: _Candidate) -> float:
    return candidate.reached


def _eases(histories: Histories, n: int, sweep: _Sweep) -> Iterator[_Candidate]:
    for penalty in EASE_PENALTIES:
        ease = fit_ease(histories, num_items=n, penalty=penalty)
        decay, reached = sweep.best_decay("ease", ease, penalty=penalty)
        values = {"ease_penalty": penalty, "ease_decay": decay}
        yield _Candidate(reached, ease.with_decay(decay).score, values)


def _item_knn(histories: Histories, n: int, sweep: _Sweep) -> _Candidate:
    knn = fit_item_knn(histories, num_items=n)
    decay, reached = sweep.best_decay("item_knn", knn)
    return _Candidate(reached, knn.with_decay(decay).score, {"knn_decay": decay})


def _transitions(histories: Histories, n: int, sweep: _Sweep) -> Iterator[_Candidate]:
    for penalty, learning in itertools.product(TRANSITION_PENALTIES, LEARNING_DECAYS):
        fitted = fit_transitions(histories, num_items=n, penalty=penalty, decay=learning)
        tried = {"penalty": penalty, "learning_decay": learning}
        decay, reached = sweep.best_decay("transitions", fitted, **tried)
        values = {
            "transitions_penalty": penalty,
            "transitions_learning_decay": learning,
            "transitions_decay": decay,
        }
        yield _Candidate(reached, fitted.with_decay(decay).score, values)
