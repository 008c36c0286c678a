"""Tables of numbers with one column of classes: read, checked, split and standardised."""

import csv
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from recipe_jax.models.feed_forward_network import ClassificationBatch

Split: TypeAlias = Literal["training", "validation", "test"]

PERIOD = 20
VALIDATION_PLACES = (1, 8, 14)
TEST_PLACES = (4, 11, 18)
"""Of every `PERIOD` rows; no two of both are neighbours, the last and the first included."""

MIN_ROWS = 10
LARGEST = 1e30
"""A number beyond it stands for a missing value more often than for a measurement."""

MAX_DEVIATIONS = 5.0
"""Standardised features are cut off here: a column that is nearly constant in training would
otherwise decide a row alone."""


class Table(NamedTuple):
    """Rows of numbers with their classes.

    Attributes:
        features: one column per name.
        labels: indices into `classes`.
        names: of the columns.
        classes: the labels as they were written, in order.
    """

    features: Float64[np.ndarray, "n f"]
    labels: Int32[np.ndarray, "n"]
    names: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Differs where a number, a class or a name differs."""
        digest = hashlib.sha256(repr((self.names, self.classes)).encode())
        digest.update(self.features.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]


class Dataset(NamedTuple):
    """A table that is ready for a model.

    Attributes:
        table: as it was read.
        splits: its standardised rows, by part.
        mean: of each column's training rows.
        deviation: of each column's training rows; 1 for a column that is constant there.
    """

    table: Table
    splits: dict[Split, ClassificationBatch]
    mean: Float64[np.ndarray, "f"]
    deviation: Float64[np.ndarray, "f"]


def digits_table() -> Table:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels each (Alpaydin and Kaynak 1998).

    Their writers are not named, so that one writer's digits lie in several parts of a split.
    """
    digits: Any = load_digits()
    return Table(
        features=digits.data.astype(np.float64),
        labels=digits.target.astype(np.int32),
        names=tuple(digits.feature_names),
        classes=tuple(str(digit) for digit in digits.target_names),
    )


def read_csv(path: Path, label: str) -> Table:
    """Read a table; rows are counted as a spreadsheet does, the header being row 1.

    Args:
        path: UTF-8 text with commas; rows without any text are skipped.
        label: the column of the classes, which may be any text; all others are features.

    Raises:
        ValueError: naming file, row, column, value and rule.
    """
    header, rows = _read_cells(path)
    label_place = _label_place(path, header, label)
    labels = {row: cells[label_place] for row, cells in rows.items()}
    _check_labels(path, label, labels)
    classes = _ordered(set(labels.values()))
    of_class = {text: index for index, text in enumerate(classes)}
    places = [place for place in range(len(header)) if place != label_place]
    features = [
        [_number(cells[place], path, row, header[place]) for place in places]
        for row, cells in rows.items()
    ]
    return Table(
        features=np.array(features, np.float64),
        labels=np.array([of_class[text] for text in labels.values()], np.int32),
        names=tuple(header[place] for place in places),
        classes=classes,
    )


