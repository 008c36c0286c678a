"""The loop resumes bit-identically and stops for the reasons it documents."""

import itertools
import os
import signal

import jax
import numpy as np
import pytest
from tiny_run import (
    WIDTH,
    TinyBatch,
    TinyBatches,
    evaluate,
    make_model,
    make_objective,
    make_optimizer,
    params_bytes,
)

from recipe_jax.functional import purify
from recipe_jax.sharding import make_mesh
from recipe_jax.training.checkpoint import CheckpointError
from recipe_jax.training.loop import FitPlan, fit
from recipe_jax.training.run_folder import TrainingError
from recipe_jax.training.state import init_sharded, init_state
from recipe_jax.training.step import make_train_step
from recipe_jax.training.tracker import Clock, read_metrics

FN = purify(make_model())[0]
OPTIMIZER = make_optimizer()
STEP = make_train_step(make_objective(FN), OPTIMIZER)


def train(run, batches=None, *, num_steps=20, step=STEP, evaluate=None, config=None, **plan):
    state = init_state(purify(make_model())[1], OPTIMIZER, jax.random.key(5))
    plan = {"log_every": 4, "evaluate_every": 8, "checkpoint_every": 6} | plan
    return fit(
        step,
        state,
        TinyBatches() if batches is None else batches,
        run=run,
        plan=FitPlan(num_steps=num_steps, show_progress=False, **plan),
        config=config,
        evaluate=evaluate,
    )


