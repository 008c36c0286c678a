"""Keep Orbax's own tracebacks off the screen: what fails is raised and told in one line."""

import contextlib
import gc
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

NEVER_AWAITED = "coroutine .* was never awaited"


@contextlib.contextmanager
def orbax_silenced() -> Iterator[None]:
    """Drop what Orbax prints from its background threads and abandoned coroutines.

    A disk that fills up makes it log the same error five times with tracebacks, and each unfinished
    read or write report itself as it is collected.  Messages of other libraries pass, but for the
    warning that a coroutine was never awaited, which does not say whose it was.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not _is_orbax(unraisable):
            previous(unraisable)

    log = logging.getLogger("absl")
    log.addFilter(_is_not_orbax_record)
    sys.unraisablehook = hook
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", NEVER_AWAITED, RuntimeWarning)
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


def forget_frames(error: BaseException) -> None:
    """Let go of what a failed read or write was doing, while its complaints are still dropped.

    The frames of a traceback hold the coroutines that Orbax left unfinished, which report
    themselves as they are collected.
    """
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and link.__traceback__ is not None:
            link.__traceback__ = None
            pending += [link.__cause__, link.__context__]
    gc.collect()


def _is_not_orbax_record(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _is_orbax(unraisable: Any) -> bool:
    # A coroutine that was abandoned before its first step has no frames to look at.
    coroutine = getattr(unraisable.object, "cr_code", None)
    if coroutine is not None and "orbax" in coroutine.co_filename:
        return True
    frames = traceback.extract_tb(unraisable.exc_traceback)
    closed = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(
        unraisable.exc_value
    )
    return closed or any("orbax" in frame.filename for frame in frames)
