"""Tables to classes: the command end to end, and every table that it refuses."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import contents
from sklearn.linear_model import LogisticRegression

from experiments import classify
from experiments.classify import main, score, shuffled_batches
from experiments.labelled_tables import (
    MAX_DEVIATIONS,
    digits_table,
    make_dataset,
    read_csv,
    split_rows,
)
from recipe_jax.huggingface import load_module
from recipe_jax.models.feed_forward_network import ClassificationBatch

HEADER = ["length", "width", "species"]
NUM_ROWS = 60
SMALL = ["--hidden-dims", "8", "--evaluate-every", "1", "--batch-size", "16", "--no-progress"]


def flowers() -> list[list[str]]:
    """A header, then rows of two species, written as a CSV file has them."""
    rng = np.random.default_rng(0)
    rows = [
        [f"{1 + kind + rng.normal():.3f}", f"{100 * rng.normal():.1f}", ("rose", "aster")[kind]]
        for kind in rng.integers(2, size=NUM_ROWS)
    ]
    return [list(HEADER), *rows]


def written(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def headline(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert command(*arguments) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refused command prints."""
    assert command(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1, printed.err
    return printed.err.strip()


# The command.


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tables") / "flowers.csv", flowers())


def arguments(table: Path, run: Path) -> list[object]:
    return ["--csv", table, "--label", "species", "--run", run, "--steps", "2", *SMALL]


@pytest.fixture(scope="module")
def finished(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert command(*arguments(table, run)) == 0
    return run


def test_a_run_leaves_its_scores_beside_the_baselines(
    table: Path, finished: Path, capsys: pytest.CaptureFixture[str]
):
    printed = headline(capsys, *arguments(table, finished))
    record = json.loads((finished / "record.json").read_text())
    assert record["command"] == (
        "python -m experiments.classify --csv DIR/flowers.csv --label species --run RUN --steps 2 "
        "--hidden-dims 8 --batch-size 16 --evaluate-every 1"
    )
    assert record["num_rows"] == {"training": 42, "validation": 9, "test": 9}
    assert printed["split"] == "test" and printed["step"] == 2
    for scores in (printed, record, *printed["baselines"].values()):
        low, high = scores["accuracy_interval"]
        assert scores["n"] == 9 and 0 <= low <= scores["accuracy"] <= high <= 1
    assert set(printed["baselines"]) == {"logistic_regression", "majority_class"}
    assert printed["baselines"] == record["baselines"]


def test_the_baselines_are_scikit_learns_on_the_same_rows(
    table: Path, finished: Path, capsys: pytest.CaptureFixture[str]
):
    printed = headline(capsys, *arguments(table, finished))["baselines"]
    splits = make_dataset(read_csv(table, "species")).splits
    training, test = splits["training"], splits["test"]
    regression = LogisticRegression().fit(training.features, training.labels)
    expected = regression.score(test.features, test.labels)
    assert printed["logistic_regression"]["accuracy"] == pytest.approx(expected)
    share = (training.labels == 1).mean()
    nats = np.where(test.labels == 1, -np.log(share), -np.log(1 - share)).mean()
    assert printed["majority_class"]["nats"] == pytest.approx(nats)
    assert printed["majority_class"]["accuracy"] == pytest.approx(
        (test.labels == (share > 0.5)).mean()
    )


def test_the_scores_are_those_of_the_best_checkpoint(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Steps that are far too long make every validation worse than the first."""
    run = tmp_path / "run"
    flags = [*arguments(table, run), "--learning-rate", "10", "--split", "validation"]
    printed = headline(capsys, *flags)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = min((row for row in rows if row["split"] == "validation"), key=lambda row: row["nats"])
    assert printed["best_step"] == best["step"] < printed["step"]
    assert printed["nats"] == pytest.approx(best["nats"], rel=1e-6)
    assert printed["accuracy"] == pytest.approx(best["accuracy"])


def test_the_model_folder_standardises_and_classifies_as_the_run_did(table: Path, finished: Path):
    model = load_module(finished / "model")
    inputs = model.config["inputs"]
    assert inputs["features"] == ["length", "width"] and inputs["classes"] == ["aster", "rose"]
    known = read_csv(table, "species")
    rows = split_rows(known.labels)["training"]
    deviations = (known.features[rows] - inputs["mean"]) / inputs["deviation"]
    np.testing.assert_allclose(deviations.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(deviations.std(axis=0), 1, rtol=1e-12)
    training = make_dataset(known).splits["training"]
    cut = np.clip(deviations, -inputs["max_deviations"], inputs["max_deviations"])
    np.testing.assert_allclose(training.features, cut, rtol=1e-6)
    test = make_dataset(known).splits["test"]
    predicted = model.fn.bind(model.params).predict(jnp.asarray(test.features))
    record = json.loads((finished / "record.json").read_text())
    assert record["accuracy"] == pytest.approx(np.mean(predicted == test.labels))


def test_another_seed_is_another_model_on_the_same_split(
    table: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = headline(capsys, *arguments(table, finished))
    other = headline(capsys, *arguments(table, tmp_path / "run"), "--seed", "1")
    assert other["nats"] != first["nats"]
    assert other["baselines"] == first["baselines"]


def test_an_interrupted_run_goes_on_to_the_same_scores(
    table: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "interrupted"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints" / "2")
    assert (run / "checkpoints" / "1").is_dir()
    resumed = headline(capsys, *arguments(table, run))
    uninterrupted = headline(capsys, *arguments(table, finished))
    for name in ("step", "best_step", "nats", "accuracy"):
        assert resumed[name] == uninterrupted[name]


def test_a_run_of_another_table_is_not_trained_further(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = flowers()
    rows[7][0] = "3.21"
    other, before = written(tmp_path / "flowers.csv", rows), contents(finished)
    assert "this folder holds a run with data=" in refused(capsys, *arguments(other, finished))
    assert contents(finished) == before


def test_without_a_table_it_learns_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = ["--steps", "30", "--hidden-dims", "32", "--learning-rate", "0.01", "--no-progress"]
    printed = headline(capsys, "--run", tmp_path / "run", *few, "--split", "validation")
    assert printed["n"] == 270
    # One in ten is chance, and 30 steps are three epochs.
    assert printed["accuracy"] > 0.8
    assert printed["baselines"]["logistic_regression"]["accuracy"] > 0.9
    assert printed["baselines"]["majority_class"]["accuracy"] < 0.2


# Its parts.


def test_the_split_has_every_row_once_and_every_class_in_training():
    rng = np.random.default_rng(0)
    for num_classes in (2, 3, 10, 100):
        labels = np.repeat(np.arange(num_classes, dtype=np.int32), 2 + rng.integers(4))
        splits = split_rows(rng.permutation(labels))
        assert sorted(np.concatenate(list(splits.values()))) == list(range(len(labels)))
    # Pairs are the hardest: one row of each must be in training wherever the pair falls.
    for shift in range(2):
        labels = np.array([0] * (2 + shift) + [c for c in range(1, 60) for _ in range(2)], np.int32)
        assert len(set(labels[split_rows(labels)["training"]])) == 60


def test_the_split_has_its_shares_of_every_class_and_is_always_the_same():
    labels = np.random.default_rng(1).choice(3, size=2000, p=[0.7, 0.2, 0.1]).astype(np.int32)
    splits = split_rows(labels)
    for split, share in (("training", 0.7), ("validation", 0.15), ("test", 0.15)):
        for label in range(3):
            assert (labels[splits[split]] == label).sum() == pytest.approx(
                share * (labels == label).sum(), abs=4
            )
    again = split_rows(labels.copy())
    assert all((splits[split] == again[split]).all() for split in splits)
    # Within a class the rows are chosen by chance: a file in order of time is no exception.
    held_out = np.sort(split_rows(np.zeros(2000, np.int32))["test"])
    assert len(np.unique(np.diff(held_out))) > 10


def test_no_statistic_of_held_out_rows_reaches_the_inputs():
    digits = digits_table()
    held_out = np.concatenate([split_rows(digits.labels)[part] for part in ("validation", "test")])
    changed = digits.features.copy()
    changed[held_out] = 1e30
    data, other = make_dataset(digits), make_dataset(digits._replace(features=changed))
    assert (data.mean == other.mean).all() and (data.deviation == other.deviation).all()
    assert (data.splits["training"].features == other.splits["training"].features).all()
    # However wild a cell is, the model reads a bounded number.
    assert (other.splits["test"].features == MAX_DEVIATIONS).all()


def test_every_epoch_has_each_row_once_in_another_order():
    rows = ClassificationBatch(np.arange(12, dtype=np.float32)[:, None], np.arange(12) % 2)
    stream = shuffled_batches(rows, batch_size=4, seed=0)
    epochs = [np.concatenate([next(stream).features[:, 0] for _ in range(3)]) for _ in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
    other = next(shuffled_batches(rows, batch_size=12, seed=1)).features[:, 0]
    assert (other != epochs[0]).any()
    batch = next(shuffled_batches(rows, batch_size=100, seed=0))
    assert len(batch.labels) == 12 and (batch.labels == batch.features[:, 0] % 2).all()


def test_a_probability_of_zero_costs_a_finite_number_of_nats():
    nats, correct = score(np.array([[0.0, 1.0], [0.25, 0.75]]), np.array([0, 1], np.int32))
    np.testing.assert_allclose(nats, [-np.log(np.finfo(np.float32).tiny), -np.log(0.75)])
    assert correct.tolist() == [0.0, 1.0]


def test_tables_are_read_as_they_are_written(tmp_path: Path):
    path = tmp_path / "table.csv"
    body = "".join(f'{i}, "{10 - i % 3}",{i / 2:.1e}\n' for i in range(12))
    path.write_text(f"\ufeffx, grade ,y\n\n{body},,\n", encoding="utf-8")
    table = read_csv(path, "grade")
    assert table.names == ("x", "y") and table.classes == ("8", "9", "10")
    assert table.features.tolist() == [[i, i / 2] for i in range(12)]
    assert table.labels.tolist() == [2 - i % 3 for i in range(12)]


# Bad input.


def no_rows(rows: list[list[str]]) -> list[list[str]]:
    return rows[:1]


def nothing(rows: list[list[str]]) -> list[list[str]]:
    return rows[:0]


def few_rows(rows: list[list[str]]) -> list[list[str]]:
    return rows[:10]


def with_cell(row: int, column: int, text: str) -> Callable[[list[list[str]]], list[list[str]]]:
    def change(rows: list[list[str]]) -> list[list[str]]:
        rows[row - 1][column - 1] = text
        return rows

    return change


def short_row(rows: list[list[str]]) -> list[list[str]]:
    return [*rows[:4], rows[4][:2], *rows[5:]]


def one_class(rows: list[list[str]]) -> list[list[str]]:
    return [rows[0], *([*row[:2], "rose"] for row in rows[1:])]


def labels_alone(rows: list[list[str]]) -> list[list[str]]:
    return [row[2:] for row in rows]


NUMBER = "must be a number of at most 1e+30: fill it in, or leave out the row or the column"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nothing, "row 1 is empty, must name the columns"),
        (no_rows, "has 0 rows below the header, must have 10 or more"),
        (few_rows, "has 9 rows below the header, must have 10 or more"),
        (short_row, "row 5 has 2 cells, must have 3 as the header"),
        (with_cell(4, 1, "tall"), f"row 4, column 'length': value 'tall' {NUMBER}"),
        (with_cell(61, 2, ""), f"row 61, column 'width': value '' {NUMBER}"),
        (with_cell(9, 1, "NaN"), f"row 9, column 'length': value 'NaN' {NUMBER}"),
        (with_cell(9, 1, "inf"), f"row 9, column 'length': value 'inf' {NUMBER}"),
        (with_cell(9, 1, "-1.8e308"), f"row 9, column 'length': value '-1.8e308' {NUMBER}"),
        (with_cell(3, 3, ""), "row 3, column 'species': value '' must be a class"),
        (
            with_cell(8, 3, "tulip"),
            "row 8, column 'species': value 'tulip' is the only row of its class, which must have "
            "2 or more: one row cannot be learned and be held out",
        ),
        (one_class, "column 'species': value 'rose' is in every row, there must be 2 classes or"),
        (with_cell(1, 2, "length"), "row 1, column 2: value 'length' already names column 1"),
        (with_cell(1, 1, " "), "row 1, column 1: value '' must be a name; a column of row numbers"),
        (
            with_cell(1, 3, "kind"),
            "row 1: --label 'species' is none of its 3 columns; the nearest: kind, ",
        ),
        (labels_alone, "row 1: there must be a column of numbers beside 'species'"),
    ],
)
def test_a_bad_table_is_refused_by_row_column_value_and_rule(
    change: Callable[[list[list[str]]], list[list[str]]],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    path = written(tmp_path / "bad.csv", change(flowers()))
    line = refused(capsys, *arguments(path, tmp_path / "run"))
    assert line.startswith(f"classify: {path}: {message}")
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    missing, binary = tmp_path / "missing.csv", tmp_path / "binary.csv"
    binary.write_bytes(b"length,species\n\xff\xfe,rose\n")
    for path, reason in (
        (missing, "cannot be read (No such file or directory)"),
        (tmp_path, "cannot be read (Is a directory)"),
        (binary, "must be UTF-8 text, is not (invalid start byte)"),
    ):
        assert refused(capsys, *arguments(path, tmp_path / "run")) == f"classify: {path}: {reason}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--csv", "x.csv"], "--csv needs --label; without both the table is the digits"),
        (["--label", "x"], "--label needs --csv; without both the table is the digits"),
        (["--batch-size", "0"], "batch_size=0 must be above 0"),
        (["--learning-rate", "nan"], "learning_rate=nan must be above 0"),
        (["--weight-decay", "-1"], "weight_decay=-1.0 must be at least 0"),
        (["--seed", "-1"], "seed=-1 must be at least 0"),
        (["--steps", "0"], "num_steps=0 must be at least 1"),
        (["--hidden-dims", "8", "0"], "hidden_dims=(8, 0) must all be at least 1"),
        (["--activation", "swiglu"], "activation='swiglu' is a gated unit, must be one of identi"),
        (["--dropout", "1.5"], "dropout_rate=1.5 must be at least 0 and below 1"),
    ],
)
def test_a_flag_that_breaks_a_rule_is_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, *flags, "--run", tmp_path / "run")
    assert line.startswith(f"classify: {message}")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written_is_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("a file where a folder should be")
    line = refused(capsys, *arguments(table, tmp_path / "file" / "run"))
    assert f"{tmp_path / 'file' / 'run'}: cannot write (Not a directory)" in line


def test_the_help_says_what_the_flags_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "python -m experiments.classify" in printed and "--hidden-dims" in printed
    assert classify.__doc__ is not None
