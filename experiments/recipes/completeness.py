"""How exactly attributions add up to what they explain, over random test choices."""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import track

from experiments.recipes.completion import completion_queries, completion_recipes
from experiments.recipes.prepared import Prepared
from recipe_jax.data.batching import BUCKETS
from recipe_jax.explain import attribute_choice
from recipe_jax.huggingface import LoadedModel


def measure_completeness(
    model: LoadedModel, prepared: Prepared, count: int, *, num_orders: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Completeness errors of hidden foods of test recipes, for paths of the foods and the choice.

    Args:
        model: a generator.
        prepared: where the test recipes are.
        count: choices to draw; all of them where there are fewer.
        num_orders: reading orders to average over.
        seed: of the draw and of the hidden foods.
    """
    recipes = completion_recipes(prepared.sets, "test")
    queries = completion_queries(recipes, num_foods=len(prepared.foods), seed=seed)
    drawn = np.random.default_rng(seed).permutation(len(queries))[:count]
    given, lengths = queries.padded()
    found: dict[Literal["foods", "choice"], list[Any]] = {"foods": [], "choice": []}
    for i in track(drawn, "choices", console=Console(stderr=True)):
        size = next(size for size in BUCKETS if size >= lengths[i])
        foods = np.full(size, len(prepared.foods), np.int32)
        foods[: lengths[i]] = given[i, : lengths[i]]
        for moves, rows in found.items():
            one = attribute_choice(
                model.fn,
                model.params,
                model.molecules,
                foods,
                int(queries.hidden[i]),
                moves=moves,
                num_orders=num_orders,
            )
            change = abs(float(one.log_odds) - float(one.baseline_log_odds))
            rows.append((float(one.error), int(one.num_steps), change))
    return {moves: _summary(np.array(rows, np.float64)) for moves, rows in found.items()}


def _summary(rows: Float[np.ndarray, "n 3"]) -> dict[str, Any]:
    errors, steps, changes = rows.T
    return {
        "n": len(rows),
        "completeness_error_median": float(np.median(errors)),
        "completeness_error_p99": float(np.quantile(errors, 0.99)),
        "completeness_error_max": float(errors.max()),
        "steps_mean": float(steps.mean()),
        "steps_max": int(steps.max()),
        "change_nats_median": float(np.median(changes)),
        "change_nats_min": float(changes.min()),
    }
