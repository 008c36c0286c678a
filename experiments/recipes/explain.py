"""What drove a choice; what could replace a food; what a food's molecules go with.

python -m experiments.recipes explain --foods flour sugar butter --choice egg --substitute butter
python -m experiments.recipes explain --pairings tomato
python -m experiments.recipes explain --checkpoint RUN --data DIR --measure 500 --record FILE
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.recipes.completeness import measure_completeness
from experiments.recipes.evaluate import load_checkpoint, print_table
from experiments.recipes.generate import PRETRAINED, food_indices
from experiments.recipes.prepared import Prepared, read_prepared
from experiments.recipes.scoring import MIXTURES, amount_functions
from experiments.record import command_line, make_record, write_record
from recipe_jax.data.composition import FoodFeatures, read_food_features
from recipe_jax.explain import (
    ChoiceAttribution,
    Pairings,
    ReplacementEffects,
    Substitutes,
    attention_maps,
    attribute_choice,
    pairings,
    replacement_effects,
    substitutes,
)
from recipe_jax.huggingface import LoadedModel
from recipe_jax.set_probabilities import next_food_probabilities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to explain.

    Attributes:
        foods: the foods that are there already.
        choice: the next food to explain; the most probable one if not given.
        substitute: one of the foods, to be replaced.
        pairings: a food whose molecules are asked what they go with.
        top: rows of every table.
        checkpoint: a run folder or model folder; the pretrained generator if not given.
        amounts: likewise, for the shift of amounts when a food is replaced.
        data: the prepared folder that the model learned from; the package's foods if not given.
        num_orders: reading orders to average over.
        measure: instead, the completeness error of this many random test choices.
        seed: of the test choices.
        record: write what was measured to this file.
    """

    foods: tuple[str, ...] = ()
    choice: str | None = None
    substitute: str | None = None
    pairings: str | None = None
    top: int = 8
    checkpoint: Path = PRETRAINED / "generator"
    amounts: Path = PRETRAINED / "amounts"
    data: Path | None = None
    num_orders: int = 8
    measure: int | None = None
    seed: int = 0
    record: Path | None = None


def run(flags: Flags) -> dict[str, Any]:
    """Explain, or measure how exactly explanations add up.

    Raises:
        ValueError: flags that contradict each other, an unknown food, or a model that does not fit.
    """
    _check(flags)
    if flags.measure is not None:
        return _measure(flags)
    model = load_generator(flags.checkpoint)
    features = features_of(model, flags.data)
    headline: dict[str, Any] = {}
    if flags.foods:
        headline |= _explain_choice(flags, model, features)
    if flags.substitute is not None:
        headline |= _explain_substitutes(flags, model, features)
    if flags.pairings is not None:
        headline |= _explain_pairings(flags, model, features)
    return headline


def _check(flags: Flags) -> None:
    for name, value in (("--top", flags.top), ("--num-orders", flags.num_orders)):
        if value < 1:
            raise ValueError(f"{name} {value} must be at least 1")
    if flags.measure is not None and flags.measure < 1:
        raise ValueError(f"--measure {flags.measure} must be at least 1")
    if flags.measure is None and not (flags.foods or flags.pairings):
        raise ValueError("nothing to explain: give --foods, --pairings or --measure")
    if flags.measure is None and flags.record is not None:
        raise ValueError("--record is for --measure: a single explanation is no measurement")
    if flags.substitute is not None and flags.substitute not in flags.foods:
        raise ValueError(f"--substitute {flags.substitute!r} must be one of --foods")


def load_generator(path: Path, prepared: Prepared | None = None) -> LoadedModel:
    """The generator of a run folder or model folder.

    Raises:
        ModelFolderError: no model, or a broken one.
        ValueError: a model of amounts, or of other foods.
    """
    model = load_checkpoint(path, prepared)
    if model.model_type != "ingredient_generator":
        raise ValueError(f"{path}: model_type={model.model_type!r} must be 'ingredient_generator'")
    return model


