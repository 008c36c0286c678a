"""Raw recipes become a prepared folder, whole or not at all."""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nltk.data
import numpy as np
import polars as pl
import pytest

from recipe_jax.data import prepare as prepare_module
from recipe_jax.data.files import DataError
from recipe_jax.data.foods import read_foods
from recipe_jax.data.ingredient_lines import TAGGER, IngredientLine, Measure
from recipe_jax.data.prepare import PrepareReport, prepare
from recipe_jax.data.recipes import read_recipe_sets, split_of

CUP = Measure(quantity=1.0, unit="cup")
LINES = {
    "Dough:": IngredientLine(kind="heading"),
    "1 cup flour": IngredientLine(kind="ingredient", names=("flour",), measures=(CUP,)),
    "1 cup moondust": IngredientLine(kind="ingredient", names=("moondust",), measures=(CUP,)),
    "salt": IngredientLine(kind="ingredient", names=("salt",)),
    "wooden skewers": IngredientLine(kind="equipment"),
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the parser, which needs a tagger that not every machine has."""

    def parse(lines: Sequence[str], **_: object) -> Mapping[str, IngredientLine]:
        return {line: LINES[line] for line in lines}

    monkeypatch.setattr(prepare_module, "parse_lines", parse)
    monkeypatch.setattr(prepare_module, "require_tagger", lambda: None)


def _recipes(tmp_path: Path, *ingredients: Sequence[str]) -> Path:
    path = tmp_path / "recipes.jsonl"
    rows = [
        {"id": f"r{i}", "title": f"Dish {i}", "source": "home", "ingredients": list(lines)}
        for i, lines in enumerate(ingredients)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("parsed")
def test_writes_the_prepared_folder(tmp_path: Path):
    path = _recipes(tmp_path, ["Dough:", "1 cup flour", "salt"], ["wooden skewers", "1 cup flour"])
    report = prepare(path, tmp_path / "out")
    recipes = pl.read_parquet(tmp_path / "out/recipes.parquet")
    assert recipes.rows() == [
        ("r0", "Dish 0", "home", split_of("r0"), 2),
        ("r1", "Dish 1", "home", split_of("r1"), 1),
    ]
    lines = pl.read_parquet(tmp_path / "out/ingredients.parquet")
    assert lines.rows() == [
        ("r0", 1, "flour", "flour", 20081, 125.0, "volume"),
        ("r0", 2, "salt", "salt", 2047, None, "no_amount"),
        ("r1", 1, "flour", "flour", 20081, 125.0, "volume"),
    ]
    assert lines.schema == prepare_module.LINE_SCHEMA
    assert (report.num_recipes, report.num_lines, report.num_distinct) == (2, 3, 4)
    record = json.loads((tmp_path / "out/prepare.json").read_text())
    assert record["num_lines"] == 3 and record["config"]["limit"] is None


@pytest.mark.usefixtures("parsed")
def test_what_is_written_can_be_read_back(tmp_path: Path):
    prepare(_recipes(tmp_path, ["1 cup flour", "salt", "1 cup flour"]), tmp_path / "out")
    foods = read_foods()
    sets = read_recipe_sets(tmp_path / "out", foods.names)
    assert [foods.names[i] for i in sets.foods_of(0)] == ["flour", "salt"]
    np.testing.assert_array_equal(sets.grams_of(0), [250.0, np.nan])
    assert read_foods(tmp_path / "out/foods.parquet").names == foods.names
    with np.load(tmp_path / "out/composition.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) > 0


@pytest.mark.usefixtures("parsed")
def test_the_report_counts_lines_not_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = _recipes(tmp_path, ["1 cup flour"] * 4 + ["salt"], ["1 cup moondust", "1 cup flour"])
    report = prepare(path, tmp_path / "out")
    assert report.lines_with_food == pytest.approx(6 / 7)
    assert report.lines_with_grams == pytest.approx(5 / 7)
    assert report.recipes_read == 0.5
    assert report.methods == {"volume": 5}
    assert report.failures == {"no_amount": 1, "no_food": 1}
    printed = capsys.readouterr()
    assert printed.out == "" and "no amount" in printed.err


@pytest.mark.usefixtures("parsed")
def test_limit(tmp_path: Path):
    path = _recipes(tmp_path, ["salt"], ["salt"], ["salt"])
    assert prepare(path, tmp_path / "out", limit=2).num_recipes == 2


@pytest.mark.usefixtures("parsed")
def test_a_rare_empty_recipe_is_left_out(tmp_path: Path):
    path = _recipes(tmp_path, *([["salt"]] * 150), [])
    report = prepare(path, tmp_path / "out")
    assert (report.num_recipes, report.num_empty) == (150, 1)


@pytest.mark.usefixtures("parsed")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["salt"], []], r"row 2: ingredients=\[\]: 1 of 2 recipes are empty"),
        ([], "holds no recipe"),
    ],
)
def test_empty_input_is_refused_and_leaves_nothing(
    tmp_path: Path, rows: list[list[str]], message: str
):
    with pytest.raises(DataError, match=message):
        prepare(_recipes(tmp_path, *rows), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("parsed")
def test_a_full_disk_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, out = _recipes(tmp_path, ["salt"]), tmp_path / "out"
    prepare(path, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepare_module, "write_foods", no_space)
    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device\)"):
        prepare(_recipes(tmp_path, ["1 cup flour"]), out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.usefixtures("parsed")
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/out: cannot be written"):
        prepare(_recipes(tmp_path, ["salt"]), tmp_path / "file/out")


@pytest.mark.usefixtures("parsed")
def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read_only(*_: object, **__: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # By hand: the super-user may write to a folder whatever its mode says.
    monkeypatch.setattr(prepare_module.tempfile, "mkdtemp", read_only)
    with pytest.raises(DataError, match=r"out: cannot be written \(Read-only file system\)"):
        prepare(_recipes(tmp_path, ["salt"]), tmp_path / "out")


def _has_tagger() -> bool:
    try:
        nltk.data.find(f"taggers/{TAGGER}/{TAGGER}.weights.json")
    except LookupError:
        return False
    return True


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[PrepareReport, Path]:
    if not _has_tagger():
        pytest.skip(f"NLTK has no {TAGGER}")
    out = tmp_path_factory.mktemp("prepared")
    path = Path(os.environ["RECIPE_JAX_DATA"]) / "recipes/recipes.jsonl.zst"
    # In a process of its own: the peak of this one is that of all tests before.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        return own.submit(prepare, path, out, limit=300, processes=2).result(), out


@pytest.mark.real_data
def test_real_recipes_reach_the_yield(real: tuple[PrepareReport, Path]):
    report, _ = real
    assert report.num_recipes == 300
    assert report.lines_with_food >= 0.97
    assert report.lines_with_grams >= 0.91
    assert report.recipes_read >= 0.85
    assert report.peak_bytes < 4 << 30


@pytest.mark.real_data
def test_real_recipes_agree_with_the_reference(real: tuple[PrepareReport, Path]):
    lines = pl.read_parquet(real[1] / "ingredients.parquet")
    path = Path(os.environ["RECIPE_JAX_DATA"]) / "recipes/reference_mapping.parquet"
    reference = (
        pl.read_parquet(path, columns=["recipe_id", "line", "ndb", "grams"])
        .filter(pl.col("recipe_id").is_in(lines["recipe_id"].unique()))
        .drop_nulls("ndb")
        .with_columns(pl.col("line").cast(pl.Int32), pl.col("ndb").cast(pl.Int32))
        .unique(["recipe_id", "line"], keep="first", maintain_order=True)
    )
    same = reference.join(lines, on=["recipe_id", "line", "ndb"], suffix="_ours")
    assert len(same) / len(reference) >= 0.92
    weighed = same.drop_nulls("grams")
    near = (pl.col("grams_ours") - pl.col("grams")).abs() <= 0.25 * pl.col("grams")
    assert weighed.select(near.fill_null(False).mean()).item() >= 0.88
