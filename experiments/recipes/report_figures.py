"""The figures of a report."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.recipes.report_data import (
    AttentionMap,
    Attribution,
    Explanation,
    MetricTable,
    Recipe,
    Report,
    TrainingRun,
)
from recipe_jax import plots

_MAX_PANELS = 4  # metrics drawn beside one another; the table holds them all


def named_figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """Every figure with the name of its file."""
    recipes = [recipe for pantry in report.pantries for recipe in pantry.recipes]
    for i, recipe in enumerate(recipes, start=1):
        yield f"recipe_{i}_grams", gram_figure(recipe)
        for explanation in recipe.explanations[:1]:
            yield f"recipe_{i}_ingredients", driver_figure(explanation.ingredients, explanation)
            yield f"recipe_{i}_compounds", driver_figure(explanation.compounds, explanation)
    for i, shown in enumerate(report.attention, start=1):
        yield f"attention_{i}", attention_figure(shown)
    for i, shown in enumerate(report.tables, start=1):
        yield f"metrics_{i}", metric_figure(shown)
    for i, run in enumerate(report.training, start=1):
        yield f"training_{i}", training_figure(run)


def gram_figure(recipe: Recipe) -> Figure:
    """The amounts of a recipe."""
    return plots.gram_bars(
        [portion.food for portion in recipe.portions],
        np.array([portion.grams for portion in recipe.portions]),
        low=np.array([portion.low_grams for portion in recipe.portions]),
        high=np.array([portion.high_grams for portion in recipe.portions]),
    )


def driver_figure(parts: Sequence[Attribution], explanation: Explanation) -> Figure:
    """Attributions of one choice."""
    values = np.array([part.value for part in parts], float)
    return plots.attribution_bars([p.name for p in parts], values, unit=explanation.unit)


def attention_figure(shown: AttentionMap) -> Figure:
    """An attention map."""
    return plots.attention_heatmap(
        shown.weights,
        row_labels=shown.row_labels,
        column_labels=shown.column_labels,
        row_name=shown.row_name,
        column_name=shown.column_name,
    )


def training_figure(run: TrainingRun) -> Figure:
    """The curves of a run beside its baselines."""
    return plots.training_curves(
        run.rows,
        metric=run.metric,
        label=run.label,
        baselines=run.baselines,
        loss_label=run.loss_label,
    )


def metric_figure(shown: MetricTable) -> Figure:
    """The first metrics of a table, method beside method."""
    columns = shown.columns[:_MAX_PANELS]
    values = np.full((3, len(shown.rows), len(columns)), np.nan)
    for i, row in enumerate(shown.rows):
        for j, column in enumerate(columns):
            score = row.scores.get(column.key)
            if score is not None:
                ends = (score.mean, score.low, score.high)
                values[:, i, j] = [np.nan if end is None else end for end in ends]
    return plots.metric_bars(
        [row.method for row in shown.rows],
        values[0],
        low=values[1],
        high=values[2],
        labels=[column.label for column in columns],
        ours=[row.method for row in shown.rows if row.ours],
    )