def checkpoints(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def rows(run, split="train"):
    return [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == split]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted")
    return run, params_bytes(train(run, evaluate=evaluate).state.params)


class Interrupting(TinyBatches):
    """Sends this process a signal as a batch is asked for."""

    def __init__(self, at: int, number: int = signal.SIGTERM):
        super().__init__()
        self.at, self.number = at, number

    def __next__(self):
        if self.position == self.at:
            os.kill(os.getpid(), self.number)
        return super().__next__()


class Failing(TinyBatches):
    """Raises instead of giving a batch."""

    def __next__(self):
        if self.position == 13:
            raise OSError("the disk with the recipes is gone")
        return super().__next__()


class Spoiled(TinyBatches):
    """One batch is not what it should be."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def __next__(self):
        batch = super().__next__()
        scale = np.float32(self.factor if self.position == 15 else 1)
        return TinyBatch(batch.inputs, batch.targets * scale)


class Forgetful:
    """Batches whose iterator has no position to save."""

    def __iter__(self):
        return itertools.islice(TinyBatches(), None)


def test_training_goes_to_the_end_and_learns(uninterrupted):
    run, _ = uninterrupted
    assert checkpoints(run) == [18, 20]
    assert [row["step"] for row in rows(run)] == [4, 8, 12, 16, 20]
    assert [row["step"] for row in rows(run, "validation")] == [8, 16, 20]
    assert set(rows(run)[0]) == {
        *("step", "split", "loss", "grad_norm", "mean_error"),
        *("wall_seconds", "compile_seconds", "examples_per_second", "data_wait_share"),
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_0_and_the_same_call_ends_bit_identical(
    tmp_path, uninterrupted, number, capsys
):
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, Interrupting(13, number), evaluate=evaluate)
    assert caught.value.code == 0
    assert checkpoints(tmp_path)[-1] == 14  # the step that was under way ends
    assert "stopped by a signal at step 14" in capsys.readouterr().err
    assert signal.getsignal(number) == handler
    result = train(tmp_path, evaluate=evaluate)
    assert (result.step, result.stopped) == (20, "steps")
    assert params_bytes(result.state.params) == uninterrupted[1]


@pytest.mark.parametrize("batches", [TinyBatches, Forgetful])
def test_an_interrupted_run_repeats_no_row_and_no_batch(tmp_path, uninterrupted, batches):
    with pytest.raises(OSError, match="the disk with the recipes is gone"):
        train(tmp_path, Failing(), evaluate=evaluate)
    assert checkpoints(tmp_path)[-1] == 12
    result = train(tmp_path, batches(), evaluate=evaluate)
    assert params_bytes(result.state.params) == uninterrupted[1]
    for split in ("train", "validation"):
        losses = [(row["step"], row["loss"]) for row in rows(tmp_path, split)]
        assert losses == [(row["step"], row["loss"]) for row in rows(uninterrupted[0], split)]


def test_a_finished_run_is_not_trained_further(tmp_path):
    first = train(tmp_path, num_steps=6)
    expected = params_bytes(first.state.params)
    again = train(tmp_path, Failing(), num_steps=6, evaluate=lambda state: pytest.fail("evaluated"))
    assert (again.step, again.stopped) == (6, "steps")
    assert params_bytes(again.state.params) == expected


@pytest.mark.parametrize(
    ("factor", "problem"),
    [(np.nan, "loss is nan at step 15"), (1e4, r"loss=.* is above 1e\+06 at step 15")],
)
def test_a_bad_loss_stops_with_the_last_good_checkpoint(tmp_path, factor, problem):
    with pytest.raises(TrainingError, match=problem) as caught:
        train(tmp_path, Spoiled(factor), checkpoint_every=7, log_every=100)
    message = str(caught.value)
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '14'}:" in message
    assert "\n" not in message
    assert checkpoints(tmp_path)[-1] == 14


def test_a_bad_gradient_stops_although_the_loss_is_finite(tmp_path):
    def objective(params, batch, key):
        del batch, key
        return jax.numpy.sqrt(params["up"] * 0).sum(), {}

    with pytest.raises(TrainingError, match=r"grad_norm is nan at step 1; .* is none"):
        train(tmp_path, step=make_train_step(objective, OPTIMIZER))
    assert checkpoints(tmp_path) == []


def test_a_time_budget_counts_earlier_attempts(tmp_path, monkeypatch):
    # A clock that five seconds of training move per example: 80 and 120 seconds a step.
    monkeypatch.setattr(Clock, "attempt_seconds", property(lambda clock: 5.0 * clock.num_examples))
    with pytest.raises(SystemExit):
        train(tmp_path, Interrupting(4), num_steps=10**9, max_seconds=950.0)
    for _ in range(2):
        result = train(tmp_path, num_steps=10**9, max_seconds=950.0)
        assert (result.step, result.stopped) == (10, "time")
        assert result.timing["wall_seconds"] >= 1000


def test_patience_stops_and_the_best_checkpoint_stays(tmp_path):
    values = iter([3.0, 1.0, 2.0, float("nan"), 5.0, 6.0])
    result = train(
        tmp_path,
        num_steps=40,
        evaluate=lambda state: {"error": next(values)},
        metric="error",
        evaluate_every=2,
        checkpoint_every=3,
        patience=3,
    )
    assert (result.step, result.stopped) == (10, "patience")
    assert (result.best_step, result.best_value) == (4, 1.0)
    assert checkpoints(tmp_path) == [4, 9, 10]
    again = train(tmp_path, Failing(), num_steps=40, patience=3, metric="error")
    assert (again.step, again.stopped, again.best_step) == (10, "patience", 4)


def test_a_validation_at_a_saved_step_is_remembered(tmp_path):
    first = train(tmp_path, num_steps=6, checkpoint_every=3, evaluate=evaluate, evaluate_every=100)
    again = train(tmp_path, num_steps=6, evaluate=evaluate)
    assert (again.best_step, again.best_value) == (6, first.best_value)


def test_higher_may_be_better(tmp_path):
    values = iter([0.1, 0.3, 0.2])
    result = train(
        tmp_path,
        num_steps=3,
        evaluate=lambda state: {"recall": next(values)},
        metric="recall",
        higher_is_better=True,
        evaluate_every=1,
    )
    assert (result.best_step, result.best_value) == (2, 0.3)


def test_the_metric_must_be_among_the_validations(tmp_path):
    with pytest.raises(ValueError, match=r"evaluate gave \['loss'\], but metric='mrr'"):
        train(tmp_path, evaluate=evaluate, metric="mrr")


def test_batches_may_end(tmp_path):
    result = train(tmp_path, list(itertools.islice(TinyBatches(), 5)))
    assert (result.step, result.stopped) == (5, "batches")
    assert checkpoints(tmp_path) == [5]
    again = train(tmp_path, list(itertools.islice(TinyBatches(), 5)))
    assert (again.step, again.stopped) == (5, "batches")


def test_another_configuration_does_not_resume(tmp_path):
    train(tmp_path, num_steps=1, config={"learning_rate": 1})
    with pytest.raises(TrainingError, match="holds a run with learning_rate=1, not 2"):
        train(tmp_path, num_steps=2, config={"learning_rate": 2})


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="Not a directory"):
        train(tmp_path / "file" / "run", Failing())


def test_a_damaged_checkpoint_does_not_resume(tmp_path):
    train(tmp_path, num_steps=2)
    (tmp_path / "checkpoints" / "2" / "run" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match="checkpoints/2: the checkpoint is damaged"):
        train(tmp_path)


def test_training_on_a_mesh_resumes_there(tmp_path):
    mesh = make_mesh("data=2,fsdp=4")
    fn, _, shardings = init_sharded(make_model, OPTIMIZER, jax.random.key(5), mesh)
    step = make_train_step(make_objective(fn), OPTIMIZER, shardings)

    def attempt(run, num_steps):
        _, state, _ = init_sharded(make_model, OPTIMIZER, jax.random.key(5), mesh)
        batches = TinyBatches(sizes=(16,))
        plan = FitPlan(num_steps=num_steps, show_progress=False)
        return fit(step, state, batches, run=run, plan=plan, mesh=mesh).state

    whole = attempt(tmp_path / "whole", 8)
    attempt(tmp_path / "parts", 3)
    resumed = attempt(tmp_path / "parts", 8)
    assert params_bytes(resumed.params) == params_bytes(whole.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, resumed) == shardings


def test_compilation_is_counted_once_per_shape(tmp_path):
    calls = []
    compiled = make_train_step(make_objective(FN), OPTIMIZER)  # by no other test yet

    def step(state, batch):
        calls.append(batch.inputs.shape)
        return compiled(state, batch)

    result = train(tmp_path, step=step, num_steps=4)
    assert calls == [(16, WIDTH), (24, WIDTH)] * 2
    assert 0 < result.timing["compile_seconds"] < result.timing["wall_seconds"]
    assert 0 <= result.timing["data_wait_share"] <= 1


@pytest.mark.parametrize(
    "field",
    [{"num_steps": 0}, {"log_every": 0}, {"max_seconds": 0.0}, {"patience": 0}, {"max_loss": -1.0}],
)
def test_plans_are_checked(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))}=.*must be"):
        FitPlan(**{"num_steps": 1, **field})
