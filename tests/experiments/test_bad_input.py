"""Bad input, as a user meets it: one clear line, exit code 2, no traceback, nothing lost."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from command_line import TINY, contents, headline, refused

from experiments.recipes import evaluate
from experiments.recipes.__main__ import main
from experiments.recipes.generate import PRETRAINED
from recipe_jax.data import prepare as preparing
from recipe_jax.data.ingredient_lines import IngredientLine, Measure
from recipe_jax.data.sample import write_sample
from recipe_jax.huggingface import load_model


@contextmanager
def full_disk(max_bytes: int = 2000) -> Iterator[None]:
    """The kernel itself refuses larger files; Python sees an OSError as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_sample(tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A place that nobody may write to: even the super-user can put nothing below a file."""
    (tmp_path / "file").write_text("a file where a folder should be")
    return tmp_path / "file" / "out"


# Raw recipes.


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the parser, which needs a tagger that not every machine has."""
    wheel = Measure(quantity=2.0, unit="wheel")
    line = IngredientLine(kind="ingredient", names=("onion",), measures=(wheel,))
    monkeypatch.setattr(preparing, "parse_lines", lambda lines, **_: dict.fromkeys(lines, line))
    monkeypatch.setattr(preparing, "require_tagger", lambda: None)


def raw_recipes(path: Path, second_row: str) -> Path:
    first = {"id": "toast", "title": "Toast", "ingredients": ["2 wheels onion"]}
    path.write_text(f"{json.dumps(first)}\n{second_row}\n")
    return path


@pytest.mark.usefixtures("parsed")
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "soup", "ingr', 'row 2: value=\'{"id": "soup", "ingr\' is not JSON'),
        ('{"id": "soup", "ingredients": "salt"}', "row 2: ingredients='salt' must be a list"),
        ('{"id": "soup", "ingredients": []}', "row 2: ingredients=[]: 1 of 2 recipes are empty"),
        ('{"id": "toast", "ingredients": ["salt"]}', "row 2: id='toast' occurred in row 1"),
    ],
)
def test_a_bad_row_is_named_and_the_old_folder_stays(
    row: str, message: str, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before, path = contents(prepared), raw_recipes(tmp_path / "raw.jsonl", row)
    line = refused(capsys, "prepare", "--recipes", path, "--out", prepared)
    assert line.startswith(f"prepare: {path}: ") and message in line
    assert contents(prepared) == before


@pytest.mark.usefixtures("parsed")
def test_an_unknown_unit_costs_the_grams_of_its_line_and_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Of 183,306 lines some will have one: it stops nothing, and the line is not lost."""
    path = raw_recipes(tmp_path / "raw.jsonl", '{"id": "soup", "ingredients": ["2 wheels"]}')
    printed = headline(capsys, "prepare", "--recipes", path, "--out", tmp_path / "out")
    assert printed["failures"] == {"no_unit": 2}
    lines = pl.read_parquet(tmp_path / "out" / "ingredients.parquet")
    assert lines.select("food", "grams", "method").rows() == [("onion", None, "no_unit:wheel")] * 2


# Prepared recipes.


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
    line = refused(capsys, "train", "--data", prepared, "--run", tmp_path / "run")
    assert "ingredients.parquet: recipe sample-" in line and "grams=" in line
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, "train", "--data", tmp_path / "nothing", "--run", tmp_path / "run")
    assert "no such file" in line
    assert not (tmp_path / "run").exists()


# A pantry.


def test_an_unknown_food_is_refused_with_the_nearest_names(capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, "generate", "--pantry", "tomatoe")
    assert "--pantry 'tomatoe' is no food of the vocabulary; the nearest: " in line
    assert "tomato" in line.partition("nearest: ")[2].split(", ")


def test_a_pantry_longer_than_the_model_allows_is_refused(capsys: pytest.CaptureFixture[str]):
    model = load_model(PRETRAINED / "generator")
    pantry = model.foods[: model.cfg.max_foods + 1]
    line = refused(capsys, "generate", "--max-foods", "40", "--pantry", *pantry)
    assert "--pantry names 26 foods, a recipe may hold 25" in line


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


# Models and checkpoints.


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    shutil.copytree(PRETRAINED / "generator", tmp_path / "model")
    return tmp_path / "model"


def rewrite_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_corrupted_model_is_refused(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    line = refused(capsys, "generate", "--pantry", "tomato", "--generator", model_folder)
    assert "model.safetensors: not a whole safetensors file" in line


def test_a_foreign_model_is_refused(model_folder: Path, capsys: pytest.CaptureFixture[str]):
    rewrite_config(model_folder, model_type="bert")
    line = refused(capsys, "generate", "--pantry", "tomato", "--generator", model_folder)
    assert "config.json: model_type='bert' must be one of" in line


def test_a_model_of_the_wrong_kind_is_refused(capsys: pytest.CaptureFixture[str]):
    arguments = ["--pantry", "tomato", "--generator", PRETRAINED / "amounts"]
    assert "must be an ingredient_generator" in refused(capsys, "generate", *arguments)


def test_a_model_of_other_foods_is_not_scored(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
):
    foods = json.loads((model_folder / "config.json").read_text())["foods"]
    rewrite_config(model_folder, foods=["moondust", *foods[1:]])
    line = refused(capsys, "evaluate", "--checkpoint", model_folder)
    assert f"{model_folder}: the model knows 507 foods, which are not the 507 of" in line


# A run.


def train_arguments(run: Path) -> list[object]:
    few = ["--steps", "2", "--evaluate-every", "1", "--batch-size", "96"]
    return ["train", "--run", run, *TINY, *few]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main([str(argument) for argument in train_arguments(run)]) == 0
    return run


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """The run as it was after its first step."""
    run = tmp_path / "interrupted"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "2")
    assert (run / "checkpoints" / "1").is_dir()
    return run


def test_a_full_disk_loses_no_checkpoint_and_the_same_command_goes_on(
    interrupted: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    saved = contents(interrupted / "checkpoints")
    usage = shutil.disk_usage(interrupted)._replace(free=100)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        line = refused(capsys, *train_arguments(interrupted))
    assert "No space left on device" in line and "the last good one is step 1" in line
    assert contents(interrupted / "checkpoints") == saved
    headline(capsys, *train_arguments(interrupted))
    resumed, uninterrupted = contents(interrupted / "model"), contents(finished / "model")
    assert resumed["model.safetensors"] == uninterrupted["model.safetensors"]


def test_a_damaged_checkpoint_is_not_trained_further(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
):
    (interrupted / "checkpoints" / "1" / "run" / "metadata").write_text('{"format"')
    before = contents(interrupted)
    line = refused(capsys, *train_arguments(interrupted))
    assert f"{interrupted / 'checkpoints' / '1'}: the checkpoint is damaged" in line
    assert contents(interrupted) == before


def test_a_run_of_another_configuration_is_not_trained_further(
    finished: Path, capsys: pytest.CaptureFixture[str]
):
    before = contents(finished)
    line = refused(capsys, *train_arguments(finished), "--learning-rate", "0.5")
    assert "config.json: this folder holds a run with learning_rate=0.003, not 0.5" in line
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("mesh", "message"),
    [("data=3,fsdp=5", "takes 15 device(s), but there are 8"), ("rows=8", "cannot read 'rows=8'")],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(
    mesh: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, "train", "--mesh", mesh, "--run", tmp_path / "run")
    assert f"--mesh {mesh!r}" in line and message in line
    assert not (tmp_path / "run").exists()


# Folders and disks that refuse.


def test_a_run_folder_that_cannot_be_written_is_refused(
    no_folder: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, *train_arguments(no_folder))
    assert f"{no_folder}: cannot write (Not a directory)" in line


@pytest.mark.usefixtures("parsed")
def test_a_folder_that_cannot_be_prepared_is_refused(
    no_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = raw_recipes(tmp_path / "raw.jsonl", "")
    line = refused(capsys, "prepare", "--recipes", path, "--out", no_folder)
    assert f"{no_folder}: cannot be written (Not a directory)" in line


@pytest.mark.usefixtures("parsed")
def test_a_full_disk_keeps_what_was_prepared_before(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before, path = contents(prepared), raw_recipes(tmp_path / "raw.jsonl", "")
    with full_disk():
        line = refused(capsys, "prepare", "--recipes", path, "--out", prepared)
    assert f"{prepared}: cannot be written" in line and os.strerror(errno.EFBIG) in line
    assert contents(prepared) == before


def test_a_model_is_not_published_below_a_file(no_folder: Path, capsys: pytest.CaptureFixture[str]):
    source = PRETRAINED / "amounts"
    line = refused(capsys, "publish", "--checkpoint", source, "--out", no_folder)
    assert str(no_folder) in line and "Not a directory" in line


def test_a_full_disk_keeps_the_model_that_was_published_before(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
):
    before = contents(model_folder)
    with full_disk():
        line = refused(
            capsys, "publish", "--checkpoint", PRETRAINED / "amounts", "--out", model_folder
        )
    assert os.strerror(errno.EFBIG) in line and "the folder is as it was" in line
    assert contents(model_folder) == before


def test_a_record_that_cannot_be_written_is_refused_before_the_work(
    no_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def work(*_: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(evaluate, "run", work)
    arguments = ["evaluate", "--checkpoint", PRETRAINED / "generator", "--record"]
    assert str(no_folder.parent) in refused(capsys, *arguments, no_folder)
    assert "is a folder" in refused(capsys, *arguments, no_folder.parent.parent)
