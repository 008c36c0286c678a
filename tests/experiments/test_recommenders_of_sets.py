"""Training recommenders on sets, in which nothing comes next."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import TINY, headline, refused

from experiments.semantic_ids.__main__ import main

GROUPS, GROUP = 4, 8
FEW = ["--batch-size", "8", "--max-items", "8", "--dropout", "0", "--steps", "150"]


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Users who take six or seven of the eight recipes of a group; returns codes of all recipes."""
    rng = np.random.default_rng(0)
    rows = [
        (user, f"r{user % GROUPS * GROUP + item}", True)
        for user in range(64)
        for item in rng.permutation(GROUP)[: rng.integers(6, 8)]
    ]
    (tmp_path / "interactions").mkdir()
    pl.DataFrame(rows, ["user_id", "recipe_id", "has_content"], orient="row").write_parquet(
        tmp_path / "interactions/mealrec_user_recipe.parquet"
    )
    monkeypatch.setenv("RECIPE_JAX_DATA", str(tmp_path))
    codes = tmp_path / "codes"
    codes.mkdir()
    items = np.arange(GROUPS * GROUP)
    # The second code is the group; the first says nothing of it.
    found = np.stack([items % GROUP, items // GROUP], axis=1).astype(np.int32)
    names = [f"r{item}" for item in items]
    np.savez(codes / "codes.npz", ids=names, codes=found, num_codes=[GROUP, GROUPS])
    return codes


@pytest.mark.parametrize("model", ["sasrec", "generative"])
def test_it_learns_what_goes_together(
    model: str, taken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--model", model, "--data", "mealrec", "--run", tmp_path / "run", *TINY, *FEW]
    flags += ["--learning-rate", "0.02", "--evaluate-every", "150"]
    flags += ["--codes", taken, "--encoder-layers", "1"] if model == "generative" else []
    found = headline(capsys, "train", *flags, main=main)
    # Two or three items of the group are not known; among all 32 five would find one in five.
    assert found["n"] == 64 and found["recall_at_5"] > 0.9
    history = ["r8", "r9", "r10", "r11", "r12"]
    answer = headline(
        capsys, "recommend", "--run", tmp_path / "run", "--history", *history, "--k", 3, main=main
    )
    assert set(answer["items"]) == {"r13", "r14", "r15"}


def test_places_in_sets_are_refused(
    taken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["train", "--data", "mealrec", "--run", tmp_path / "run", *TINY, *FEW]
    line = refused(capsys, *flags, "--positions", "rope", main=main)
    assert "--positions rope must be none: the data are sets, which have no order" in line
    flags += ["--model", "generative", "--codes", taken, "--positions", "learned"]
    line = refused(capsys, *flags, main=main)
    assert "--positions learned are of sasrec alone: take none, rope or alibi" in line
    assert not (tmp_path / "run").exists()
