"""The models that generate ingredient sets, as tasks: what is read, what is predicted, what counts.

Recipes of a batch are alike in size.  Divided by its own choices, a choice in a short recipe would
count more than one in a long recipe, and what is generated come out short; so every loss is divided
by a constant, the mean number of choices in the training recipes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.completion import (
    completion_queries,
    completion_recipes,
    evaluate_completion,
)
from experiments.recipes.scoring import completion_score
from experiments.recipes.tasks import MAX_FOODS, Setting, Task, weighed_batches
from recipe_jax.batches import RecipeBatch
from recipe_jax.data.batching import BUCKETS, pad_recipes
from recipe_jax.functional import PureModule
from recipe_jax.layers.positions import Alibi, Learned, NoPositions, Rope, Sinusoidal
from recipe_jax.models.encoder_decoder_generator import (
    EncoderDecoderConfig,
    encoder_decoder_loss,
    pantry_sizes,
)
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    next_food_loss,
    remaining_set_loss,
)
from recipe_jax.models.joint_recipes import JointRecipesConfig, joint_loss
from recipe_jax.models.masked_set_generator import (
    MaskedSetConfig,
    masked_set_loss,
    visible_counts,
)

POSITIONS = {
    "none": NoPositions(),
    "sinusoidal": Sinusoidal(),
    "learned": Learned(MAX_FOODS + 1),
    "alibi": Alibi(),
    "rope": Rope(),
}
"""Of the start and up to `MAX_FOODS` foods."""


def generator_task(setting: Setting) -> Task:
    """A decoder alone: the next food after every prefix."""
    flags = setting.flags
    cfg = GeneratorConfig(
        embedding=setting.embedding,
        transformer=setting.transformer,
        positions=POSITIONS[flags.positions],
        pairs=flags.pairs and "learned" in flags.sources,
        max_foods=MAX_FOODS,
    )
    criterion = remaining_set_loss if flags.loss == "remaining-set" else next_food_loss

    def terms(model: Any, batch: RecipeBatch, key: jax.Array | None) -> Any:
        return criterion(model(setting.molecules, batch.foods, key=key), batch)

    held_out = _held_out_batches(setting)

    @functools.partial(jax.jit, static_argnums=0)
    def nats(fn: PureModule[Any], params: Any, batch: RecipeBatch) -> tuple[Any, Any]:
        found = terms(fn.bind(params), batch, None)
        return found.total.sum(), found.choices.sum()

    def more(fn: PureModule[Any], params: Any) -> dict[str, float]:
        total, choices = np.sum([nats(fn, params, batch) for batch in held_out], axis=0)
        return {"nats_per_choice": float(total / choices)}

    return _task(
        setting, "ingredient_generator", cfg, terms, ("end",), lambda sizes: sizes + 1, more
    )


def encoder_decoder_task(setting: Setting) -> Task:
    """A pantry is read as a set; what follows it is written."""
    cfg = EncoderDecoderConfig(
        embedding=setting.embedding, transformer=setting.transformer, max_foods=MAX_FOODS
    )

    def terms(model: Any, batch: RecipeBatch, key: jax.Array) -> Any:
        size_key, key = jax.random.split(key)
        given = pantry_sizes(size_key, batch.lengths)
        logits = model(setting.molecules, batch.foods, given, key=key)
        return encoder_decoder_loss(logits, batch, given)

    # The pantry holds (n - 1) / 2 of n foods in the mean.
    return _task(
        setting, "encoder_decoder_generator", cfg, terms, ("end",), lambda sizes: (sizes + 3) / 2
    )


def masked_set_task(setting: Setting) -> Task:
    """All hidden foods at once, and how many there are."""
    cfg = MaskedSetConfig(
        embedding=setting.embedding, transformer=setting.transformer, max_foods=MAX_FOODS
    )

    def terms(model: Any, batch: RecipeBatch, key: jax.Array) -> Any:
        count_key, key = jax.random.split(key)
        given = visible_counts(count_key, batch.lengths)
        visible = jnp.arange(batch.foods.shape[1])[None] < given[:, None]
        hidden = batch.lengths - given
        found = model(setting.molecules, batch.foods, visible, hidden, key=key)
        return masked_set_loss(found, batch, given)

    return _task(setting, "masked_set_generator", cfg, terms, ("size",), lambda sizes: sizes + 1)


def joint_task(setting: Setting) -> Task:
    """Foods and grams in one sequence; validated on foods, with the nats of held-out grams."""
    cfg = JointRecipesConfig(
        embedding=setting.embedding, transformer=setting.transformer, max_foods=MAX_FOODS
    )
    held_out = weighed_batches(setting, "validation")

    def terms(model: Any, batch: RecipeBatch, key: jax.Array | None) -> Any:
        logits = model(setting.molecules, batch.foods, batch.grams, key=key)
        return joint_loss(logits, batch, bins=cfg.bins)

    @functools.partial(jax.jit, static_argnums=0)
    def gram_terms(fn: PureModule[Any], params: Any, batch: RecipeBatch) -> tuple[Any, Any]:
        found = terms(fn.bind(params), batch, None)
        return found.grams.sum(), found.weighed.sum()

    def more(fn: PureModule[Any], params: Any) -> dict[str, float]:
        nats, count = np.sum([gram_terms(fn, params, batch) for batch in held_out], axis=0)
        return {"nats_per_amount": float(nats / max(count, 1.0))}

    parts = ("foods", "grams")
    return _task(setting, "joint_recipes", cfg, terms, parts, lambda sizes: sizes + 1, more)


def _held_out_batches(setting: Setting, *, at_once: int = 256) -> list[RecipeBatch]:
    """The validation recipes of the completion protocol, each in one random order."""
    recipes = completion_recipes(setting.prepared.sets, "validation")
    recipes = recipes.select(recipes.sizes <= MAX_FOODS)
    order, rng = np.argsort(recipes.sizes, kind="stable"), np.random.default_rng(0)
    batches = []
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        size = next(size for size in BUCKETS if size >= recipes.sizes[rows[-1]])
        batches.append(pad_recipes(recipes, rows, num_foods=setting.num_foods, size=size, rng=rng))
    return batches


def _task(
    setting: Setting,
    model_type: str,
    cfg: Any,
    terms_of: Callable[[Any, RecipeBatch, jax.Array], Any],
    parts: tuple[str, ...],
    choices_of: Callable[[Any], Any],
    validate_more: Callable[[PureModule[Any], Any], dict[str, float]] | None = None,
) -> Task:
    """A task on the recipes of the completion protocol.

    Args:
        setting: what all tasks share.
        model_type: key in `huggingface.MODELS`.
        cfg: the model's configuration.
        terms_of: per-recipe loss terms with `total` and `choices`.
        parts: other terms to report.
        choices_of: expected choices of recipes of these sizes.
        validate_more: metrics beside those of completion.
    """
    sets = setting.prepared.sets
    queries = completion_queries(
        completion_recipes(sets, "validation"), num_foods=setting.num_foods
    )
    recipes = sets.select_completion(max_lines=MAX_FOODS).select_split("train")
    training = setting.limited(recipes)
    mean_choices = float(np.mean(choices_of(training.sizes)))

    def loss(model: Any, batch: RecipeBatch, key: jax.Array) -> tuple[jax.Array, Any]:
        terms = terms_of(model, batch, key)
        named = {f"{part}_nats": getattr(terms, part).mean() for part in parts}
        per_choice = terms.total.sum() / terms.choices.sum()
        return terms.total.mean() / mean_choices, {"nats_per_choice": per_choice, **named}

    def validate(fn: PureModule[Any], params: Any) -> dict[str, float]:
        score = completion_score(fn, params, setting.molecules, num_orders=1)
        report = evaluate_completion(score, queries)
        found = {k: report[k] for k in ("recall_at_1", "recall_at_10", "mrr", "n")}
        return found if validate_more is None else {**found, **validate_more(fn, params)}

    return Task(
        model_type=model_type,
        cfg=cfg,
        training=training,
        molecules=setting.molecules,
        loss=loss,
        validate=validate,
        metric=("mrr", True),
    )
