"""Keep Orbax's own tracebacks off the screen: what fails is raised and told in one line."""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def orbax_silenced() -> Iterator[None]:
    """Drop what Orbax prints from its background threads and abandoned coroutines.

    A disk that fills up makes it log the same error five times with tracebacks, and each unfinished
    read or write report itself as it is collected.  Messages of other libraries pass.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _is_orbax(unraisable):
            previous(unraisable)

    log = logging.getLogger("absl")
    log.addFilter(_is_not_orbax_record)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        log.removeFilter(_is_not_orbax_record)
        if sys.unraisablehook is hook:
            sys.unraisablehook = previous


def short_reason(error: BaseException) -> str:
    """What went wrong, in one short line; the operating system's word for it where it has one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if code := re.search(r"\[os_error_code='(\d+)'", str(cause)):
            return os.strerror(int(code[1]))
        cause = cause.__cause__
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].split(" [tensorstore_spec")[0].split(". See full TensorStore")[0][:300]


def _is_not_orbax_record(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _is_orbax(unraisable: Any) -> bool:
    frames = traceback.extract_tb(unraisable.exc_traceback)
    closed = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(
        unraisable.exc_value
    )
    return closed or any("orbax" in frame.filename for frame in frames)
