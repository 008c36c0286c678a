"""What was chosen on validation for the baselines and their blend, and the baselines fitted so."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.semantic_ids.baselines import (
    NextIndex,
    fit_ease,
    fit_item_knn,
    fit_popularity,
    fit_transitions,
)
from experiments.semantic_ids.protocol import Scorer
from recipe_jax.data.files import DataError
from recipe_jax.data.interactions import Histories

RECORDS = Path(__file__).resolve().parents[1] / "records"

KNOWN_EASE = {"penalty": 250.0, "decay": 0.8}
"""The setting with which others reached R@5 .0594 on Beauty: a check of the protocol."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """Hyperparameters.

    Attributes:
        knn_decay: recency of item-kNN.
        ease_penalty: of EASE.
        ease_decay: recency of EASE.
        transitions_penalty: of the linear model of transitions.
        transitions_learning_decay: recency in its learning.
        transitions_decay: recency when it is asked.
        blend: weights of standardized scores; `sasrec` is the mean over its seeds.
    """

    knn_decay: float = 1.0
    ease_penalty: float = 250.0
    ease_decay: float = 1.0
    transitions_penalty: float = 50.0
    transitions_learning_decay: float = 0.8
    transitions_decay: float = 0.6
    blend: Mapping[str, float] = dataclasses.field(default_factory=dict)


def read_choices(data: str, path: Path | None = None) -> Choices:
    """Read the record of `choose`.

    Args:
        data: the name of the data, which decides where the record lies if no path is given.
        path: the record.

    Raises:
        DataError: no record there, or one of other keys.
    """
    path = RECORDS / f"semantic_ids_choices_{data}.json" if path is None else path
    try:
        return Choices(**json.loads(path.read_text())["choices"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the command `choose` first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a record of choices ({error})") from error


def fit_baselines(histories: Histories, *, num_items: int, choices: Choices) -> dict[str, Scorer]:
    """Every baseline by name; those that need an order only where there is one."""
    found: dict[str, Scorer] = {
        "popularity": fit_popularity(histories, num_items=num_items).score,
        "item_knn": fit_item_knn(histories, num_items=num_items, decay=choices.knn_decay).score,
    }
    found["ease"] = fit_ease(
        histories,
        num_items=num_items,
        penalty=choices.ease_penalty,
        decay=choices.ease_decay,
    ).score
    if histories.ordered:
        known = fit_ease(histories, num_items=num_items, **KNOWN_EASE)
        found["ease_as_known"] = known.score
        found["next_index"] = NextIndex(num_items=num_items).score
        found["transitions"] = (
            fit_transitions(
                histories,
                num_items=num_items,
                penalty=choices.transitions_penalty,
                decay=choices.transitions_learning_decay,
            )
            .with_decay(choices.transitions_decay)
            .score
        )
    return found


def as_json(choices: Choices) -> dict[str, Any]:
    """Choices as `read_choices` reads them."""
    return dataclasses.asdict(choices)
