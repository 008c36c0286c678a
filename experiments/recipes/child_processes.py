"""Commands side by side, each on cores of its own, that stop together when asked to."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

POLL_SECONDS = 0.1


class Job(NamedTuple):
    """A command.

    Attributes:
        name: for people.
        command: its arguments, the program first.
        log: where its output goes.
    """

    name: str
    command: Sequence[str]
    log: Path


class Stopping:
    """Notes SIGTERM and SIGINT while it is entered; only in the main thread."""

    def __init__(self):
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        del number, frame
        self.asked = True


def core_sets(jobs: int) -> list[set[int] | None]:
    """Where each of `jobs` processes at a time may run: anywhere, or on a core of its own.

    Raises:
        ValueError: no job, more jobs than cores, or a system that cannot pin a process.
    """
    if jobs == 1:
        return [None]
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"--jobs {jobs}: this system pins no process to a core; use --jobs 1")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise ValueError(f"--jobs {jobs} must be from 1 to the {len(cores)} cores there are")
    return [{core} for core in cores[:jobs]]


def run_jobs(
    jobs: Sequence[Job],
    places: Sequence[set[int] | None],
    stopping: Stopping,
    ended: Callable[[Job, int, float], None],
) -> None:
    """Run all jobs, as many at a time as there are places.

    Once it is asked to stop, running jobs get SIGTERM and are waited for, and no other begins.

    Args:
        jobs: in the order in which they begin.
        places: from `core_sets`.
        stopping: whether to stop.
        ended: called with a job, its exit code and its seconds when it ends.
    """
    waiting, free = list(jobs), list(places)
    running: dict[int, tuple[Job, subprocess.Popen[bytes], Any, float]] = {}
    told = False
    try:
        while running or (waiting and not stopping.asked):
            while waiting and free and not stopping.asked:
                job, place = waiting.pop(0), free.pop(0)
                process = _start(job, place)
                running[process.pid] = (job, process, place, time.monotonic())
            if stopping.asked and not told:
                told = True
                for _, process, _, _ in running.values():
                    process.terminate()
            for pid, (job, process, place, started) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[pid]
                    free.append(place)
                    ended(job, code, time.monotonic() - started)
            time.sleep(POLL_SECONDS)
    finally:
        for _, process, _, _ in running.values():
            process.kill()
            process.wait()


def _start(job: Job, place: set[int] | None) -> "subprocess.Popen[bytes]":
    """A child inherits the cores of the thread that starts it."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    before = os.sched_getaffinity(0) if place is not None else None
    with job.log.open("ab") as log:
        try:
            if place is not None:
                os.sched_setaffinity(0, place)
            # A session of its own: Ctrl-C reaches it through us alone, once.
            return subprocess.Popen(
                job.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        finally:
            if before is not None:
                os.sched_setaffinity(0, before)
