"""The commands as a user meets them: one JSON line, or one clear line and exit code 2."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.recipes.__main__ import main
from experiments.recipes.generate import PRETRAINED
from recipe_jax.data.sample import write_sample
from recipe_jax.huggingface import load_model

TINY = ["--embed-dim", "16", "--num-layers", "1", "--num-heads", "2", "--no-progress"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.startswith("data: ")]
    assert len(lines) == 1, lines
    return lines[0]


def headline(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """The JSON object that a command prints last."""
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_sample(tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.mark.parametrize("model", ["generator", "amounts", "mean-amounts"])
def test_two_steps_train_a_model_that_can_be_loaded(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = str(tmp_path / "run")
    printed = headline(
        capsys, "train", "--model", model, "--steps", "2", "--run", run, *TINY, "--batch-size", "16"
    )
    assert printed["step"] == 2 and np.isfinite(printed["n"])
    assert load_model(tmp_path / "run" / "model").cfg.max_foods == 25


def test_generate_keeps_the_pantry_and_the_rules(capsys: pytest.CaptureFixture[str]):
    printed = headline(
        capsys, "generate", "--pantry", "tomato", "basil", "--diet", "vegan", "--without", "garlic"
    )
    for recipe in printed["recipes"]:
        grams = recipe["grams"]
        assert list(grams)[:2] == ["tomato", "basil"]
        assert not {"garlic", "butter", "parmesan", "egg"} & set(grams)
        assert sum(grams.values()) == pytest.approx(1000.0, abs=1.0)
        assert len(grams) >= 5


def test_an_unknown_food_is_refused_with_the_nearest_names(capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, "generate", "--pantry", "tomatoe")
    assert "--pantry 'tomatoe' is no food of the vocabulary" in line and "tomato" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pantry", "tomato", "tomato"], "--pantry names 'tomato' twice"),
        (["--pantry", "tomato", "--max-foods", "0"], "--pantry names 1 foods, a recipe may hold 0"),
        (["--pantry", "butter", "--diet", "vegan"], "--pantry 'butter' is not cleared for vegan"),
        (["--pantry", "tomato", "--diet", "kosher"], "--diet 'kosher' must be one of vegan"),
        (["--pantry", "tomato", "--without", "tomato"], "--without 'tomato' is also in --pantry"),
        (["--pantry", "tomato", "--temperature", "-1"], "temperature=-1.0 must be finite"),
        (["--pantry", "tomato", "--generator", "/nowhere"], "/nowhere/config.json: no such file"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert message in refused(capsys, "generate", *arguments)


def test_a_corrupted_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(PRETRAINED / "generator", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    line = refused(capsys, "generate", "--pantry", "tomato", "--generator", str(tmp_path / "model"))
    assert "model.safetensors: not a whole safetensors file" in line


def test_a_model_of_the_wrong_kind_is_refused(capsys: pytest.CaptureFixture[str]):
    arguments = ["--pantry", "tomato", "--generator", str(PRETRAINED / "amounts")]
    assert "must be an ingredient_generator" in refused(capsys, "generate", *arguments)


@pytest.mark.parametrize("grams", [-1.0, float("nan")])
def test_bad_grams_are_refused_by_file_and_row(
    grams: float, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = prepared / "ingredients.parquet"
    table = pl.read_parquet(path)
    changed = table.with_columns(
        grams=pl.when(pl.int_range(pl.len()) == 7).then(grams).otherwise(pl.col("grams"))
    )
    changed.write_parquet(path)
    line = refused(capsys, "train", "--data", str(prepared), "--run", str(tmp_path / "run"))
    assert "ingredients.parquet: recipe sample-" in line and "grams=" in line
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit_the_devices_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, "train", "--mesh", "data=3,fsdp=5", "--run", str(tmp_path / "run"))
    assert "data=3,fsdp=5" in line and "8" in line


def test_a_missing_folder_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, "train", "--data", str(tmp_path / "nothing"))
    assert "no such file" in line


def test_a_run_folder_that_cannot_be_written_is_refused(capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, "train", "--steps", "2", "--run", "/proc/run", *TINY)
    assert "/proc/run" in line


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["bake"]) == 2
    assert "unknown command 'bake'" in capsys.readouterr().err


def train_command(run: Path) -> list[str]:
    flags = ["--steps", "60", "--batch-size", "16", "--evaluate-every", "7", "--seed", "5"]
    return [sys.executable, "-m", "experiments.recipes", "train", "--run", str(run), *TINY, *flags]


def test_a_killed_run_ends_bit_identical_to_an_uninterrupted_one(tmp_path: Path):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(train_command(whole), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        train_command(killed),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not any((killed / "checkpoints").glob("[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(train_command(killed), check=True, env=environment, capture_output=True)
    assert (whole / "model" / "model.safetensors").read_bytes() == (
        killed / "model" / "model.safetensors"
    ).read_bytes()
