"""Train a recommender on users' histories.

python -m experiments.semantic_ids train --model sasrec --data beauty --run runs/sasrec

The last item of each user is left for the test and the one before it for validation, by which the
best checkpoint is chosen.  The result is `RUN/model`, with averaged parameters and the ids of its
items.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recipe_kernels import attention, attention_on

from experiments.commands import check_least, check_seed
from experiments.record import command_line, make_record, write_record
from experiments.semantic_ids.datasets import Dataset, read_dataset, said
from experiments.semantic_ids.protocol import evaluate_ranking
from experiments.semantic_ids.sasrec_task import make_sasrec_task
from experiments.semantic_ids.tasks import Task
from experiments.semantic_ids.trained import save_recommender
from recipe_jax.data.interactions import Histories
from recipe_jax.functional import PureModule, abstract, num_parameters
from recipe_jax.huggingface import to_json
from recipe_jax.sharding import gather_arrays, initialize_distributed, is_first_process, make_mesh
from recipe_jax.training.averaging import averaged_params, track_average
from recipe_jax.training.checkpoint import Checkpoints
from recipe_jax.training.loop import FitPlan, FitResult, fit
from recipe_jax.training.optimizers import muon_adamw, warmup_cosine
from recipe_jax.training.state import TrainState, init_sharded
from recipe_jax.training.step import make_train_step

TASKS = {"sasrec": make_sasrec_task}
"""`--model` -> its task."""

_NOT_THE_RUN = ("run", "progress")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What defines a training run.

    Attributes:
        model: which recommender.
        data: `beauty`, or the path of a file with one line a user, `user item item …` in order.
        learn_validation: learn from the items left out for validation, too, once the other flags
            are chosen: nothing is validated, and all steps are taken.
        run: the run folder; the same command on the same folder resumes.
        steps: updates in all.
        minutes: stop after this many minutes of training, earlier attempts included.
        batch_size: rows per step, each of `max_items` items of several users.
        max_items: longest history that the model reads.
        embed_dim: width.
        num_layers: blocks.
        num_heads: attention heads.
        dropout: of embeddings and of the blocks' sublayers.
        positions: how the model knows an item's place in its history.
        temperature: of the cosine between states and items; None for their plain product.
        learning_rate: peak of the schedule.
        weight_decay: times the learning rate.
        seed: of everything random in training.
        data_seed: of the items' order; models that are compared must share it.
        mesh: devices, such as data=2,fsdp=2,tensor=2; one device if not given.
        evaluate_every: steps between validations.
        validation_users: most users to validate on while training, a random sample.
        patience: stop after so many validations in a row without a gain.
        progress: show the progress bar.
    """

    model: Literal["sasrec"] = "sasrec"
    data: str = "beauty"
    learn_validation: bool = False
    run: Path = Path("runs/sasrec")
    steps: int = 2400
    minutes: float | None = None
    batch_size: int = 16
    max_items: int = 50
    embed_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.5
    positions: Literal["none", "learned", "rope", "alibi"] = "learned"
    temperature: float | None = 0.07
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    seed: int = 0
    data_seed: int = 0
    mesh: str | None = None
    evaluate_every: int = 400
    validation_users: int = 5000
    patience: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch_size=1, max_items=1, evaluate_every=1, patience=1)
        check_least(self, validation_users=2, learning_rate=0.0, weight_decay=0.0, data_seed=0)
        check_seed(self.seed)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--minutes {self.minutes} must be above 0")


def run(flags: Flags) -> dict[str, Any]:
    """Train, validate, and write the averaged model to `RUN/model`."""
    initialize_distributed()
    dataset = read_dataset(flags.data, seed=flags.data_seed)
    histories = training_histories(flags, dataset)
    print(
        f"data: {len(histories.users)} users, {len(dataset.item_ids)} items, "
        f"{len(histories.items)} interactions to learn from",
        file=sys.stderr,
    )
    task = TASKS[flags.model](flags, histories, num_items=len(dataset.item_ids))
    result, fn = train(flags, dataset, task)
    params = gather_arrays(averaged_params(best_state(flags, result).opt_state))
    headline = {
        "model": flags.model,
        "step": result.step,
        "stopped": result.stopped,
        "best_step": result.best_step,
        "num_parameters": num_parameters(fn.shapes),
        **validate(task, fn, params, flags, dataset, num_users=None),
        **result.timing,
    }
    if is_first_process():
        save_recommender(
            flags.run / "model",
            cfg=task.cfg,
            params=jax.device_get(params),
            dataset=dataset,
            learned_validation=flags.learn_validation,
            card=model_card(flags, headline),
        )
        write_results(flags, task, headline)
    return headline


