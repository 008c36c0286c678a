"""Downloads from a server on 127.0.0.1 that can be told to misbehave; no test needs a network."""

import dataclasses
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recipe_jax.data import downloading, sources
from recipe_jax.data.downloading import DownloadError, ResumingDownloader
from recipe_jax.data.sources import SOURCES, Source, SourceFile, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


@dataclasses.dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    stops_after: int | None = None  # bytes of a body, then the connection is cut
    cuts: int = 1  # how many times it is cut
    statuses: list[int] = dataclasses.field(default_factory=list)  # answered before any content
    ignores_range: bool = False
    chunked: bool = False
    ranges: list[str | None] = dataclasses.field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def do_GET(self) -> None:
        b = self.behaviour
        asked = self.headers.get("Range")
        b.ranges.append(asked)
        if b.statuses or self.path != "/food.bin":
            self.send_error(b.statuses.pop(0) if b.statuses else 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if b.ignores_range or (asked and self.headers.get("If-Range") != b.etag):
            start = 0
        if start >= len(b.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(b.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            whole = len(b.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if b.etag:
            self.send_header("ETag", b.etag)
        self.send_body(b.content[start:])

    def send_body(self, body: bytes) -> None:
        b = self.behaviour
        sent = body
        if b.stops_after is not None and b.cuts > 0:
            b.cuts -= 1
            sent = body[: b.stops_after]
            self.close_connection = True
        if b.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent))
            if sent == body:
                self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[Behaviour, str]]:
    behaviour = Behaviour()
    handler = type("H", (Handler,), {"behaviour": behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield behaviour, f"http://127.0.0.1:{httpd.server_port}/food.bin"
        httpd.shutdown()
        thread.join()


def table(url: str, sha256: str | None = None) -> tuple[Source, ...]:
    file = SourceFile(url=url, path="kitchen/food.bin", sha256=sha256)
    return (
        Source(name="food", description="d", licence="free to eat", citation="c", files=(file,)),
    )


def fetch_food(url: str, out: Path, *, sha256: str | None = None, attempts: int = 3) -> Path:
    (path,) = fetch(
        ["food"],
        out,
        sources=table(url, sha256),
        attempts=attempts,
        wait_seconds=0.0,
        show=lambda line: None,
    )
    return path


def files_in(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_prints_the_licence_before_the_first_request(server, tmp_path):
    behaviour, url = server
    lines: list[str] = []

    def show(line: str) -> None:
        assert behaviour.ranges == []
        lines.append(line)

    fetch(["food"], tmp_path, sources=table(url, SHA256), show=show)
    assert any("free to eat" in line for line in lines)
    assert len(behaviour.ranges) == 1


def test_fetches_once_and_leaves_nothing_else_behind(server, tmp_path):
    behaviour, url = server
    for _ in range(2):
        assert fetch_food(url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert len(behaviour.ranges) == 1
    assert files_in(tmp_path) == ["kitchen/food.bin"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_broken_connection_is_continued_where_it_broke(server, tmp_path, chunked):
    behaviour, url = server
    behaviour.stops_after, behaviour.cuts, behaviour.chunked = 100_000, 2, chunked
    assert fetch_food(url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    starts = [int(asked.split("=")[1].rstrip("-")) for asked in behaviour.ranges if asked]
    assert behaviour.ranges[0] is None and len(starts) == 2
    assert 0 < starts[0] < starts[1] <= 200_000
    assert files_in(tmp_path) == ["kitchen/food.bin"]


def test_giving_up_keeps_the_part_and_the_next_call_continues_it(server, tmp_path):
    behaviour, url = server
    behaviour.stops_after = 100_000
    with pytest.raises(DownloadError, match=r"after 1 attempts .*run the same command again"):
        fetch_food(url, tmp_path, sha256=SHA256, attempts=1)
    assert not (tmp_path / "kitchen/food.bin").exists()
    assert (tmp_path / "kitchen/food.bin.part").stat().st_size > 0
    assert fetch_food(url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert behaviour.ranges[1] is not None
    assert files_in(tmp_path) == ["kitchen/food.bin"]


def test_a_killed_download_continues(server, tmp_path):
    behaviour, url = server

    def killed(held: int, expected: int | None) -> None:
        raise KeyboardInterrupt

    partial = tmp_path / "kitchen/food.bin.part"
    partial.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        ResumingDownloader(partial=partial, on_progress=killed)(url, tmp_path / "unfinished")
    assert 0 < partial.stat().st_size < len(CONTENT)
    assert fetch_food(url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert behaviour.ranges[1] is not None


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path):
    behaviour, url = server
    behaviour.stops_after, behaviour.ignores_range = 100_000, True
    progress: list[tuple[int, int | None]] = []
    downloader = ResumingDownloader(
        partial=tmp_path / "part",
        wait_seconds=0.0,
        on_progress=lambda held, expected: progress.append((held, expected)),
    )
    downloader(url, tmp_path / "food.bin")
    assert (tmp_path / "food.bin").read_bytes() == CONTENT
    assert behaviour.ranges[1] is not None
    assert progress[-1] == (len(CONTENT), len(CONTENT))


def test_bytes_of_two_versions_are_never_joined(server, tmp_path):
    behaviour, url = server
    behaviour.stops_after = 100_000
    with pytest.raises(DownloadError):
        fetch_food(url, tmp_path, attempts=1)
    behaviour.content, behaviour.etag = OTHER, '"v2"'
    assert fetch_food(url, tmp_path).read_bytes() == OTHER


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_validator_every_attempt_starts_over(server, tmp_path, etag):
    behaviour, url = server
    behaviour.stops_after, behaviour.etag = 100_000, etag
    assert fetch_food(url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert behaviour.ranges == [None, None]


def test_a_part_that_is_already_whole_is_finished(server, tmp_path):
    behaviour, url = server
    partial = tmp_path / "kitchen/food.bin.part"
    partial.parent.mkdir()
    partial.write_bytes(CONTENT)
    Path(f"{partial}.json").write_text(f'{{"url": "{url}", "validator": "\\"v1\\""}}')
    assert fetch_food(url, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert behaviour.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_wrong_checksum_leaves_no_file_and_says_so(server, tmp_path):
    _, url = server
    with pytest.raises(DownloadError) as error:
        fetch_food(url, tmp_path, sha256="0" * 64)
    message = str(error.value)
    assert "\n" not in message and url in message and "0" * 64 in message
    assert files_in(tmp_path) == []


def test_a_damaged_file_is_replaced(server, tmp_path):
    _, url = server
    path = fetch_food(url, tmp_path, sha256=SHA256)
    path.write_bytes(b"damaged")
    assert fetch_food(url, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_an_unknown_checksum_is_recorded_and_holds_from_then_on(server, tmp_path):
    behaviour, url = server
    path = fetch_food(url, tmp_path)
    assert f'"kitchen/food.bin": "{SHA256}"' in (tmp_path / "checksums.json").read_text()
    path.write_bytes(b"damaged")
    behaviour.content = OTHER
    with pytest.raises(DownloadError, match=r"checksums\.json"):
        fetch_food(url, tmp_path)
    assert (
        path.read_bytes() == b"damaged"
    )  # the only copy is not lost for a file it cannot vouch for
    behaviour.content = CONTENT
    assert fetch_food(url, tmp_path).read_bytes() == CONTENT


def test_a_missing_file_is_one_line_and_not_asked_for_again(server, tmp_path):
    behaviour, url = server
    with pytest.raises(DownloadError) as error:
        fetch_food(url.replace("food.bin", "gone.bin"), tmp_path)
    message = str(error.value)
    assert "\n" not in message and "404" in message and "gone.bin" in message
    assert len(behaviour.ranges) == 1
    assert files_in(tmp_path) == []


def test_a_busy_server_is_asked_again_with_growing_pauses(server, tmp_path, monkeypatch):
    behaviour, url = server
    behaviour.statuses = [503, 429, 500]
    pauses: list[float] = []
    monkeypatch.setattr(downloading.time, "sleep", pauses.append)
    downloader = ResumingDownloader(partial=tmp_path / "part", wait_seconds=0.5)
    downloader(url, tmp_path / "food.bin")
    assert (tmp_path / "food.bin").read_bytes() == CONTENT
    assert pauses == [0.5, 1.0, 2.0]


def test_no_server_at_all_is_one_line(tmp_path):
    with pytest.raises(DownloadError) as error:
        fetch_food("http://127.0.0.1:9/food.bin", tmp_path, attempts=2)
    assert re.search(r"after 2 attempts \(.*refused", str(error.value))


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    _, url = server
    (tmp_path / "kitchen").write_text("a file where a folder should be")
    with pytest.raises(DownloadError, match=r"food\.bin: cannot be written"):
        fetch_food(url, tmp_path)


def test_a_full_disk_is_not_taken_for_a_broken_connection(server, tmp_path, monkeypatch):
    behaviour, url = server

    def full(held: int, expected: int | None) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ResumingDownloader(partial=tmp_path / "part", on_progress=full)(url, tmp_path / "food.bin")
    assert len(behaviour.ranges) == 1


def test_an_unknown_source_names_the_known_ones(tmp_path):
    with pytest.raises(DownloadError, match=r"'recipe' is unknown; there are recipes, composition"):
        fetch(["recipe"], tmp_path)


def test_the_table_is_pinned_and_complete():
    names = [source.name for source in SOURCES]
    paths = [file.path for source in SOURCES for file in source.files]
    assert len(set(names)) == len(names) and len(set(paths)) == len(paths)
    for source in SOURCES:
        assert source.licence and source.citation and source.files
        for file in source.files:
            assert file.url.startswith("https://")
            assert re.search(r"/[0-9a-f]{40}(/|$)", file.url) or file.sha256
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert not Path(file.path).is_absolute() and ".." not in Path(file.path).parts
    assert sources.find_sources(["recipes"])[0] is SOURCES[0]
