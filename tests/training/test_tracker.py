"""Metrics survive interruptions; the clock knows where time goes."""

import json
import os
from pathlib import Path

import pytest

from recipe_jax.training.run_folder import TrainingError
from recipe_jax.training.tracker import Clock, MetricsFile, ProgressBar, read_metrics


def write_rows(path, steps):
    path.write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in steps))


def test_opening_drops_rows_after_the_step(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [1, 2, 3, 4])
    MetricsFile(tmp_path / "metrics.jsonl", 2).append({"step": 3, "loss": 0.25})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 0.5), (3, 0.25)]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 0.5', "\ufffd", "3"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [1, 2])
    path.write_text(path.read_text() + torn)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    MetricsFile(path, 5).append({"step": 3})
    assert path.read_text().count("\n") == 3
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_a_missing_file_begins_empty(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
    MetricsFile(tmp_path / "new" / "metrics.jsonl", 0)
    assert (tmp_path / "new" / "metrics.jsonl").read_text() == ""


def test_rows_are_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).append({"step": 1, "loss": float("nan"), "norm": float("inf"), "n": 2})
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row == {"step": 1, "loss": None, "norm": None, "n": 2}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    path.unlink()
    os.symlink("/dev/full", path)
    with pytest.raises(TrainingError, match=f"{path}: cannot write .No space left on device"):
        metrics.append({"step": 1})


def test_the_clock_adds_earlier_attempts_and_subtracts_what_is_not_training():
    clock = Clock(earlier_seconds=100.0)
    assert 100 <= clock.wall_seconds < 200
    clock.compile_seconds = clock.attempt_seconds / 2
    assert clock.train_seconds < clock.attempt_seconds
    assert set(clock.summary()) == {
        "wall_seconds",
        "compile_seconds",
        "examples_per_second",
        "data_wait_share",
    }


def test_the_bar_writes_to_stderr_or_not_at_all(capsys):
    for shown in (True, False):
        with ProgressBar(3, 10, shown=shown) as bar:
            bar.update(5, 1.25, Clock(0.0))
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("5/10" in captured.err and "loss 1.2500" in captured.err) == shown
