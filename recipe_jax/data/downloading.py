"""Resumable HTTP downloads: what has arrived stays beside the target until the rest follows."""

import dataclasses
import http.client
import json
import math
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from recipe_jax.data.files import DataError

_CHUNK_BYTES = 1 << 16
_GONE = (401, 403, 404, 410, 451)


class DownloadError(DataError):
    """A file could not be fetched.  The message is one line that names the URL and the way out."""


class _Interrupted(Exception):
    """The connection ended early or the server asked to come back: worth another attempt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumingDownloader:
    """A pooch downloader that survives broken connections and continues partial files.

    Bytes are appended to `partial`; `partial` with the suffix `.json` keeps the validator (a strong
    ETag, else Last-Modified) of the version they belong to.  A later attempt asks for the rest with
    Range and If-Range, so bytes of two versions are never joined; a server that ignores either
    sends everything and the file starts over.  Without a validator every attempt starts over.

    Attributes:
        partial: where unfinished bytes wait.  Survives a killed process.
        attempts: connections tried before giving up.
        wait_seconds: pause after the first failed attempt; doubles with each further one.
        timeout_seconds: longest silence of the server.
        on_progress: called with the bytes held and the bytes expected (None if unknown).
    """

    partial: Path
    attempts: int = 5
    wait_seconds: float = 1.0
    timeout_seconds: float = 60.0
    on_progress: Callable[[int, int | None], None] = lambda held, expected: None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts} must be at least 1")
        if not 0 <= self.wait_seconds < math.inf:
            raise ValueError(f"wait_seconds={self.wait_seconds} must be finite and not negative")

    def __call__(self, url: str, output_file: str | Path, pooch: object = None) -> None:
        """Fetch `url` and put it at `output_file`; the signature is pooch's.

        Args:
            url: http or https.
            output_file: path of the finished file; written only when every byte has arrived.
            pooch: the caller, which is of no use here.

        Raises:
            DownloadError: the server has no such file, or the attempts are used up.
            OSError: the file cannot be written.
        """
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.wait_seconds * 2 ** (attempt - 1))
            try:
                self._receive(url)
            except _Interrupted as interruption:
                reason = str(interruption)
                continue
            shutil.move(self.partial, output_file)
            self._validator_path.unlink(missing_ok=True)
            return
        raise DownloadError(
            f"{url}: no complete answer after {self.attempts} attempts ({reason}); "
            f"what arrived is kept in {self.partial}: run the same command again to continue"
        )

    @property
    def _validator_path(self) -> Path:
        return self.partial.with_name(self.partial.name + ".json")

    def _receive(self, url: str) -> None:
        """One connection: append to, or start, the partial file."""
        held, validator = self._held_bytes(url)
        headers = {"User-Agent": "recipe-jax", "Accept-Encoding": "identity"}
        if held:
            headers |= {"Range": f"bytes={held}-", "If-Range": validator}
        with _open(urllib.request.Request(url, headers=headers), self.timeout_seconds) as response:
            if response.status == 416:  # nothing is left to send, or the file shrank
                if response.headers.get("Content-Range") == f"bytes */{held}":
                    return
                self.partial.unlink()
                raise _Interrupted("the partial file no longer fits the server's")
            resumed = response.status == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(
                f"bytes {held}-"
            ):
                self.partial.unlink(missing_ok=True)
                raise _Interrupted("the server answered another range than was asked for")
            held = held if resumed else 0
            length = response.headers.get("Content-Length")
            expected = None if length is None else held + int(length)
            if not resumed:
                self._start(url, response)
            with self.partial.open("ab") as file:
                for chunk in _chunks(response):
                    file.write(chunk)
                    held += len(chunk)
                    self.on_progress(held, expected)
        if expected is not None and held < expected:
            raise _Interrupted(f"the connection ended after {held} of {expected} bytes")

    def _start(self, url: str, response: HTTPResponse) -> None:
        """Empty the partial file and note which version its bytes will belong to."""
        etag = response.headers.get("ETag", "")
        strong = etag if etag.startswith('"') else ""
        validator = strong or response.headers.get("Last-Modified", "")
        self.partial.write_bytes(b"")
        self._validator_path.write_text(json.dumps({"url": url, "validator": validator}))

    def _held_bytes(self, url: str) -> tuple[int, str]:
        """Bytes already here that may be continued, and the validator of their version."""
        try:
            note = json.loads(self._validator_path.read_text())
            held = self.partial.stat().st_size
        except (FileNotFoundError, ValueError):
            return 0, ""
        if note.get("url") != url or not note.get("validator"):
            return 0, ""
        return held, note["validator"]


def _open(request: urllib.request.Request, timeout_seconds: float) -> Any:
    """The server's answer; 416 counts as one.

    Raises:
        DownloadError: an answer that another attempt would not change.
        _Interrupted: one that it might.
    """
    url = request.full_url
    try:
        return urllib.request.urlopen(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        if error.code in _GONE:
            raise DownloadError(
                f"{url}: the server answers {error.code} {error.reason}: the file is not there any "
                "more or not public; look for it at its project page and place it by hand"
            ) from None
        raise _Interrupted(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Interrupted(f"{error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from None


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body, piece by piece; network errors become `_Interrupted`, so disk errors do not."""
    while True:
        try:
            chunk = response.read(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"{type(error).__name__} while receiving") from None
        if not chunk:
            return
        yield chunk
