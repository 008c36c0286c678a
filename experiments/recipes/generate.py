"""Complete a pantry into recipes with grams.

python -m experiments.recipes generate --pantry tomato basil --diet vegetarian
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table

from experiments.recipes.evaluate import amount_functions, load_checkpoint
from recipe_jax.data.food_names import read_food_names
from recipe_jax.decoding import Sampling, SetConstraint, sample_sets
from recipe_jax.diets import DIETS, check, cleared
from recipe_jax.huggingface import LoadedModel

PRETRAINED = Path(__file__).parents[2] / "recipe_jax" / "assets" / "pretrained"
INTERVAL = 0.8


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
        min_foods: fewest foods of a recipe.
        max_foods: most foods of a recipe.
        total_grams: weight of a recipe, which the proportions share out.
        generator: a run folder or model folder; the pretrained model if not given.
        amounts: likewise, for the grams.
        seed: of every draw.
    """

    pantry: tuple[str, ...]
    without: tuple[str, ...] = ()
    diet: tuple[str, ...] = ()
    num: int = 3
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    min_foods: int = 5
    max_foods: int = 14
    total_grams: float = 1000.0
    generator: Path = PRETRAINED / "generator"
    amounts: Path = PRETRAINED / "amounts"
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """A proposed recipe.

    Attributes:
        foods: the pantry first, then what the generator chose, in its order.
        grams: of each food.
        low: lower end of the 80 % interval of the grams.
        high: its upper end.
        log_probability: of the choices, in nats.
    """

    foods: tuple[str, ...]
    grams: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log_probability: float


def run(flags: Flags) -> dict[str, Any]:
    """Propose recipes and say what was checked."""
    generator = load_checkpoint(flags.generator, kind="ingredient_generator")
    amounts = load_checkpoint(flags.amounts, kind="amounts")
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
                "log_probability": round(p.log_probability, 3),
            }
            for p in proposals
        ],
    }


def propose(generator: LoadedModel, amounts: LoadedModel, flags: Flags) -> list[Proposal]:
    """Draw foods, then their grams.

    Raises:
        ValueError: an unknown food or diet, a pantry that breaks a rule or is too long, or limits
            that contradict each other.
    """
    allowed, pantry = check_request(generator, flags)
    v, size = len(generator.foods), generator.cfg.max_foods
    prompt = np.full((flags.num, size), v, np.int32)
    prompt[:, : len(pantry)] = pantry
    decoded = sample_sets(
        generator.fn,
        generator.params,
        generator.molecules,
        jnp.asarray(prompt),
        jnp.full(flags.num, len(pantry), jnp.int32),
        jax.random.key(flags.seed),
        constraint=SetConstraint(
            allowed=jnp.asarray(allowed),
            min_foods=jnp.asarray(flags.min_foods, jnp.int32),
            max_foods=jnp.asarray(min(flags.max_foods, size), jnp.int32),
        ),
        sampling=Sampling(temperature=flags.temperature, top_k=flags.top_k, top_p=flags.top_p),
    )
    foods, lengths = np.asarray(decoded.foods), np.asarray(decoded.lengths)
    predict, sample = amount_functions(amounts, num_samples=200, seed=flags.seed)
    grams = predict(foods, lengths) * flags.total_grams
    tails = [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]
    low, high = np.quantile(sample(foods, lengths), tails, axis=0) * flags.total_grams
    return [
        Proposal(
            foods=tuple(generator.foods[food] for food in foods[i, :n]),
            grams=tuple(grams[i, :n].tolist()),
            low=tuple(low[i, :n].tolist()),
            high=tuple(high[i, :n].tolist()),
            log_probability=float(decoded.log_probability[i]),
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
