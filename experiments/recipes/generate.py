"""Complete a pantry into recipes with grams.

python -m experiments.recipes generate --pantry tomato basil --diet vegetarian
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table

from experiments.recipes.drawing import DEFAULT_PASSES, GENERATORS, draw_sets, make_constraint
from experiments.recipes.evaluate import load_checkpoint
from experiments.recipes.scoring import AMOUNT_MODELS, amount_functions
from recipe_jax.data.food_names import read_food_names
from recipe_jax.decoding import Sampling
from recipe_jax.diets import DIETS, check, cleared
from recipe_jax.huggingface import LoadedModel

PRETRAINED = Path(__file__).parents[2] / "recipe_jax" / "assets" / "pretrained"
INTERVAL = 0.8
NUM_SAMPLES = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What the recipes must hold and how they are drawn.

    Attributes:
        pantry: foods that every recipe must hold.
        without: foods that none may hold.
        diet: rules that every other food must be cleared by; unknown is not cleared.
        num: recipes to propose.
        temperature: 0 takes the most probable food each time.
        top_k: choose among the k most probable foods.
        top_p: choose among the fewest foods that hold this probability.
        beams: search for the most probable sets instead of drawing, so many at a time.
        passes: of a masked-set generator; it draws all foods at once, then revises them.
        min_foods: fewest foods of a recipe.
        max_foods: most foods of a recipe.
        total_grams: weight of a recipe, which the proportions share out.
        generator: a run folder or model folder; the pretrained model if not given.
        amounts: likewise, for the grams; if not given, a joint generator draws them with the foods.
        seed: of every draw.
    """

    pantry: tuple[str, ...]
    without: tuple[str, ...] = ()
    diet: tuple[str, ...] = ()
    num: int = 3
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    beams: int | None = None
    passes: int = DEFAULT_PASSES
    min_foods: int = 5
    max_foods: int = 14
    total_grams: float = 1000.0
    generator: Path = PRETRAINED / "generator"
    amounts: Path | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """A proposed recipe.

    Attributes:
        foods: the pantry first, then what the generator chose, in its order.
        grams: of each food.
        low: lower end of the 80 % interval of the grams.
        high: its upper end.
        log_probability: of the choices, in nats; None where they were made in no order.
    """

    foods: tuple[str, ...]
    grams: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log_probability: float | None


def run(flags: Flags) -> dict[str, Any]:
    """Propose recipes and say what was checked."""
    generator = load_checkpoint(flags.generator, kinds=GENERATORS)
    if flags.amounts is None and generator.model_type in AMOUNT_MODELS:
        amounts = generator
    else:
        amounts = load_checkpoint(flags.amounts or PRETRAINED / "amounts", kinds=AMOUNT_MODELS)
    proposals = propose(generator, amounts, flags)
    console = Console(stderr=True)
    for number, proposal in enumerate(proposals, 1):
        console.print(_table(f"recipe {number} of {len(proposals)}", proposal, flags))
    for diet in flags.diet:
        for proposal in proposals:
            findings = check(proposal.foods, diet)
            uncleared = [f"{f.food} ({f.status})" for f in findings if f.status != "free"]
            checked = f"{len(findings)} foods checked by rule for {diet}"
            print(f"{checked}: {', '.join(uncleared) or 'all cleared'}", file=sys.stderr)
    return {
        "num": len(proposals),
        "recipes": [
            {
                "grams": dict(zip(p.foods, np.round(p.grams, 1).tolist(), strict=True)),
                "log_probability": p.log_probability and round(p.log_probability, 3),
            }
            for p in proposals
        ],
    }


