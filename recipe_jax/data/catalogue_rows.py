"""Rows of a catalogue file, JSON lines or parquet, each with its number."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe_jax.data.files import DataError
from recipe_jax.data.text_lines import parse_object, read_lines

_JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


def read_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with at least these fields, and their numbers from 1.

    Args:
        path: `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet`.
        fields: keys of each JSON object, or columns of the table; of a table only these are read.

    Raises:
        DataError: a file of another kind, missing or damaged, a row that is no JSON object or no
            UTF-8, or one without a field: the message names the row.
    """
    if path.name.endswith(_JSON_LINES):
        for row, text in read_lines(path):
            value = parse_object(text, f"{path}: row {row}")
            for field in fields:
                if field not in value:
                    raise DataError(
                        f"{path}: row {row}: field {field!r} is missing; it has {sorted(value)}"
                    )
            yield row, value
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path, fields)
    else:
        raise DataError(f"{path}: name must end in {', '.join(_JSON_LINES)} or .parquet")


def _parquet_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    for batch in _record_batches(path, fields):
        columns = [_values(path, batch, field, row) for field in fields]
        for values in zip(*columns, strict=True):
            row += 1
            yield row, dict(zip(fields, values, strict=True))


def _record_batches(path: Path, fields: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A few thousand rows at a time, so that a large table never lies in memory whole."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for field in fields:
                if field not in names:
                    raise DataError(f"{path}: column {field!r} is missing; it has {names}")
            yield from file.iter_batches(columns=list(fields), batch_size=1 << 13)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a whole parquet table ({reason})") from error


def _values(path: Path, batch: pa.RecordBatch, field: str, rows_before: int) -> list[Any]:
    column = batch.column(field)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # parquet's strings may be any bytes; here it says not which row's
        for row, value in enumerate(column, start=rows_before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: row {row}: {field}: byte {error.start} is "
                    f"{error.object[error.start]:#04x}, which is no UTF-8"
                ) from error
        raise