def features_of(model: LoadedModel, data: Path | None = None) -> FoodFeatures:
    """The molecules of the model's foods, with their names.

    Raises:
        DataError: a missing file, or one about other foods.
        ValueError: other molecules than the model was trained with.
    """
    path = None if data is None else data / "composition.npz"
    features = read_food_features(path, foods=model.foods)
    for mine, theirs in (
        (features.components, model.molecules.composition),
        (features.flavour, model.molecules.flavour),
    ):
        if not np.array_equal(mine, np.asarray(theirs)):
            raise ValueError(
                f"{path or 'the package'}: not the molecules that the model learned from; "
                "name its prepared folder with --data"
            )
    return features


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceExplanation:
    """What drove one choice, in nats of its log-odds, largest first.

    Attributes:
        choice: the food that was chosen.
        probability: of it as the next food if another follows.
        log_odds: of it against all other foods that are not given.
        average_log_odds: the same if as many average foods were given.
        ingredients: each given food; they sum to `log_odds - average_log_odds`.
        compounds: food, compound or component, attribution; "no" a compound that the food lacks,
            "low" a component of which it has less than the average food.
        own_compounds: the same of the choice itself, against an average food in its place.
        sources: what the ingredients' sum is due to: components, flavour compounds, and what
            recipes taught about these foods beyond their molecules.
        completeness_error: the larger of the two integrals' errors.
    """

    choice: str
    probability: float
    log_odds: float
    average_log_odds: float
    ingredients: tuple[tuple[str, float], ...]
    compounds: tuple[tuple[str, str, float], ...]
    own_compounds: tuple[tuple[str, str, float], ...]
    sources: tuple[tuple[str, float], ...]
    completeness_error: float


def explain_choice(
    model: LoadedModel,
    features: FoodFeatures,
    foods: Sequence[str],
    choice: str | None = None,
    *,
    top: int = 8,
    num_orders: int = 8,
) -> ChoiceExplanation:
    """Rank the ingredients and the compounds that drove a choice.

    Args:
        model: a generator.
        features: see `features_of`.
        foods: given.
        choice: the next food; the most probable one if None.
        top: how many compounds to name.
        num_orders: reading orders to average over.

    Raises:
        ValueError: an unknown food, one given twice, or more foods than the model reads.
    """
    given = _padded(_given(model, foods), len(model.foods))
    chances = next_food_probabilities(*_pure(model), given[None], num_orders=num_orders)[0]
    chosen = int(chances.argmax())
    if choice is not None:
        chosen = food_indices("--choice", [choice], model.foods)[0]
        if chosen in given:
            raise ValueError(f"--choice {choice!r} is already one of the foods")
    read, own = (
        _without_padding(
            attribute_choice(*_pure(model), given, chosen, moves=moves, num_orders=num_orders),
            np.append(given < len(model.foods), True),
        )
        for moves in ("foods", "choice")
    )
    names = [*foods, model.foods[chosen]]
    rows = np.append(given[: len(foods)], chosen)
    order = np.argsort(-np.abs(read.vectors[:-1]), kind="stable")
    components = float(read.composition.sum() + read.observed.sum())
    flavour = float(read.flavour.sum() + read.no_flavour.sum())
    return ChoiceExplanation(
        choice=names[-1],
        probability=float(chances[chosen]),
        log_odds=float(read.log_odds),
        average_log_odds=float(read.baseline_log_odds),
        ingredients=tuple((names[i], float(read.vectors[i])) for i in order),
        compounds=_named_compounds(read, features, rows, names, top),
        own_compounds=_named_compounds(own, features, rows, names, top),
        sources=(
            ("components", components),
            ("flavour compounds", flavour),
            ("learned from recipes", float(read.learned.sum())),
        ),
        completeness_error=max(float(read.error), float(own.error)),
    )


