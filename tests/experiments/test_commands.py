"""The commands as a user meets them: one JSON line at the end, and runs that survive `kill -9`."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import killed_command
import numpy as np
import pytest
from command_line import TINY, contents, headline

from experiments.commands import check_least, check_seed, parse
from experiments.recipes.__main__ import main
from recipe_jax.huggingface import load_model
from recipe_jax.training.tracker import read_metrics

# So large that all recipes of the sample share one padded size: one compilation of the step.
ONE_SIZE = ["--batch-size", "96"]


@pytest.mark.parametrize("model", ["generator", "amounts", "mean-amounts"])
def test_two_steps_train_a_model_that_can_be_loaded(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--model", model, "--steps", "2", "--run", tmp_path / "run"]
    printed = headline(capsys, "train", *arguments, *TINY, *ONE_SIZE)
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


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["bake"]) == 2
    assert "unknown command 'bake'" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Oven:
    degrees: int = 180

    def __post_init__(self):
        if self.degrees > 300:
            raise ValueError(f"degrees={self.degrees} must be at most 300")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baking:
    """Flags with rules of three kinds: a value's, a value's that is made of them, and a check's."""

    oven: Oven = Oven()
    preheat: int = 180
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self):
        _ = Oven(self.preheat)
        check_least(self, minutes=1)
        check_seed(self.seed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--oven.degrees 301", "degrees=301 must be at most 300"),
        ("--preheat 302", "degrees=302 must be at most 300"),
        ("--minutes 0.5", "--minutes 0.5 must be at least 1"),
        ("--minutes nan", "--minutes nan must be at least 1"),
        ("--minutes inf", "--minutes inf must be finite"),
        ("--seed -1", f"--seed -1 must be from 0 to {2**63 - 1}"),
    ],
)
def test_a_rule_of_the_flags_is_one_line_wherever_it_stands(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ValueError) as caught:
        parse(Baking, arguments.split(), "bake", None)
    assert str(caught.value) == message
    assert capsys.readouterr().err == ""
    assert parse(Baking, [], "bake", None) == Baking()


def test_a_flag_that_cannot_be_read_is_the_parsers_to_explain(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit, match="2"):
        parse(Baking, ["--preheat", "warm"], "bake", None)
    assert "warm" in capsys.readouterr().err


def test_killed_at_a_random_step_a_run_ends_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Only what is killed needs a process of its own; it has the devices of this one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--steps", "12", "--evaluate-every", "4", "--seed", "5", *TINY, *ONE_SIZE]
    step = str(random.randrange(2, 13))
    program = [sys.executable, killed_command.__file__, step]
    dead = subprocess.run(
        [*program, "train", "--run", str(killed), *flags],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert not (killed / "model").exists()
    for run in (killed, whole):
        headline(capsys, "train", "--run", run, *flags)
    resumed, uninterrupted = (contents(run / "model") for run in (killed, whole))
    assert resumed["model.safetensors"] == uninterrupted["model.safetensors"], step
    validations = [
        [(row["step"], row["mrr"]) for row in read_metrics(path) if row["split"] == "validation"]
        for path in (killed / "metrics.jsonl", whole / "metrics.jsonl")
    ]
    assert validations[0] == validations[1], step
    assert [at for at, _ in validations[0]] == [4, 8, 12]
