"""Scores of runs to a table: means over seeds, with 95 % t intervals, in text and in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.recipes.ablation_variants import VARIANTS
from recipe_jax.metrics import student_t_interval

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "foods": {
        "recall_at_10": "recall at 10",
        "mrr": "MRR",
        "auc_logistic": "AUC (.5 is best)",
        "length_wasserstein": "length distance",
    },
    "amounts": {
        "log_ratio_error": "log-ratio error",
        "proportion_error": "share error",
        "crps": "CRPS",
        "coverage": "80 % intervals hold",
    },
    "foods never seen in training": {
        "unseen_median_rank": "median rank",
        "unseen_mrr": "MRR",
        "unseen_recall_at_10": "recall at 10",
    },
}
"""Metrics by what they are about, in the order of the columns."""


class Estimate(NamedTuple):
    """A metric over seeds.

    Attributes:
        mean: over the seeds.
        half: half the width of its 95 % t interval; None for a single seed, which has no spread.
        seeds: how many there are.
    """

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        """Three decimals below 10, else one."""
        digits = 3 if abs(self.mean) < 10 else 1
        spread = "" if self.half is None else f" ± {self.half:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean and its interval.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("an estimate needs at least 1 value")
    if len(values) == 1:
        return Estimate(float(values[0]), None, 1)
    mean, low, high = student_t_interval(np.array(values, np.float64))
    return Estimate(mean, (high - low) / 2, len(values))


def estimates(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """Rows of the table: a variant, or a variant and the way it was used; metrics by name.

    Args:
        runs: what each `scores.json` holds.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for way, scores in run["scores"].items():
            row = values.setdefault(f"{run['variant']} {way}".strip(), {})
            for metric, value in scores.items():
                row.setdefault(metric, []).append(value)
    order = list(VARIANTS)
    rows = sorted(values, key=lambda name: order.index(name.split()[0]))
    return {row: {metric: estimate(found) for metric, found in values[row].items()} for row in rows}


def markdown_table(found: Mapping[str, Mapping[str, Estimate]]) -> str:
    """One Markdown table a section; a section without rows is left out."""
    parts = []
    for section, metrics in SECTIONS.items():
        rows = [name for name in found if any(metric in found[name] for metric in metrics)]
        if not rows:
            continue
        lines = [
            f"| {section} | what | {' | '.join(metrics.values())} | seeds |",
            f"|{'---|' * (len(metrics) + 3)}",
        ]
        for name in rows:
            about = VARIANTS[name.split()[0]].about if name in VARIANTS else "the same models"
            cells = [
                str(found[name][metric]) if metric in found[name] else "" for metric in metrics
            ]
            seeds = max(value.seeds for value in found[name].values())
            lines.append(f"| {name} | {about} | {' | '.join(cells)} | {seeds} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
