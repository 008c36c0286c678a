"""Records name places as somebody else would write them, never as they are on this machine."""

import dataclasses
from pathlib import Path

import pytest

from experiments.record import command_line, place_of

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    text: Path = Path("stories.txt")
    model: Path | None = None
    data: Path | None = None
    run: Path = Path("runs/here")
    checkpoint: tuple[Path, ...] = ()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECIPE_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(ROOT)
    return tmp_path / "data"


def test_places_are_told_from_the_repository_or_the_data(data: Path):
    assert place_of(ROOT / "recipe_jax" / "assets") == "recipe_jax/assets"
    assert place_of(Path("runs/stories")) == "runs/stories"
    assert place_of(data / "a" / "b.txt") == "$RECIPE_JAX_DATA/a/b.txt"
    assert place_of(data) == "$RECIPE_JAX_DATA"
    assert place_of(data.parent / "elsewhere" / "b.txt") == "DIR/b.txt"
    assert place_of(Path("../b.txt")) == "DIR/b.txt"


def test_without_a_folder_of_data_only_the_repository_is_known(
    data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RECIPE_JAX_DATA")
    assert place_of(data / "b.txt") == "DIR/b.txt"
    assert place_of(ROOT / "README.md") == "README.md"


def test_a_recorded_command_holds_no_place_of_this_machine(data: Path, tmp_path: Path):
    outside = tmp_path / "mine"
    flags = Flags(
        text=data / "tiny" / "a.txt",
        model=outside / "tiny",
        data=outside,
        run=outside / "run",
        checkpoint=(ROOT / "runs" / "a", outside / "b"),
    )
    assert command_line("experiments.x train", flags) == (
        "python -m experiments.x train --text $RECIPE_JAX_DATA/tiny/a.txt --model DIR/tiny "
        "--data DIR --run RUN --checkpoint runs/a DIR/b"
    )
    inside = dataclasses.replace(flags, data=data / "prepared", model=None, checkpoint=())
    assert "--data $RECIPE_JAX_DATA/prepared" in command_line("experiments.x train", inside)
