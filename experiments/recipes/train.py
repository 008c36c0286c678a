"""Train a generator of ingredient sets or a model of their amounts.

Receipt: see experiments/README.md for the commands, times and metrics of the committed runs.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.recipes.amounts_protocol import amount_recipes
from experiments.recipes.completion import (
    completion_queries,
    completion_recipes,
    evaluate_completion,
)
from experiments.recipes.model_card import model_card
from experiments.recipes.prepared import Prepared, read_prepared
from experiments.recipes.scoring import completion_score
from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.data.batching import BUCKETS, pad_recipes, recipe_batches
from recipe_jax.data.recipes import RecipeSets
from recipe_jax.functional import PureModule, abstract, num_parameters
from recipe_jax.huggingface import make_module, save_model, to_json
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.amounts import AmountsConfig, amounts_loss, drop_members
from recipe_jax.models.food_embedding import SOURCES, FoodEmbeddingConfig
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    next_food_loss,
    remaining_set_loss,
)
from recipe_jax.sharding import make_mesh
from recipe_jax.training.averaging import averaged_params, track_average
from recipe_jax.training.loop import FitPlan, FitResult, fit
from recipe_jax.training.optimizers import muon_adamw, warmup_cosine
from recipe_jax.training.state import TrainState, init_sharded
from recipe_jax.training.step import Objective, make_train_step

MAX_FOODS = BUCKETS[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines a training run.

    Attributes:
        model: ingredient sets; or amounts, as a mixture or as the plain mean.
        data: a prepared folder; the sample inside the package if not given.
        run: the run folder; the same command on the same folder resumes.
        steps: updates in all.
        minutes: stop after this many minutes of training, earlier attempts included.
        batch_size: recipes per step.
        learning_rate: peak of the schedule.
        weight_decay: times the learning rate.
        dropout: of the transformer's sublayers.
        member_dropout: share of the foods left out of every second recipe, for amounts.
        embed_dim: width.
        num_layers: depth.
        num_heads: attention heads.
        num_components: of the mixture of amounts.
        sources: what food vectors are made of.
        loss: of a generator: on the whole remaining set, or on the next food alone.
        limit: use only the first so many training recipes.
        seed: of everything random.
        mesh: devices, such as data=2,fsdp=4; one device if not given.
        evaluate_every: steps between validations.
        progress: show the progress bar.
    """

    model: Literal["generator", "amounts", "mean-amounts"] = "generator"
    data: Path | None = None
    run: Path = Path("runs/recipes")
    steps: int = 18_000
    minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    member_dropout: float = 0.0
    embed_dim: int = 160
    num_layers: int = 3
    num_heads: int = 5
    num_components: int = 8
    sources: tuple[str, ...] = SOURCES
    loss: Literal["remaining-set", "next-food"] = "remaining-set"
    limit: int | None = None
    seed: int = 0
    mesh: str | None = None
    evaluate_every: int = 1000
    progress: bool = True


def run(flags: Flags, prepared: Prepared | None = None) -> dict[str, Any]:
    """Train, validate, and write the averaged model to `RUN/model`.

    Args:
        flags: what defines the run.
        prepared: the data, where it is read already.
    """
    prepared = read_prepared(flags.data) if prepared is None else prepared
    task = make_task(flags, prepared)
    result, fn = train(flags, task)
    params = averaged_params(result.state.opt_state)
    headline = {
        "model": flags.model,
        "step": result.step,
        "stopped": result.stopped,
        "num_parameters": num_parameters(fn.shapes),
        **task.validate(fn, params),
        **result.timing,
    }
    save_model(
        flags.run / "model",
        cfg=task.cfg,
        params=jax.device_get(params),
        foods=prepared.foods,
        molecules=prepared.molecules,
        card=model_card(flags, prepared, headline),
        precision="float16",
    )
    return headline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What differs between models: configuration, data, loss and validation.

    Attributes:
        model_type: key in `huggingface.MODELS`.
        cfg: the model's configuration.
        training: recipes to learn from.
        molecules: the foods' frozen features.
        loss: `(model, batch, key) -> (loss, terms)`.
        validate: `(fn, params) -> metrics`.
        metric: which of them decides, and whether it should grow.
    """

    model_type: str
    cfg: Any
    training: RecipeSets
    molecules: Molecules
    loss: Any
    validate: Any
    metric: tuple[str, bool]

    def objective(self, fn: PureModule[Any]) -> Objective:
        """The loss as a function of the parameters."""

        def objective(params: Any, batch: RecipeBatch, key: jax.Array) -> tuple[jax.Array, Any]:
            return self.loss(fn.bind(params), batch, key)

        return objective


def train(flags: Flags, task: Task) -> tuple[FitResult, PureModule[Any]]:
    """Fit the task's model in the run folder."""
    mesh = make_mesh(flags.mesh or "data=1", None if flags.mesh else jax.devices()[:1])
    make = functools.partial(make_module, task.model_type, task.cfg, seed=flags.seed)
    schedule = warmup_cosine(
        flags.learning_rate, warmup_steps=min(300, flags.steps // 10 + 1), num_steps=flags.steps
    )
    fn, _ = abstract(make)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        muon_adamw(schedule, fn.axes, weight_decay=flags.weight_decay),
        track_average(0.998),
    )
    key = jax.random.key(flags.seed, impl="rbg")
    fn, state, shardings = init_sharded(make, optimizer, key, mesh)
    step = make_train_step(task.objective(fn), optimizer, shardings)

    def evaluate(state: TrainState) -> dict[str, float]:
        return task.validate(fn, averaged_params(state.opt_state))

    batches = recipe_batches(
        task.training,
        num_foods=task.cfg.embedding.num_foods,
        batch_size=min(flags.batch_size, len(task.training)),
        seed=flags.seed,
    )
    metric, higher = task.metric
    plan = FitPlan(
        num_steps=flags.steps,
        evaluate_every=flags.evaluate_every,
        max_seconds=None if flags.minutes is None else 60 * flags.minutes,
        metric=metric,
        higher_is_better=higher,
        show_progress=flags.progress,
    )
    described = {k: v for k, v in to_json(flags).items() if k not in ("run", "progress", "data")}
    config = {**described, "data": str(flags.data), "model_config": to_json(task.cfg)}
    result = fit(
        step, state, batches, run=flags.run, plan=plan, config=config, evaluate=evaluate, mesh=mesh
    )
    return result, fn


