"""What a run tells while it trains: `metrics.jsonl`, a progress bar, and where the time goes."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from recipe_jax.training.run_folder import unwritable, write_text

Row = dict[str, Any]


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with the step it describes.

    Opening truncates it: rows after the step that training resumes from are dropped, and so is a
    last line that an interrupted process left torn.

    Args:
        path: the file; created if it is missing.
        step: the step that training resumes from.

    Raises:
        TrainingError: if the file system refuses.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        write_text(path, "".join(_line(row) for row in rows))

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; numbers that are not finite become null.

        Raises:
            TrainingError: if the file system refuses.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise unwritable(self.path, error) from error


def read_metrics(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`; none if it is missing.  Lines that are torn are left out."""
    if not path.is_file():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class Clock:
    """Where the time of a run goes, in seconds.

    Attributes:
        compile_seconds: in the first step of each shape of batch.
        data_seconds: in which the device had nothing to do because the next batch was not there.
        evaluate_seconds: in validation.
        checkpoint_seconds: in which training stood still for a checkpoint.
        num_examples: examples trained on in this attempt.
    """

    def __init__(self, earlier_seconds: float):
        self._earlier_seconds = earlier_seconds
        self._start = time.perf_counter()
        self.compile_seconds = 0.0
        self.data_seconds = 0.0
        self.evaluate_seconds = 0.0
        self.checkpoint_seconds = 0.0
        self.num_examples = 0

    @property
    def attempt_seconds(self) -> float:
        """Since this attempt began."""
        return time.perf_counter() - self._start

    @property
    def wall_seconds(self) -> float:
        """Of this and of earlier attempts."""
        return self._earlier_seconds + self.attempt_seconds

    @property
    def train_seconds(self) -> float:
        """Of this attempt, without compilation, validation and checkpoints."""
        elsewhere = self.compile_seconds + self.evaluate_seconds + self.checkpoint_seconds
        return max(self.attempt_seconds - elsewhere, 1e-9)

    def summary(self) -> dict[str, float]:
        """Rates and shares of this attempt, by name."""
        return {
            "wall_seconds": round(self.wall_seconds, 3),
            "compile_seconds": round(self.compile_seconds, 3),
            "examples_per_second": round(self.num_examples / self.train_seconds, 1),
            "data_wait_share": round(self.data_seconds / self.train_seconds, 4),
        }


class ProgressBar:
    """A bar on stderr with the loss, throughput and the time that remains.

    Use as a context manager.

    Args:
        step: where it starts.
        num_steps: where it ends.
        shown: False shows nothing.
    """

    def __init__(self, step: int, num_steps: int, *, shown: bool = True):
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step"),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=rich.console.Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task("train", completed=step, total=num_steps, note="compiling")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, clock: Clock) -> None:
        """Show a step."""
        rate = clock.num_examples / clock.train_seconds
        self._bar.update(
            self._task, completed=step, note=f"loss {loss:.4f} · {rate:,.0f} examples/s"
        )


def _line(row: Mapping[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite) + "\n"