def training_histories(flags: Flags, dataset: Dataset) -> Histories:
    """What is learned from: never a test item, and a validation item only where asked for."""
    split = dataset.split
    return split.before_test if flags.learn_validation else split.train


def train(flags: Flags, dataset: Dataset, task: Task) -> tuple[FitResult, PureModule[Any]]:
    """Fit the model in the run folder; its function is for one device."""
    mesh = make_mesh(flags.mesh or "data=1", None if flags.mesh else jax.devices()[:1])
    alone = abstract(lambda: task.make(attention))[0]
    optimizer = make_optimizer(flags, alone)
    fn, state, shardings = init_sharded(
        lambda: task.make(attention_on(mesh)), optimizer, jax.random.key(flags.seed), mesh
    )

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        nats, targets = task.loss(fn.bind(params), batch, key if flags.dropout else None)
        return nats.sum() / jnp.maximum(targets.sum(), 1.0), {}

    def evaluate(state: TrainState) -> Mapping[str, float]:
        params = gather_arrays(averaged_params(state.opt_state))
        found = validate(task, alone, params, flags, dataset, num_users=flags.validation_users)
        return {name: value for name, value in found.items() if isinstance(value, float)}

    described = {k: v for k, v in to_json(flags).items() if k not in _NOT_THE_RUN}
    result = fit(
        make_train_step(objective, optimizer, shardings),
        state,
        task.batches,
        run=flags.run,
        plan=FitPlan(
            num_steps=flags.steps,
            log_every=min(100, flags.evaluate_every),
            evaluate_every=flags.evaluate_every,
            checkpoint_every=flags.evaluate_every,
            max_seconds=None if flags.minutes is None else 60 * flags.minutes,
            metric="ndcg_at_10",
            higher_is_better=True,
            patience=flags.patience,
            show_progress=flags.progress,
        ),
        config={**described, "model_config": to_json(task.cfg)},
        evaluate=None if flags.learn_validation else evaluate,
        mesh=mesh,
    )
    return result, alone


def best_state(flags: Flags, result: FitResult) -> TrainState:
    """The state of the best validation; the last where nothing was validated."""
    if result.best_step is None or result.best_step == result.step:
        return result.state
    with Checkpoints(flags.run / "checkpoints") as checkpoints:
        return checkpoints.restore(result.state, result.best_step)[0]


def validate(
    task: Task,
    fn: PureModule[Any],
    params: Any,
    flags: Flags,
    dataset: Dataset,
    *,
    num_users: int | None,
) -> dict[str, Any]:
    """The protocol's metrics on validation; of a random sample of users if there are more.

    A model that learned the validation items gets none.
    """
    if flags.learn_validation:
        return {}
    queries = dataset.split.validation
    if num_users is not None and num_users < len(queries.targets):
        rows = np.random.default_rng(0).permutation(len(queries.targets))[:num_users]
        queries = queries.select(np.sort(rows))
    score = task.scorer(fn, params)
    return evaluate_ranking(score, queries, num_items=len(dataset.item_ids))


def make_optimizer(flags: Flags, fn: PureModule[Any]) -> optax.GradientTransformation:
    """Muon and AdamW with clipped gradients, and an average of the parameters."""
    warmup_steps = min(200, flags.steps // 10 + 1)
    schedule = warmup_cosine(flags.learning_rate, warmup_steps=warmup_steps, num_steps=flags.steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon_adamw(schedule, fn.axes, weight_decay=flags.weight_decay),
        track_average(0.99),
    )


def model_card(flags: Flags, headline: Mapping[str, Any]) -> str:
    """What the model is and how far to trust it, in Markdown."""
    reached = "It learned the validation items, too, and was not validated."
    if "recall_at_5" in headline:
        low, high = headline["recall_at_5_interval"]
        reached = (
            f"Recall at 5 on validation, among all items: {headline['recall_at_5']:.4f} (95 % "
            f"interval {low:.4f} to {high:.4f}, n = {headline['n']})."
        )
    return (
        f"# Recommender: {flags.model}\n\nTrained by `recipe_jax` on {Path(flags.data).name}: "
        f"{headline['step']} steps. {reached}\n"
    )


def write_results(flags: Flags, task: Task, headline: Mapping[str, Any]) -> None:
    """`RUN/record.json`: what was measured and under which circumstances."""
    flags = dataclasses.replace(flags, data=said(flags.data))
    rows = [json.loads(line) for line in (flags.run / "metrics.jsonl").read_text().splitlines()]
    record = make_record(
        command_line("experiments.semantic_ids train", flags, always=("model", "data")),
        config={**to_json(flags), "run": "RUN"},
        model_config=to_json(task.cfg),
        validation=[row for row in rows if row["split"] == "validation"],
        **headline,
    )
    write_record(flags.run / "record.json", record)
