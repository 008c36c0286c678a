"""The model card of a trained recipe model."""

from typing import Any

from experiments.recipes.prepared import Prepared


def model_card(
    flags: Any, prepared: Prepared, headline: dict[str, Any], *, num_recipes: int
) -> str:
    """What the model is, what it learned from, how it was trained and what it must not be used for.

    Args:
        flags: what defined the run.
        prepared: the data.
        headline: the run's metrics, on the validation split.
        num_recipes: how many the model learned from.
    """
    metrics = "\n".join(
        f"| {name.replace('_', ' ')} | {f'{value:.4g}' if isinstance(value, float) else value} |"
        for name, value in headline.items()
    )
    return f"""# recipe-jax: {flags.model}

A small transformer over {len(prepared.foods)} foods whose vectors have these sources:
{", ".join(flags.sources)}.

- Learned from: {num_recipes} recipes (train split), as foods and grams; no text.
- Trained with: seed {flags.seed}, {headline["step"]} steps of {flags.batch_size} recipes.

| validation | |
|---|---|
{metrics}

Proposals are statistics of what people cook.  Nothing here says that a recipe is safe to eat:
allergens and diets are checked by rule, by food, after generation, and only what was checked holds.
"""
