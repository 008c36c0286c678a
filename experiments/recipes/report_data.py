"""What a report tells, as plain data: recipes, why they came out so, training, and metrics.

Everything is checked when it is made, so that a page never shows a number that cannot be one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipe_jax.diets import Finding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Portion:
    """One food of a recipe.

    Attributes:
        food: its name.
        grams: the model's amount.
        low_grams: where the 80 % interval of the amount begins.
        high_grams: where it ends.
        probability: of the food when it was chosen; None where the pantry required it.
    """

    food: str
    grams: float
    low_grams: float
    high_grams: float
    probability: float | None = None

    def __post_init__(self) -> None:
        for field in ("grams", "low_grams", "high_grams"):
            _check(f"{field} of {self.food!r}", getattr(self, field), at_least=0.0)
        if self.low_grams > self.high_grams:
            raise ValueError(
                f"low_grams={self.low_grams} of {self.food!r} must be at most "
                f"high_grams={self.high_grams}"
            )
        if self.probability is not None:
            _check(f"probability of {self.food!r}", self.probability, at_least=0.0, at_most=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribution:
    """How much one ingredient or compound spoke for a choice, or against it where negative."""

    name: str
    value: float

    def __post_init__(self) -> None:
        _check(f"value of {self.name!r}", self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """What drove one choice.

    Attributes:
        food: the choice.
        ingredients: attributions to the foods that were there, strongest first.
        compounds: attributions to their compounds, strongest first.
        completeness_error: share by which all attributions together miss what they explain.
        unit: of the attributions.
    """

    food: str
    ingredients: Sequence[Attribution]
    compounds: Sequence[Attribution]
    completeness_error: float
    unit: str = "nats"

    def __post_init__(self) -> None:
        _check(f"completeness_error of {self.food!r}", self.completeness_error, at_least=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Substitute:
    """What could stand in a food's place.

    Attributes:
        food: the one to be replaced.
        replacement: what replaces it.
        nats: by how much the recipe becomes more probable; negative where less.
        change: what else changes, in words.
    """

    food: str
    replacement: str
    nats: float
    change: str = ""

    def __post_init__(self) -> None:
        _check(f"nats of {self.food!r} replaced by {self.replacement!r}", self.nats)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairing:
    """A partner that a food's molecules favour, by so many nats."""

    food: str
    partner: str
    nats: float

    def __post_init__(self) -> None:
        _check(f"nats of {self.food!r} with {self.partner!r}", self.nats)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A completed pantry.

    Attributes:
        portions: its foods.
        findings: what the rule of the pantry's diet found in each food.
        explanations: one for each explained choice.
        substitutes: of foods in it.
        pairings: of foods in it.
    """

    portions: Sequence[Portion]
    findings: Sequence[Finding] = ()
    explanations: Sequence[Explanation] = ()
    substitutes: Sequence[Substitute] = ()
    pairings: Sequence[Pairing] = ()

    def __post_init__(self) -> None:
        if not self.portions or self.total_grams <= 0:
            raise ValueError(f"portions weigh {self.total_grams} g in all, must be above 0 g")
        unchecked = {p.food for p in self.portions} - {f.food for f in self.findings}
        if self.findings and unchecked:
            raise ValueError(f"findings must cover every food, lack {', '.join(sorted(unchecked))}")

    @property
    def total_grams(self) -> float:
        """Grams of all foods."""
        return math.fsum(portion.grams for portion in self.portions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pantry:
    """What was asked for and the recipes that answer it.

    Attributes:
        name: its heading.
        required: foods that every recipe must hold.
        forbidden: foods that none may hold.
        diet: a key of `recipe_jax.diets.DIETS`; None where none was asked for.
        recipes: one or more.
    """

    name: str
    required: Sequence[str]
    recipes: Sequence[Recipe]
    forbidden: Sequence[str] = ()
    diet: str | None = None

    def __post_init__(self) -> None:
        for recipe in self.recipes:
            foods = {portion.food for portion in recipe.portions}
            missing = [food for food in self.required if food not in foods]
            present = [food for food in self.forbidden if food in foods]
            if missing or present:
                raise ValueError(
                    f"recipes of {self.name!r} must hold {missing} and must not hold {present}"
                )
            if self.diet is not None and not recipe.findings:
                raise ValueError(f"recipes of {self.name!r}: diet {self.diet!r} needs findings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The curves of one run.

    Attributes:
        title: what was trained, and for how long.
        rows: of its `metrics.jsonl`.
        metric: key of the validation metric among them.
        label: the metric's name, with unit and direction.
        baselines: the same metric of other methods, by name.
        loss_label: the loss's name, with unit.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    metric: str
    label: str
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    loss_label: str = "training loss (nats)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of one method, with its 95 % interval where there is one."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for field in ("mean", "low", "high"):
            if getattr(self, field) is not None:
                _check(f"score {field}", getattr(self, field))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One line of a table: a method, how many examples it was scored on, and its scores."""

    method: str
    n: int
    scores: Mapping[str, Score]
    ours: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricColumn:
    """A metric: its key among the scores, its heading with unit, and which way is better.

    `higher_is_better` is None where neither is, as for the coverage of an interval.
    """

    key: str
    label: str
    higher_is_better: bool | None
    digits: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricTable:
    """Methods side by side; `note` says on what and how they were scored."""

    title: str
    columns: Sequence[MetricColumn]
    rows: Sequence[MethodRow]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.columns or not self.rows:
            raise ValueError(f"table {self.title!r} must have columns and rows")
        known = {column.key for column in self.columns}
        for row in self.rows:
            unknown = sorted(row.scores.keys() - known)
            if unknown:
                raise ValueError(f"scores of {row.method!r}: {unknown} are no columns of the table")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """Attention weights between the foods of one recipe; rows sum to at most 1."""

    title: str
    weights: np.ndarray
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    row_name: str = "food that attends"
    column_name: str = "food attended to"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page.

    Attributes:
        title: its heading.
        data: which data was used, in a sentence.
        pantries: completed ones.
        training: curves of the runs.
        tables: metrics beside baselines.
        attention: maps.
        limits: what a reader must not conclude, a sentence or two each.
        facts: what made it, by name: recipes, seconds, seed, versions, device.
    """

    title: str
    data: str
    pantries: Sequence[Pantry]
    training: Sequence[TrainingRun] = ()
    tables: Sequence[MetricTable] = ()
    attention: Sequence[AttentionMap] = ()
    limits: Sequence[str] = ()
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _check(
    field: str, value: float, *, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    if not (math.isfinite(value) and at_least <= value <= at_most):
        bounds = "" if at_least == -math.inf else f" and at least {at_least:g}"
        bounds += "" if at_most == math.inf else f" and at most {at_most:g}"
        raise ValueError(f"{field} is {value}, must be finite{bounds}")