def _named_compounds(
    found: ChoiceAttribution,
    features: FoodFeatures,
    rows: np.ndarray,
    names: Sequence[str],
    top: int,
) -> tuple[tuple[str, str, float], ...]:
    values = np.concatenate([found.composition, found.flavour], axis=1)
    places = np.argsort(-np.abs(values), axis=None, kind="stable")[:top]
    found_at = [divmod(int(place), values.shape[1]) for place in places]
    return tuple(
        (names[row], _compound_name(features, int(rows[row]), column), float(values[row, column]))
        for row, column in found_at
        if values[row, column] != 0
    )


def _compound_name(features: FoodFeatures, food: int, column: int) -> str:
    compound = column - len(features.component_names)
    if compound >= 0:
        lacks = "" if features.flavour[food, compound] else "no "
        return lacks + features.compound_names[compound]
    low = "low " if features.components[food, column] < 0 else ""
    return low + features.component_names[column]


def _explain_choice(flags: Flags, model: LoadedModel, features: FoodFeatures) -> dict[str, Any]:
    found = explain_choice(
        model, features, flags.foods, flags.choice, top=flags.top, num_orders=flags.num_orders
    )
    maps = attention_maps(*_pure(model), _given(model, flags.foods), num_orders=flags.num_orders)
    read = dict(zip(flags.foods, np.asarray(maps.read.mean(axis=(0, 1)))[1:], strict=True))
    title = f"{found.choice}, {found.probability:.1%}: log-odds {found.log_odds:+.2f} nats, "
    _print(
        f"{title}{found.average_log_odds:+.2f} after average foods",
        ("ingredient", "nats", "attention"),
        [(food, f"{nats:+.3f}", f"{read[food]:.3f}") for food, nats in found.ingredients],
    )
    _print("of which", ("source", "nats"), [(name, f"{x:+.3f}") for name, x in found.sources])
    for title, rows in (
        ("compounds of the ingredients", found.compounds),
        (f"compounds of {found.choice} itself", found.own_compounds),
    ):
        _print(title, ("food", "compound", "nats"), [(f, c, f"{x:+.3f}") for f, c, x in rows])
    entropy = np.asarray(maps.entropy[:, :, :, -1].mean(axis=(1, 2)))
    return {**dataclasses.asdict(found), "attention_entropy_nats": entropy.round(4).tolist()}


def _explain_substitutes(
    flags: Flags, model: LoadedModel, features: FoodFeatures
) -> dict[str, Any]:
    given = _given(model, flags.foods)
    replaced = food_indices("--substitute", [flags.substitute or ""], model.foods)[0]
    found = substitutes(*_pure(model), given, replaced, num_orders=flags.num_orders)
    best = np.argsort(-found.score, kind="stable")[: flags.top]
    proportions = None
    if (flags.amounts / "config.json").is_file():
        amounts = load_checkpoint(flags.amounts, kinds=MIXTURES)
        if amounts.foods != model.foods:
            raise ValueError(f"{flags.amounts}: the model weighs other foods than the generator's")
        proportions, _ = amount_functions(amounts, num_samples=1, seed=0)
    effects = replacement_effects(
        *_pure(model),
        given,
        replaced,
        best,
        proportions=proportions,
        num_orders=flags.num_orders,
    )
    rows = [_substitute(model, found, effects, i, int(food)) for i, food in enumerate(best)]
    columns = ("food", "probability", "cosine", "shared compounds", "what changes")
    _print(
        f"instead of {flags.substitute} ({found.probability[replaced]:.1%})",
        columns,
        [
            (
                row["food"],
                f"{row['probability']:.2%}",
                f"{row['cosine']:+.2f}",
                str(row["shared_compounds"]) if features.has_flavour[food] else "unknown",
                row["changes"],
            )
            for row, food in zip(rows, best, strict=True)
        ],
    )
    return {"replaced": flags.substitute, "substitutes": rows}


