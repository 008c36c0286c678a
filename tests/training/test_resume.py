"""A process killed without warning, or refused by the file system, loses nothing that was saved."""

import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from tolerances import assert_close

from recipe_jax.training.tracker import read_metrics

ROOT = Path(__file__).parents[2]


def start(run: Path, *arguments: object, **environment: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", tiny_run.__file__, run, *arguments]
    environment = {"PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(
        [str(part) for part in command],
        env={name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(run: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return finish(start(run, *arguments))


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_killed_at_a_random_step_it_resumes_bit_identically(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    step = random.randrange(1, 60)
    uninterrupted = start(whole)
    assert train(killed, "--kill-at", step).returncode == -signal.SIGKILL
    resumed, finished = train(killed), finish(uninterrupted)
    assert resumed.returncode == finished.returncode == 0, resumed.stderr + finished.stderr
    assert (killed / "params.bin").read_bytes() == (whole / "params.bin").read_bytes(), step
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(run / "metrics.jsonl")]
        for run in (whole, killed)
    ]
    assert losses[1] == losses[0], step
    assert not list((killed / "checkpoints").glob("*tmp*"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_file_system_that_refuses_is_one_line_and_loses_nothing(tmp_path):
    assert train(tmp_path, "--steps", 12).returncode == 0
    saved = sorted((tmp_path / "checkpoints").iterdir())
    refused = train(tmp_path, "--steps", 30, "--max-file-bytes", 3000)
    assert refused.returncode == 2
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1, refused.stderr
    assert "cannot be written (File too large); the last good one is step 12" in lines[0]
    assert [path for path in saved if path.exists()] == saved
    assert train(tmp_path, "--steps", 14).returncode == 0


def test_two_processes_train_as_one_and_their_checkpoint_resumes_in_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        start(
            *(tmp_path / "two", "--mesh", "data=2,fsdp=2", "--steps", 6),
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES=2,
            JAX_PROCESS_ID=index,
            JAX_NUM_CPU_DEVICES=2,
        )
        for index in range(2)
    ]
    for process in processes:
        finished = finish(process)
        assert finished.returncode == 0, finished.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl")] == [5, 6, 6]
    parts = [start(tmp_path / name, "--steps", 10) for name in ("two", "one")]
    resumed, alone = finish(parts[0]), finish(parts[1])
    assert resumed.returncode == alone.returncode == 0, resumed.stderr + alone.stderr
    parameters = [
        np.frombuffer((tmp_path / name / "params.bin").read_bytes(), np.float32)
        for name in ("two", "one")
    ]
    assert_close(parameters[0], parameters[1], "gradient")
