"""The training loop: resumes, validates, saves, and stops for good reasons only."""

import dataclasses
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from recipe_jax.sharding import Mesh, gather_json, shard_batch
from recipe_jax.training.checkpoint import Checkpoints, Progress
from recipe_jax.training.run_folder import RunFolder, TrainingError
from recipe_jax.training.state import TrainState
from recipe_jax.training.step import StepMetrics, TrainStep
from recipe_jax.training.tracker import Clock, MetricsFile, ProgressBar

Stop: TypeAlias = Literal["steps", "time", "patience", "batches", "signal"]
Evaluate: TypeAlias = Callable[[TrainState], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How long to train and what to do on the way.

    Attributes:
        num_steps: updates in all, earlier attempts included.
        log_every: steps between rows of `metrics.jsonl`; a row is the mean over them.
        evaluate_every: steps between validations; there is one at the end in any case.
        checkpoint_every: steps between checkpoints; there is one at the end in any case, and one
            whenever a validation is the best so far.
        keep_latest: how many of the newest checkpoints to keep; the best is kept as well.
        max_seconds: stop at the step in which this time is over, earlier attempts included.
        metric: the validation metric that decides which checkpoint is best.
        higher_is_better: whether it should grow.
        patience: stop after this many validations in a row without a gain; None never does.
        max_loss: a loss above this counts as an explosion.
        show_progress: whether to draw a progress bar on stderr.
    """

    num_steps: int
    log_every: int = 50
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    keep_latest: int = 2
    max_seconds: float | None = None
    metric: str = "loss"
    higher_is_better: bool = False
    patience: int | None = None
    max_loss: float = 1e6
    show_progress: bool = True

    def __post_init__(self):
        for name in ("num_steps", "log_every", "evaluate_every", "checkpoint_every", "keep_latest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("max_seconds", "patience", "max_loss"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be above 0")


class FitResult(NamedTuple):
    """How training ended.

    Attributes:
        state: after the last step.
        step: how many updates it has seen.
        stopped: `steps` as planned, `time` and `patience` by the plan's limits, `batches` because
            there were no more.
        best_step: the checkpoint with the best validation metric; None without validation.
        best_value: that metric.
        timing: `wall_seconds, compile_seconds, examples_per_second, data_wait_share`.
    """

    state: TrainState
    step: int
    stopped: Stop
    best_step: int | None
    best_value: float | None
    timing: Mapping[str, float]


def fit(
    step_fn: TrainStep,
    state: TrainState,
    batches: Iterable[Any],
    *,
    run: Path,
    plan: FitPlan,
    config: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    mesh: Mesh | None = None,
) -> FitResult:
    """Train, or go on training, in a run folder.

    Where the folder holds checkpoints the latest is restored, `metrics.jsonl` is truncated to its
    step, and the result is bit-identical to that of an uninterrupted run on the same device.  The
    batches continue where they were: through `get_state` and `set_state` where their iterator has
    them, else by skipping one batch per step.

    SIGTERM and SIGINT end the step (or validation), save, and raise `SystemExit(0)`; a second
    SIGINT interrupts at once.  Signals are only seen where `fit` runs in the main thread.

    Args:
        step_fn: from `make_train_step`.
        state: the initial state; its buffers are used up.
        batches: pytrees of numpy arrays, examples first, in a few shapes; each process its own.
        run: the run folder, created if it is missing.
        plan: how long, how often.
        config: what defines the run; written to `config.json` and into each checkpoint.  A run
            resumes only with the configuration it began with.
        evaluate: gives validation metrics; must contain `plan.metric`.
        mesh: the devices that `step_fn` was made for; None is one device.

    Raises:
        TrainingError: if the folder cannot be used or written, or the loss is not finite or
            explodes: the message names the last good checkpoint.
        CheckpointError: if a checkpoint cannot be written or read.
    """
    folder = RunFolder(Path(run))
    _claim(folder, config)
    checkpoints = Checkpoints(folder.checkpoints, keep_latest=plan.keep_latest, config=config)
    try:
        with _Signals() as signals:
            loop = _Loop(step_fn, state, batches, checkpoints, plan, evaluate, mesh)
            del state  # the first step frees its buffers
            stopped = loop.run(signals)
            loop.finish(stopped)
    finally:
        checkpoints.close()
    if stopped == "signal":
        print(f"{folder.path}: stopped by a signal at step {loop.step}, saved", file=sys.stderr)
        raise SystemExit(0)
    best = loop.progress
    return FitResult(
        loop.state, loop.step, stopped, best.best_step, best.best_value, loop.clock.summary()
    )


class _Loop:
    """The state of one attempt."""

    def __init__(
        self,
        step_fn: TrainStep,
        state: TrainState,
        batches: Iterable[Any],
        checkpoints: Checkpoints,
        plan: FitPlan,
        evaluate: Evaluate | None,
        mesh: Mesh | None,
    ):
        started = time.perf_counter()
        folder = RunFolder(checkpoints.folder.parent)
        self.progress = Progress()
        if checkpoints.steps():
            state, self.progress = checkpoints.restore(state)
        self.state, self.step = state, int(state.step)
        self.first_step = self.step
        self._step_fn, self._plan, self._mesh = step_fn, plan, mesh
        self._folder, self._checkpoints, self._evaluate = folder, checkpoints, evaluate
        self._iterator = _positioned(batches, self.step, self.progress.data)
        self._metrics_file = None
        if jax.process_index() == 0:
            self._metrics_file = MetricsFile(folder.metrics, self.step)
        self.clock = Clock(self.progress.wall_seconds + time.perf_counter() - started)
        self._bar = ProgressBar(
            self.step, plan.num_steps, shown=plan.show_progress and jax.process_index() == 0
        )
        self._seen_shapes: set[Any] = set()
        self._pending: list[tuple[int, StepMetrics]] = []
        self._window: list[Mapping[str, float]] = []
        self._evaluated_step: int | None = None

    def run(self, signals: "_Signals") -> Stop:
        """Train until there is a reason to stop."""
        plan = self._plan
        with self._bar:
            while self.step < plan.num_steps:
                if (stop := self._limit_reached(signals)) is not None:
                    return stop
                batch = self._next_batch()
                if batch is None:
                    return "batches"
                self._update(batch)
                if self.step % plan.log_every == 0:
                    self._log()
                if self.step % plan.evaluate_every == 0:
                    self._validate()
                if self.step % plan.checkpoint_every == 0:
                    self._save()
        return "steps"

    def finish(self, stopped: Stop) -> None:
        """Validate and save what the last steps reached, and wait until it is on disk."""
        self._drain()
        trained = self.step > self.first_step
        if trained and stopped != "signal" and self._evaluated_step != self.step:
            self._validate()
        if self._window:
            self._log()
        if trained or not self._checkpoints.steps():
            self._save()
        self._checkpoints.finish()

    def _limit_reached(self, signals: "_Signals") -> Stop | None:
        plan, stop = self._plan, None
        if signals.received:
            stop = "signal"
        elif plan.max_seconds is not None and self.clock.wall_seconds >= plan.max_seconds:
            stop = "time"
        elif plan.patience is not None and self.progress.evaluations_without_gain >= plan.patience:
            stop = "patience"
        if jax.process_count() == 1:
            return stop
        # Every process has to stop at the same step: they agree where they log.
        if self.step % plan.log_every:
            return None
        return next((reason for reason in gather_json(stop) if reason is not None), None)

    def _next_batch(self) -> Any:
        started = time.perf_counter()
        batch = next(self._iterator, None)
        if batch is None:
            return None
        self.clock.num_examples += _num_examples(batch) * jax.process_count()
        if self._mesh is not None:
            batch = shard_batch(batch, self._mesh)
        last_loss: Any = self._pending[-1][1].loss if self._pending else None
        if last_loss is None or last_loss.is_ready():
            # The device has finished its last step, so it waited for at most this long.
            self.clock.data_seconds += time.perf_counter() - started
        return batch

    def _update(self, batch: Any) -> None:
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))
        started = time.perf_counter()
        self.state, metrics = self._step_fn(self.state, batch)
        if shapes not in self._seen_shapes:
            self._seen_shapes.add(shapes)
            self.clock.compile_seconds += time.perf_counter() - started
        self.step += 1
        self._pending.append((self.step, metrics))
        if len(self._pending) > 1:
            # At most two steps in flight: the host prepares one batch while the device works.
            jax.block_until_ready(self._pending[-2][1].loss)

    def _drain(self) -> None:
        """Bring metrics to the host; nothing is logged, validated or saved before they pass."""
        pending, self._pending = self._pending, []
        for step, metrics in pending:
            numbers = _numbers(metrics)
            self._window.append(numbers)
            for name in ("loss", "grad_norm"):
                if not math.isfinite(numbers[name]):
                    raise self._failure(step, f"{name} is {numbers[name]}")
            if abs(numbers["loss"]) > self._plan.max_loss:
                raise self._failure(
                    step, f"loss={numbers['loss']:g} is above {self._plan.max_loss:g}"
                )

    def _failure(self, step: int, problem: str) -> TrainingError:
        self._checkpoints.finish()
        steps = self._checkpoints.steps()
        good = f"{self._folder.checkpoints / str(steps[-1])}" if steps else "none"
        return TrainingError(
            f"{self._folder.path}: {problem} at step {step}; the last good checkpoint is {good}: "
            "lower the learning rate or clip the gradients, in another --run"
        )

    def _log(self) -> None:
        self._drain()
        window, self._window = self._window, []
        means = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
        self._append({"step": self.step, "split": "train", **means, **self.clock.summary()})
        self._bar.update(self.step, means["loss"], self.clock)

    def _validate(self) -> None:
        self._evaluated_step = self.step
        if self._evaluate is None:
            return
        self._drain()
        started = time.perf_counter()
        metrics = {name: float(value) for name, value in self._evaluate(self.state).items()}
        seconds = time.perf_counter() - started
        self.clock.evaluate_seconds += seconds
        if self._plan.metric not in metrics:
            raise ValueError(
                f"evaluate gave {sorted(metrics)}, but metric={self._plan.metric!r} is to decide "
                "which checkpoint is best"
            )
        self._append({"step": self.step, "split": "validation", **metrics, "seconds": seconds})
        value, best = metrics[self._plan.metric], self.progress.best_value
        sign = 1 if self._plan.higher_is_better else -1
        if math.isfinite(value) and (best is None or sign * value > sign * best):
            self.progress = self.progress._replace(
                best_step=self.step, best_value=value, evaluations_without_gain=0
            )
            self._save()
        else:
            without_gain = self.progress.evaluations_without_gain + 1
            self.progress = self.progress._replace(evaluations_without_gain=without_gain)

    def _save(self) -> None:
        self._drain()
        started = time.perf_counter()
        get_state = getattr(self._iterator, "get_state", None)
        self.progress = self.progress._replace(
            wall_seconds=self.clock.wall_seconds,
            data=get_state() if get_state is not None else None,
        )
        self._checkpoints.save(self.step, self.state, self.progress)
        self.clock.checkpoint_seconds += time.perf_counter() - started

    def _append(self, row: Mapping[str, Any]) -> None:
        if self._metrics_file is not None:
            self._metrics_file.append(row)


class _Signals:
    """Notes SIGTERM and SIGINT instead of dying of them."""

    def __init__(self):
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: object) -> None:
        del frame
        self.received = True
        signal.signal(number, self._previous[number])


def _claim(folder: RunFolder, config: Mapping[str, Any] | None) -> None:
    """One process writes; all of them learn whether it could."""
    problem = None
    if jax.process_index() == 0:
        try:
            folder.claim(config)
        except TrainingError as error:
            problem = str(error)
    for found in gather_json(problem):
        if found is not None:
            raise TrainingError(found)


def _positioned(batches: Iterable[Any], step: int, data: Any) -> Iterator[Any]:
    iterator = iter(batches)
    set_state = getattr(iterator, "set_state", None)
    if data is not None and set_state is not None:
        set_state(data)
        return iterator
    for _ in itertools.islice(iterator, step):
        pass
    return iterator


def _num_examples(batch: Any) -> int:
    return next((leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim), 0)


def _numbers(metrics: StepMetrics) -> dict[str, float]:
    """Flat names to floats: `loss`, `grad_norm` and the names of the objective's terms."""
    loss, grad_norm, terms = jax.device_get(metrics)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(value)
        for path, value in jax.tree_util.tree_leaves_with_path(terms)
    }
    return {"loss": float(loss), "grad_norm": float(grad_norm)} | {
        name: value for name, value in named.items() if name not in ("loss", "grad_norm")
    }
