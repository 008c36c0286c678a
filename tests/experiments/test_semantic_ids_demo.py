"""The made-up shop of the demo: users stay with a kind or a colour, and the commands read it."""

import json
from pathlib import Path

import pytest
from command_line import refused

from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.datasets import read_dataset
from experiments.semantic_ids.demo import COLOURS, KINDS, write_shop


def test_users_stay_with_a_kind_or_a_colour_and_the_seed_decides(tmp_path: Path):
    shop, users = write_shop(tmp_path / "a", seed=0)
    title = {
        row["id"]: row["title"] for row in map(json.loads, Path(shop).read_text().splitlines())
    }
    assert len(title) == len(set(title.values())) == 144
    for line in Path(users).read_text().splitlines():
        taken = [title[item] for item in line.split()[1:]]
        assert len(set(taken)) == len(taken) >= 4
        assert any(all(word in each for each in taken) for word in (*KINDS, *COLOURS))
    again = write_shop(tmp_path / "b", seed=0)
    assert Path(again[1]).read_bytes() == Path(users).read_bytes()
    assert Path(write_shop(tmp_path / "b", seed=1)[1]).read_bytes() != Path(users).read_bytes()
    assert len(read_dataset(users).split.test.targets) == 600


def test_no_time_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, "demo", "--run", tmp_path / "x", "--minutes", "0", main=main)
    assert "--minutes 0.0 must be above 0 and finite" in line and not (tmp_path / "x").exists()
