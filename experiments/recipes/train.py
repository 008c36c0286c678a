"""Train a generator of ingredient sets, a model of their amounts, or both in one.

Receipt: see experiments/README.md for the commands, times and metrics of the committed runs.
"""

import functools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import optax
from recipe_kernels import attention, attention_on

from experiments.recipes.amount_tasks import amounts_task, autoregressive_task
from experiments.recipes.generator_tasks import (
    encoder_decoder_task,
    generator_task,
    joint_task,
    masked_set_task,
)
from experiments.recipes.model_card import model_card
from experiments.recipes.prepared import Prepared, read_prepared
from experiments.recipes.tasks import MAX_FOODS, Flags, Task, make_setting
from experiments.record import command_line, make_record, write_record
from recipe_jax.batches import RecipeBatch
from recipe_jax.data.batching import recipe_batches
from recipe_jax.functional import PureModule, abstract, num_parameters
from recipe_jax.huggingface import make_module, save_model, to_json
from recipe_jax.sharding import (
    Mesh,
    gather_arrays,
    initialize_distributed,
    is_first_process,
    make_mesh,
    process_share,
)
from recipe_jax.training.averaging import averaged_params, track_average
from recipe_jax.training.loop import FitPlan, FitResult, fit
from recipe_jax.training.optimizers import muon_adamw, warmup_cosine
from recipe_jax.training.state import TrainState, init_sharded
from recipe_jax.training.step import TrainStep, make_train_step

__all__ = ["MAX_FOODS", "Flags", "Task", "make_task", "run", "set_up", "train"]

_NOT_THE_RUN = ("run", "progress", "data", "mesh")
"""Flags that a resumed run may change; the data's place is kept apart."""

TASKS = {
    "generator": generator_task,
    "encoder-decoder": encoder_decoder_task,
    "masked-set": masked_set_task,
    "joint": joint_task,
    "amounts": amounts_task,
    "mean-amounts": amounts_task,
    "autoregressive-amounts": autoregressive_task,
}
"""`--model` -> what is trained."""


def run(flags: Flags, prepared: Prepared | None = None) -> dict[str, Any]:
    """Train, validate, and write the averaged model to `RUN/model`.

    Args:
        flags: what defines the run.
        prepared: the data, where it is read already.
    """
    initialize_distributed()
    prepared = read_prepared(flags.data) if prepared is None else prepared
    task = make_task(flags, prepared)
    result, fn = train(flags, task)
    params = task.finish(fn, gather_arrays(averaged_params(result.state.opt_state)))
    headline = {
        "model": flags.model,
        "step": result.step,
        "stopped": result.stopped,
        "num_parameters": num_parameters(fn.shapes),
        **task.validate(fn, params),
        **result.timing,
    }
    if is_first_process():
        write_results(flags, prepared, task, params, headline)
    return headline


def write_results(
    flags: Flags, prepared: Prepared, task: Task, params: Any, headline: dict[str, Any]
) -> None:
    """`RUN/model` and `RUN/record.json`."""
    save_model(
        flags.run / "model",
        cfg=task.cfg,
        params=jax.device_get(params),
        foods=prepared.foods,
        molecules=prepared.molecules,
        card=model_card(flags, prepared, headline, num_recipes=len(task.training)),
        precision="float16",
    )
    rows = [json.loads(line) for line in (flags.run / "metrics.jsonl").read_text().splitlines()]
    record = make_record(
        command_line("experiments.recipes train", flags, always=("model",)),
        config={**to_json(flags), "data": "DIR" if flags.data else prepared.source, "run": "RUN"},
        model_config=to_json(task.cfg),
        num_recipes=len(task.training),
        validation=[row for row in rows if row["split"] == "validation"],
        **headline,
    )
    write_record(flags.run / "record.json", record)


class Training(NamedTuple):
    """A task, ready for its first step.

    Attributes:
        fn: the model's pure function, on one device.
        state: before the first step.
        step: one update.
        batches: an endless stream.
        mesh: the devices.
    """

    fn: PureModule[Any]
    state: TrainState
    step: TrainStep
    batches: Iterable[RecipeBatch]
    mesh: Mesh


def set_up(flags: Flags, task: Task) -> Training:
    """The optimizer, the initial state, the compiled step and the batches."""
    mesh = make_mesh(flags.mesh or "data=1", None if flags.mesh else jax.devices()[:1])
    make = functools.partial(make_module, task.model_type, task.cfg, seed=flags.seed)
    schedule = warmup_cosine(
        flags.learning_rate, warmup_steps=min(300, flags.steps // 10 + 1), num_steps=flags.steps
    )
    fn, _ = abstract(lambda: make(attend=attention))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        muon_adamw(schedule, fn.axes, weight_decay=flags.weight_decay),
        track_average(0.998),
    )
    key = jax.random.key(flags.seed)
    trained, state, shardings = init_sharded(
        lambda: make(attend=attention_on(mesh)), optimizer, key, mesh
    )
    step = make_train_step(task.objective(trained), optimizer, shardings)
    batches = recipe_batches(
        task.training,
        num_foods=task.cfg.embedding.num_foods,
        batch_size=min(flags.batch_size, len(task.training)),
        seed=flags.seed,
        share=process_share,
    )
    return Training(fn, state, step, batches, mesh)


def train(flags: Flags, task: Task) -> tuple[FitResult, PureModule[Any]]:
    """Fit the task's model in the run folder."""
    fn, state, step, batches, mesh = set_up(flags, task)

    def evaluate(state: TrainState) -> dict[str, float]:
        return task.validate(fn, gather_arrays(averaged_params(state.opt_state)))

    metric, higher = task.metric
    plan = FitPlan(
        num_steps=flags.steps,
        evaluate_every=flags.evaluate_every,
        max_seconds=None if flags.minutes is None else 60 * flags.minutes,
        metric=metric,
        higher_is_better=higher,
        show_progress=flags.progress,
    )
    described = {k: v for k, v in to_json(flags).items() if k not in _NOT_THE_RUN}
    config = {**described, "data": str(flags.data), "model_config": to_json(task.cfg)}
    result = fit(
        step, state, batches, run=flags.run, plan=plan, config=config, evaluate=evaluate, mesh=mesh
    )
    return result, fn


def make_task(flags: Flags, prepared: Prepared) -> Task:
    """The task that the flags name."""
    return TASKS[flags.model](make_setting(flags, prepared))
