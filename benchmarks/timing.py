"""Warm, blocked timings of contestants that take turns, each in a process of its own.

A machine's speed drifts (other users, heat, turbo).  Contestants that alternate, A B A B, see the
same drift, and a ratio of medians survives it.  Only one process computes at a time.
"""

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Answer: TypeAlias = Callable[[str], Any]
"""What a contestant does when it is told a word: it measures something and returns it."""


class Percentiles(NamedTuple):
    """How long something takes, in the unit of the samples.

    Attributes:
        p20: a fifth of the samples are below.
        p50: the median.
        p80: a fifth of the samples are above.
        n: how many samples there were.
    """

    p20: float
    p50: float
    p80: float
    n: int


def percentiles(samples: Sequence[float]) -> Percentiles:
    """Percentiles of samples, interpolated between neighbours.

    Raises:
        ValueError: if there are no samples.
    """
    if not samples:
        raise ValueError("samples is empty: measure at least one round")
    p20, p50, p80 = np.percentile(samples, [20, 50, 80])
    return Percentiles(float(p20), float(p50), float(p80), len(samples))


def alternate(
    contestants: Mapping[str, Callable[[], float]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """What every contestant measures in `rounds` rounds, in turns: A B A B.

    Args:
        contestants: each call is one measurement, and returns only when its work is done.
        rounds: measurements of each that count.
        warmup: rounds before them that do not.

    Raises:
        ValueError: if `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1")
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, measure in contestants.items():
            sample = measure()
            if turn >= warmup:
                samples[name].append(sample)
    return samples


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall seconds of one call, which must return only when its work is done."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matmul_gigaflops(multiply: Callable[[], Any], size: int, *, repeats: int = 5) -> float:
    """The best rate of `repeats` products of two square matrices, in 10^9 operations per second.

    Args:
        multiply: computes one product and returns when it is done.
        size: rows and columns; a product takes `2 size^3` operations.
        repeats: products that count, after one that does not.
    """
    multiply()
    return 2e-9 * size**3 / min(seconds_of(multiply) for _ in range(repeats))


class RemoteError(RuntimeError):
    """A contestant's process failed; its traceback is on stderr."""


class Remote:
    """A contestant in a process of its own, idle until it is told a word.

    Use it as a context: the process ends with it.

    Args:
        make: builds the contestant inside the process; a function at the top of a module.
        arguments: of `make`; they travel through a pipe.
        threads: processor cores that the process may use, and so the threads of its libraries.

    Raises:
        RemoteError: if `make` fails.
    """

    def __init__(self, make: Callable[..., Answer], *arguments: Any, threads: int):
        self.name = make.__name__
        # A fresh interpreter: threads and device state of this one do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make, arguments, threads), daemon=True
        )
        self._process.start()
        theirs.close()
        self.answer()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def __call__(self, word: str) -> Any:
        """What the contestant measures when it is told `word`.

        Raises:
            RemoteError: if it fails.
        """
        self.ask(word)
        return self.answer()

    def ask(self, word: str) -> None:
        """Tell the contestant `word`, and leave it at work."""
        self._pipe.send(word)

    def answer(self) -> Any:
        """What the contestant measured when it was last asked.

        Raises:
            RemoteError: if it failed.
        """
        try:
            return self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise RemoteError(
                f"{self.name} ended with exit code {self._process.exitcode}; see above"
            ) from error


def _serve(
    pipe: multiprocessing.connection.Connection,
    make: Callable[..., Answer],
    arguments: Sequence[Any],
    threads: int,
) -> None:
    limit_threads(threads)
    answer = make(*arguments)
    pipe.send(None)
    while True:
        try:
            word = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(word))


def limit_threads(threads: int) -> None:
    """Bind this process to so many cores: XLA and OpenMP then start as many threads.

    Call it before either starts its threads.  Where a system cannot bind (macOS), only OpenMP is
    limited.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
