"""Lines of plain and compressed files, and what is refused by row."""

import gzip
from pathlib import Path

import pytest
import zstandard

from recipe_jax.data.files import DataError
from recipe_jax.data.text_lines import parse_object, read_lines

TEXT = "\ufeffone\n\n  \nthr\u00e9e\r\nfour".encode()


def compressed(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if name.endswith(".zst") else data


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.zst"])
def test_lines_come_with_their_numbers(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(compressed(name, TEXT))
    found = [(row, line.strip()) for row, line in read_lines(path)]
    assert found == [(1, "one"), (4, "thrée"), (5, "four")]


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_several_compressed_streams_in_a_row_are_one_file(tmp_path: Path, name: str):
    """As `cat` and parallel compressors write them; a line may begin in one and end in another."""
    path = tmp_path / name
    path.write_bytes(compressed(name, b"one\ntw") + compressed(name, b"o\nthree"))
    assert [line.strip() for _, line in read_lines(path)] == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.zst"])
def test_bytes_that_are_no_utf8_are_refused_by_row(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(compressed(name, b"one\ntwo\ncaf\xe9\nfour"))
    with pytest.raises(DataError, match=r": row 3: byte 3 is 0xe9, which is no UTF-8"):
        list(read_lines(path))


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
@pytest.mark.parametrize("cut", [0.5, 0.99])
def test_a_truncated_file_is_refused_after_its_last_row(tmp_path: Path, name: str, cut: float):
    data = compressed(name, b"".join(b"%d\n" % (i * 7919) for i in range(9000)))
    (tmp_path / name).write_bytes(data[: int(cut * len(data))])
    with pytest.raises(DataError, match=r": after row \d+: cannot be read") as caught:
        list(read_lines(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"plain text")
    with pytest.raises(DataError, match="after row 0: cannot be read"):
        list(read_lines(tmp_path / name))
    with pytest.raises(DataError, match="no such file"):
        list(read_lines(tmp_path / f"missing.{name}"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "here: value='{' is not JSON"),
        ("[1]", "here: must be a JSON object, is list"),
        ("[" * 100_000, r"here: value='\[+' is not JSON .maximum recursion depth"),
    ],
)
def test_only_objects_are_parsed(line: str, message: str):
    assert parse_object('{"a": 1}\n', "here") == {"a": 1}
    with pytest.raises(DataError, match=message):
        parse_object(line, "here")