def _substitute(
    model: LoadedModel,
    found: Substitutes,
    effects: ReplacementEffects,
    i: int,
    food: int,
) -> dict[str, Any]:
    before, after = effects.next_before, effects.next_after[i].copy()
    # The foods that were exchanged left or joined the given ones: their proposals say nothing.
    moved = np.where((before > 0) & (after > 0), after - before, 0.0)
    up, down = int(moved.argmax()), int(moved.argmin())
    changes = (
        f"{model.foods[up]} {moved[up]:+.1%}, {model.foods[down]} {moved[down]:+.1%} as the next"
    )
    if effects.proportions_before is not None and effects.proportions_after is not None:
        place = int(np.flatnonzero(effects.foods[i] == food)[0])
        share = effects.proportions_after[i, place]
        changes += f"; {share:.1%} of the weight, was {effects.proportions_before[place]:.1%}"
    return {
        "food": model.foods[food],
        "probability": float(found.probability[food]),
        "cosine": float(found.similarity.cosine[food]),
        "shared_compounds": int(found.similarity.shared_compounds[food]),
        "changes": changes,
    }


def _explain_pairings(flags: Flags, model: LoadedModel, features: FoodFeatures) -> dict[str, Any]:
    food = food_indices("--pairings", [flags.pairings or ""], model.foods)[0]
    found = pairings(*_pure(model), food)
    rows = [
        _pairing(model, features, found, food, int(other))
        for other in np.argsort(-found.lift, kind="stable")[: flags.top]
    ]
    _print(
        f"what the molecules of {flags.pairings} favour",
        ("food", "nats", "cosine", "shared compounds"),
        [
            (
                row["food"],
                f"{row['lift']:+.2f}",
                f"{row['cosine']:+.2f}",
                f"{row['shared_compounds']}: {', '.join(row['rarest_shared']) or '-'}",
            )
            for row in rows
        ],
    )
    return {"paired": flags.pairings, "pairings": rows}


def _pairing(
    model: LoadedModel, features: FoodFeatures, found: Pairings, food: int, other: int
) -> dict[str, Any]:
    shared = np.flatnonzero(features.flavour[food] * features.flavour[other])
    rarity = features.flavour.sum(axis=0)[shared]
    rarest = shared[np.argsort(rarity, kind="stable")[:3]]
    return {
        "food": model.foods[other],
        "lift": float(found.lift[other]),
        "cosine": float(found.similarity.cosine[other]),
        "shared_compounds": len(shared),
        "rarest_shared": [features.compound_names[compound] for compound in rarest],
    }


def _measure(flags: Flags) -> dict[str, Any]:
    prepared = read_prepared(flags.data)
    model = load_generator(flags.checkpoint, prepared)
    results = measure_completeness(
        model, prepared, flags.measure or 0, num_orders=flags.num_orders, seed=flags.seed
    )
    print_table(f"completeness error, test choices of {prepared.source}", results)
    if flags.record is not None:
        command = command_line("experiments.recipes explain", flags, always=("num_orders", "seed"))
        source = "DIR" if flags.data else prepared.source
        write_record(flags.record, make_record(command, data=source, results=results))
    worst = max(results.values(), key=lambda result: result["completeness_error_p99"])
    return {**worst, **results}


def _given(model: LoadedModel, foods: Sequence[str]) -> np.ndarray:
    if len(foods) >= model.cfg.max_foods:
        raise ValueError(
            f"--foods names {len(foods)} foods, a recipe of {model.cfg.max_foods} at most "
            "leaves no choice to explain"
        )
    return np.array(food_indices("--foods", foods, model.foods), np.int32)


def _padded(given: np.ndarray, num_foods: int) -> np.ndarray:
    """Foods and padding up to a multiple of 8: a few sizes to compile for, not one a length."""
    return np.pad(given, (0, -len(given) % 8), constant_values=num_foods)


def _without_padding(found: ChoiceAttribution, kept: np.ndarray) -> ChoiceAttribution:
    """The rows of foods and of the choice."""
    rows = ("vectors", "composition", "observed", "flavour", "no_flavour", "learned")
    return found._replace(**{name: getattr(found, name)[kept] for name in rows})


def _pure(model: LoadedModel) -> tuple[Any, Any, Any]:
    return model.fn, model.params, model.molecules


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
