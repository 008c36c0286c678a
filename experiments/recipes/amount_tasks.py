"""The models that weigh given foods, as tasks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.amounts_protocol import amount_recipes
from experiments.recipes.calibration import calibrate_scales
from experiments.recipes.tasks import MAX_FOODS, Setting, Task, weighed_batches
from recipe_jax.batches import RecipeBatch
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.functional import PureModule
from recipe_jax.models.amounts import AmountsConfig, amounts_loss, drop_members
from recipe_jax.models.autoregressive_amounts import AutoregressiveAmountsConfig, next_amount_loss


def amounts_task(setting: Setting) -> Task:
    """All amounts at once: a mixture, or for `mean-amounts` one component of one scale."""
    plain = setting.flags.model == "mean-amounts"
    cfg = AmountsConfig(
        embedding=setting.embedding,
        transformer=setting.transformer,
        num_components=1 if plain else setting.flags.num_components,
        shared_scale=plain,
        max_foods=MAX_FOODS,
    )

    def loss(model: Any, batch: RecipeBatch, key: jax.Array | None) -> tuple[jax.Array, Any]:
        batch, key = _with_members_dropped(setting, batch, key)
        mixture = model(setting.molecules, batch.foods, batch.lengths, key=key)
        terms = amounts_loss(mixture, batch, mean_weight=cfg.mean_weight)
        count = jnp.maximum(terms.weighed.sum(), 1.0)
        named = {"nats": terms.nats.sum() / count, "log_ratio_error": terms.error.sum() / count}
        return terms.total.sum() / count, named

    def finish(fn: PureModule[Any], params: Any) -> Any:
        held_out = weighed_batches(setting, "validation")
        return calibrate_scales(fn, params, setting.molecules, held_out, seed=setting.flags.seed)

    training = _training_recipes(setting)
    task = _task(setting, "amounts", cfg, training, loss, "log_ratio_error")
    return dataclasses.replace(task, finish=finish)


def autoregressive_task(setting: Setting) -> Task:
    """One amount after the other; every amount counts the same, whatever its recipe's size."""
    cfg = AutoregressiveAmountsConfig(
        embedding=setting.embedding, transformer=setting.transformer, max_foods=MAX_FOODS
    )
    training = _training_recipes(setting)
    mean_members = float(training.sizes.mean())

    def loss(model: Any, batch: RecipeBatch, key: jax.Array | None) -> tuple[jax.Array, Any]:
        batch, key = _with_members_dropped(setting, batch, key)
        logits = model(setting.molecules, batch.foods, batch.lengths, batch.grams, key=key)
        terms = next_amount_loss(logits, batch, bins=cfg.bins)
        per_amount = terms.nats.sum() / jnp.maximum(terms.members.sum(), 1.0)
        return terms.nats.mean() / mean_members, {"nats_per_amount": per_amount}

    return _task(setting, "autoregressive_amounts", cfg, training, loss, "nats_per_amount")


def _training_recipes(setting: Setting) -> RecipeSets:
    recipes = amount_recipes(setting.prepared.sets, "train")
    return setting.limited(recipes.select(recipes.sizes <= MAX_FOODS))


def _with_members_dropped(
    setting: Setting, batch: RecipeBatch, key: jax.Array | None
) -> tuple[RecipeBatch, jax.Array | None]:
    rate = setting.flags.member_dropout
    if key is None or rate == 0:
        return batch, key
    key, here = jax.random.split(key)
    return drop_members(batch, rate, here, num_foods=setting.num_foods), key


def _task(
    setting: Setting, model_type: str, cfg: Any, training: RecipeSets, loss: Any, metric: str
) -> Task:
    """A task on the recipes of the amounts protocol, validated by the loss's own terms."""
    batches = weighed_batches(setting, "validation")

    @functools.partial(jax.jit, static_argnums=0)
    def held_out_terms(fn: PureModule[Any], params: Any, batch: RecipeBatch) -> Any:
        return loss(fn.bind(params), batch, None)[1]

    def validate(fn: PureModule[Any], params: Any) -> dict[str, float]:
        rows = [held_out_terms(fn, params, batch) for batch in batches]
        sizes = [len(batch.foods) for batch in batches]
        means = {k: float(np.average([r[k] for r in rows], weights=sizes)) for k in rows[0]}
        return {**means, "n": sum(sizes)}

    return Task(
        model_type=model_type,
        cfg=cfg,
        training=training,
        molecules=setting.molecules,
        loss=loss,
        validate=validate,
        metric=(metric, False),
    )
