"""Runs of one model of amounts become one model, or one line says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, headline, refused

from experiments.recipes.evaluate import load_checkpoint

TRAIN = ["train", "--model", "amounts", "--steps", "2", "--batch-size", "96", *TINY]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", autouse=True)
def _trained(runs: Path) -> None:
    from experiments.recipes.__main__ import main

    wider = ["--embed-dim", "24"]
    for name, more in {"a": [], "b": ["--seed", "1"], "wide": wider}.items():
        arguments = [*TRAIN, *more, "--run", str(runs / name)]
        assert main(arguments) == 0


def test_two_runs_become_one_calibrated_model(runs: Path, capsys: pytest.CaptureFixture[str]):
    out = runs / "both"
    printed = headline(capsys, "ensemble", "--checkpoint", runs / "a", runs / "b", "--run", out)
    assert printed["num_models"] == 2 and len(printed["alone"]) == 2
    worst = max(one["log_ratio_error"] for one in printed["alone"])
    assert printed["log_ratio_error"] < worst
    model, first = load_checkpoint(out), load_checkpoint(runs / "a")
    assert model.model_type == "amounts_ensemble"
    kept, alone = model.params["models"], first.params
    np.testing.assert_array_equal(kept["mean_weight"][0], alone["mean_weight"])
    # One factor for all scales of all models, found on validation recipes.
    moved = [
        np.asarray(kept["scale_bias"][i])
        - np.asarray(load_checkpoint(runs / name).params["scale_bias"])
        for i, name in enumerate("ab")
    ]
    assert np.ptp(np.concatenate(moved)) < 2e-3
    assert "mixture of 2 such models" in (out / "model" / "README.md").read_text()
    record = json.loads((out / "record.json").read_text())
    assert record["log_ratio_error"] == printed["log_ratio_error"]
    pantry = ["generate", "--pantry", "tomato", "basil", "--amounts", out]
    assert headline(capsys, *pantry)["recipes"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "--checkpoint names 1 models, must name 2 or more"),
        (["a", "wide"], "wide: is of another shape than"),
        (["a", "b", "a"], "a: is the same model as"),
        (["a", "nothing"], "nothing/config.json: no such file"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    names: list[str], message: str, runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    folders = [runs / name for name in names]
    out = tmp_path / "out"
    assert message in refused(capsys, "ensemble", "--checkpoint", *folders, "--run", out)
    assert not out.exists()