def make_task(flags: Flags, prepared: Prepared) -> Task:
    """The task that the flags name."""
    transformer = TransformerConfig(
        num_layers=flags.num_layers,
        embed_dim=flags.embed_dim,
        num_heads=flags.num_heads,
        dropout_rate=flags.dropout,
    )
    molecules = jax.tree.map(jnp.asarray, prepared.molecules)
    embedding = FoodEmbeddingConfig(
        num_foods=len(prepared.foods),
        num_components=molecules.composition.shape[1],
        num_compounds=molecules.flavour.shape[1],
        embed_dim=flags.embed_dim,
        sources=flags.sources,
    )
    if flags.model == "generator":
        return _generator_task(flags, prepared, molecules, embedding, transformer)
    return _amounts_task(flags, prepared, molecules, embedding, transformer)


def _generator_task(
    flags: Flags,
    prepared: Prepared,
    molecules: Molecules,
    embedding: FoodEmbeddingConfig,
    transformer: TransformerConfig,
) -> Task:
    cfg = GeneratorConfig(embedding=embedding, transformer=transformer, max_foods=MAX_FOODS)
    criterion = remaining_set_loss if flags.loss == "remaining-set" else next_food_loss
    queries = completion_queries(
        completion_recipes(prepared.sets, "validation"), num_foods=embedding.num_foods
    )

    def loss(model: Any, batch: RecipeBatch, key: jax.Array) -> tuple[jax.Array, Any]:
        terms = criterion(model(molecules, batch.foods, key=key), batch)
        nats = terms.total.sum() / terms.choices.sum()
        return nats, {"nats_per_choice": nats, "end_nats": terms.end.mean()}

    def validate(fn: PureModule[Any], params: Any) -> dict[str, float]:
        score = completion_score(fn, params, molecules, num_orders=1)
        report = evaluate_completion(score, queries)
        return {k: report[k] for k in ("recall_at_1", "recall_at_10", "mrr", "n")}

    training = prepared.sets.select_completion(max_lines=MAX_FOODS).select_split("train")
    return Task(
        model_type="ingredient_generator",
        cfg=cfg,
        training=_limited(training, flags.limit),
        molecules=molecules,
        loss=loss,
        validate=validate,
        metric=("mrr", True),
    )


def _amounts_task(
    flags: Flags,
    prepared: Prepared,
    molecules: Molecules,
    embedding: FoodEmbeddingConfig,
    transformer: TransformerConfig,
) -> Task:
    plain = flags.model == "mean-amounts"
    cfg = AmountsConfig(
        embedding=embedding,
        transformer=transformer,
        num_components=1 if plain else flags.num_components,
        shared_scale=plain,
        max_foods=MAX_FOODS,
    )
    training = amount_recipes(prepared.sets, "train")
    held_out = amount_recipes(prepared.sets, "validation")
    largest = int(held_out.sizes.max(initial=1))
    batches = [
        pad_recipes(held_out, rows, num_foods=embedding.num_foods, size=largest)
        for rows in np.array_split(np.arange(len(held_out)), max(1, len(held_out) // 256))
    ]

    def loss(model: Any, batch: RecipeBatch, key: jax.Array | None) -> tuple[jax.Array, Any]:
        if key is not None and flags.member_dropout > 0:
            key, here = jax.random.split(key)
            batch = drop_members(batch, flags.member_dropout, here, num_foods=embedding.num_foods)
        mixture = model(molecules, batch.foods, batch.lengths, key=key)
        terms = amounts_loss(mixture, batch, mean_weight=cfg.mean_weight)
        count = jnp.maximum(terms.weighed.sum(), 1.0)
        named = {"nats": terms.nats.sum() / count, "log_ratio_error": terms.error.sum() / count}
        return terms.total.sum() / count, named

    @functools.partial(jax.jit, static_argnums=0)
    def held_out_terms(fn: PureModule[Any], params: Any, batch: RecipeBatch) -> Any:
        return loss(fn.bind(params), batch, None)[1]

    def validate(fn: PureModule[Any], params: Any) -> dict[str, float]:
        rows = [held_out_terms(fn, params, batch) for batch in batches]
        sizes = [len(batch.foods) for batch in batches]
        means = {k: float(np.average([r[k] for r in rows], weights=sizes)) for k in rows[0]}
        return {**means, "n": sum(sizes)}

    return Task(
        model_type="amounts",
        cfg=cfg,
        training=_limited(training.select(training.sizes <= MAX_FOODS), flags.limit),
        molecules=molecules,
        loss=loss,
        validate=validate,
        metric=("log_ratio_error", False),
    )


def _limited(sets: RecipeSets, limit: int | None) -> RecipeSets:
    if limit is None:
        return sets
    if limit < 1:
        raise ValueError(f"--limit {limit} must be at least 1")
    print(f"data: the first {min(limit, len(sets))} of {len(sets)} recipes", file=sys.stderr)
    return sets.select(np.arange(len(sets)) < limit)