def split_rows(labels: Int32[np.ndarray, "n"]) -> dict[Split, Int64[np.ndarray, "rows"]]:
    """Row numbers of each part: 70, 15 and 15 of 100, of every class about as many.

    Rows are laid out class by class, in random order within each, and each part takes its places of
    every period.  As no two held-out places are neighbours, a class of two rows is in training.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    laid_out = shuffled[np.argsort(labels[shuffled], kind="stable")]
    place = np.arange(len(labels)) % PERIOD
    in_validation, in_test = np.isin(place, VALIDATION_PLACES), np.isin(place, TEST_PLACES)
    return {
        "training": laid_out[~(in_validation | in_test)],
        "validation": laid_out[in_validation],
        "test": laid_out[in_test],
    }


def make_dataset(table: Table) -> Dataset:
    """Split the table and standardise its columns by the mean and deviation of training rows."""
    rows = split_rows(table.labels)
    scaler = StandardScaler().fit(table.features[rows["training"]])
    mean, deviation = np.asarray(scaler.mean_), np.asarray(scaler.scale_)

    def batch(chosen: Int64[np.ndarray, "rows"]) -> ClassificationBatch:
        features = standardise(table.features[chosen], mean, deviation)
        return ClassificationBatch(features, table.labels[chosen])

    splits: dict[Split, ClassificationBatch] = {
        split: batch(chosen) for split, chosen in rows.items()
    }
    return Dataset(table, splits, mean, deviation)


def standardise(
    features: Float64[np.ndarray, "n f"],
    mean: Float64[np.ndarray, "f"],
    deviation: Float64[np.ndarray, "f"],
) -> Float32[np.ndarray, "n f"]:
    """Deviations from the mean, cut off at `MAX_DEVIATIONS`."""
    cut = np.clip((features - mean) / deviation, -MAX_DEVIATIONS, MAX_DEVIATIONS)
    return cut.astype(np.float32)


def _read_cells(path: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The header, and the cells of each row that has text by the row's number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            lines = [[cell.strip() for cell in cells] for cells in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 text, is not ({error.reason})") from error
    except (csv.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read ({reason})") from error
    rows = {row: cells for row, cells in enumerate(lines, start=1) if any(cells)}
    if 1 not in rows:
        raise ValueError(f"{path}: row 1 is empty, must name the columns")
    header = rows.pop(1)
    for row, cells in rows.items():
        if len(cells) != len(header):
            raise ValueError(
                f"{path}: row {row} has {len(cells)} cells, must have {len(header)} as the header"
            )
    if len(rows) < MIN_ROWS:
        raise ValueError(
            f"{path}: has {len(rows)} rows below the header, must have {MIN_ROWS} or more"
        )
    return header, rows


def _label_place(path: Path, header: Sequence[str], label: str) -> int:
    """Where the label column stands in a header that names every column once."""
    for place, name in enumerate(header):
        where = f"{path}: row 1, column {place + 1}: value {name!r}"
        if not name:
            raise ValueError(f"{where} must be a name; a column of row numbers is to be left out")
        if name in header[:place]:
            raise ValueError(f"{where} already names column {header.index(name) + 1}")
    if label not in header:
        nearest = ", ".join(difflib.get_close_matches(label, header, n=5, cutoff=0.0))
        raise ValueError(
            f"{path}: row 1: --label {label!r} is none of its {len(header)} columns; the nearest: "
            f"{nearest}"
        )
    if len(header) == 1:
        raise ValueError(f"{path}: row 1: there must be a column of numbers beside {label!r}")
    return header.index(label)


def _check_labels(path: Path, column: str, labels: Mapping[int, str]) -> None:
    """Refuse labels, by row, that cannot be learned."""
    rows_of: dict[str, list[int]] = {}
    for row, text in labels.items():
        rows_of.setdefault(text, []).append(row)
    for text, rows in rows_of.items():
        where = f"{path}: row {rows[0]}, column {column!r}: value {text!r}"
        if not text:
            raise ValueError(f"{where} must be a class")
        if len(rows) == 1:
            raise ValueError(
                f"{where} is the only row of its class, which must have 2 or more: one row cannot "
                "be learned and be held out"
            )
    if len(rows_of) == 1:
        raise ValueError(
            f"{path}: column {column!r}: value {min(rows_of)!r} is in every row, there must be 2 "
            "classes or more"
        )


def _ordered(texts: set[str]) -> tuple[str, ...]:
    """Classes in the order of their numbers, where all are integers, else of their letters."""
    if all(text.removeprefix("-").isdecimal() for text in texts):
        return tuple(sorted(texts, key=lambda text: (int(text), text)))
    return tuple(sorted(texts))


def _number(text: str, path: Path, row: int, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not abs(value) <= LARGEST:
        raise ValueError(
            f"{path}: row {row}, column {column!r}: value {text[:40]!r} must be a number of at "
            f"most {LARGEST:g}: fill it in, or leave out the row or the column"
        )
    return value