def propose(generator: LoadedModel, amounts: LoadedModel, flags: Flags) -> list[Proposal]:
    """Draw foods, then their grams.

    Args:
        generator: of the foods.
        amounts: of the grams.  Where it is the generator itself the grams are those that it drew
            with the foods, and the interval is that of other draws for the same foods.
        flags: what the recipes must hold and how they are drawn.

    Raises:
        ValueError: an unknown food or diet, a pantry that breaks a rule or is too long, limits
            that contradict each other, or models of different foods.
    """
    if amounts.foods != generator.foods:
        raise ValueError("--amounts: the model weighs other foods than the generator's")
    allowed, pantry = check_request(generator, flags)
    longest = min(flags.max_foods, generator.cfg.max_foods)
    drawn = draw_sets(
        generator,
        pantry,
        flags.num,
        constraint=make_constraint(allowed, min_foods=flags.min_foods, max_foods=longest),
        seed=flags.seed,
        sampling=Sampling(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p),
        num_passes=flags.passes,
        num_beams=flags.beams,
    )
    predict, sample = amount_functions(amounts, num_samples=NUM_SAMPLES, seed=flags.seed)
    foods, lengths = drawn.foods.astype(np.int32), drawn.lengths.astype(np.int32)
    if drawn.grams is not None and amounts is generator:
        grams = drawn.grams / drawn.grams.sum(axis=1, keepdims=True) * flags.total_grams
    else:
        grams = predict(foods, lengths) * flags.total_grams
    tails = [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]
    low, high = np.quantile(sample(foods, lengths), tails, axis=0) * flags.total_grams
    logs = drawn.log_probability
    return [
        Proposal(
            foods=tuple(generator.foods[food] for food in foods[i, :n]),
            grams=tuple(grams[i, :n].tolist()),
            low=tuple(low[i, :n].tolist()),
            high=tuple(high[i, :n].tolist()),
            log_probability=None if logs is None else float(logs[i]),
        )
        for i, n in enumerate(lengths)
    ]


def check_request(generator: LoadedModel, flags: Flags) -> tuple[Bool[np.ndarray, "v"], list[int]]:
    """Which foods may be chosen, and the indices of the pantry.

    Raises:
        ValueError: as `propose`.
    """
    pantry = food_indices("--pantry", flags.pantry, generator.foods)
    without = food_indices("--without", flags.without, generator.foods)
    longest = min(flags.max_foods, generator.cfg.max_foods)
    if len(pantry) > longest:
        raise ValueError(f"--pantry names {len(pantry)} foods, a recipe may hold {longest}")
    if not 1 <= flags.min_foods <= longest:
        raise ValueError(f"--min-foods {flags.min_foods} must be from 1 to {longest}")
    if flags.num < 1:
        raise ValueError(f"--num {flags.num} must be at least 1")
    if not 0 < flags.total_grams < float("inf"):
        raise ValueError(f"--total-grams {flags.total_grams} must be positive and finite")
    both = sorted(set(flags.pantry) & set(flags.without))
    if both:
        raise ValueError(f"--without {both[0]!r} is also in --pantry")
    allowed = np.ones(len(generator.foods), bool)
    allowed[without] = False
    for diet in flags.diet:
        if diet not in DIETS:
            raise ValueError(f"--diet {diet!r} must be one of {', '.join(DIETS)}")
        for finding in check(flags.pantry, diet):
            if finding.status != "free":
                raise ValueError(
                    f"--pantry {finding.food!r} is not cleared for {diet}: {finding.status}"
                )
        allowed &= cleared(generator.foods, diet)
    return allowed, pantry


def food_indices(flag: str, names: Sequence[str], foods: Sequence[str]) -> list[int]:
    """Each name's place in the vocabulary.

    Raises:
        ValueError: a name that is no food, with the nearest names, or one given twice.
    """
    index = {food: i for i, food in enumerate(foods)}
    for place, name in enumerate(names):
        if name not in index:
            near = ", ".join(read_food_names(foods).suggest(name))
            raise ValueError(f"{flag} {name!r} is no food of the vocabulary; the nearest: {near}")
        if name in names[:place]:
            raise ValueError(f"{flag} names {name!r} twice; a recipe is a set")
    return [index[name] for name in names]


def _table(title: str, proposal: Proposal, flags: Flags) -> Table:
    table = Table("food", "grams", f"{INTERVAL:.0%} interval", "", title=title)
    for food, grams, low, high in zip(
        proposal.foods, proposal.grams, proposal.low, proposal.high, strict=True
    ):
        bar = "█" * round(30 * grams / flags.total_grams)
        given = " (given)" if food in flags.pantry else ""
        table.add_row(food + given, f"{grams:.1f}", f"{low:.1f} to {high:.1f}", bar)
    return table
