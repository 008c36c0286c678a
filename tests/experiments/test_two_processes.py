"""The commands in two processes that work as one: the same losses, checkpoints for any mesh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from story_checkpoint import TEXT, write_checkpoint
from tolerances import assert_close

from recipe_jax.training.tracker import read_metrics

ROOT = Path(__file__).parents[2]
DEVICES = 4


def start(command: list[str], **environment: object) -> subprocess.Popen[str]:
    given = {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[dict]:
    """Headlines of processes that must end well."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err[-2000:]
        found.append(json.loads(out.splitlines()[-1]))
    return found


def in_two_processes(command: list[str]) -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return finish(
        *(
            start(
                command,
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES=2,
                JAX_PROCESS_ID=index,
                JAX_NUM_CPU_DEVICES=DEVICES // 2,
            )
            for index in range(2)
        )
    )


def losses(run: Path) -> np.ndarray:
    rows = read_metrics(run / "metrics.jsonl")
    return np.array([row["loss"] for row in rows if row["split"] == "train"])


@pytest.fixture
def language_command(tmp_path) -> list[str]:
    (tmp_path / "cats.txt").write_text(TEXT)
    folder = write_checkpoint(tmp_path / "tiny")
    return [
        *("experiments.language_model", "train", "--model", str(folder), "--no-progress"),
        *("--text", str(tmp_path / "cats.txt"), "--batch-size", "4", "--num-tokens", "24"),
        *("--evaluate-every", "2", "--learning-rate", "0.01", "--steps", "4"),
    ]


RECIPES = [
    *("experiments.recipes", "train", "--steps", "4", "--batch-size", "96", "--no-progress"),
    *("--embed-dim", "16", "--num-layers", "1", "--num-heads", "2", "--evaluate-every", "2"),
]


def test_a_language_model_learns_alike_on_one_device_many_and_in_two_processes(
    language_command, tmp_path
):
    one, two, many = (tmp_path / name for name in ("one", "two", "many"))
    mesh = ["--mesh", "data=1,fsdp=2,tensor=2"]
    twice = in_two_processes([*language_command, "--run", str(two), *mesh])
    alone, wide = finish(
        start([*language_command, "--run", str(one)], JAX_NUM_CPU_DEVICES=1),
        start(
            [*language_command, "--run", str(many), "--mesh", "data=2,fsdp=2,tensor=2"],
            JAX_NUM_CPU_DEVICES=8,
        ),
    )
    assert len(losses(one)) == 2
    for run in (two, many):
        assert_close(losses(run), losses(one), "gradient")
    for result in (*twice, wide):
        assert result["nats_per_token"] == pytest.approx(alone["nats_per_token"], rel=1e-4)
    assert (two / "model" / "model.safetensors").is_file()
    # What two processes saved is found finished by one, on another mesh.
    (again,) = finish(start([*language_command, "--run", str(two)], JAX_NUM_CPU_DEVICES=1))
    assert again["step"] == 4
    assert again["nats_per_token"] == pytest.approx(alone["nats_per_token"], rel=1e-4)


def test_recipes_are_learned_in_two_processes_too(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    headlines = in_two_processes([*RECIPES, "--run", str(two), "--mesh", "data=2,fsdp=2"])
    (alone,) = finish(start([*RECIPES, "--run", str(one)], JAX_NUM_CPU_DEVICES=1))
    assert headlines[0]["recall_at_10"] == headlines[1]["recall_at_10"]
    assert headlines[0]["recall_at_10"] == pytest.approx(alone["recall_at_10"], abs=0.05)
    assert_close(losses(two), losses(one), "gradient")
    assert (two / "model" / "model.safetensors").is_file() and (two / "record.json").is_file()
