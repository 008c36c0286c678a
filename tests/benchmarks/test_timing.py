"""Benchmarks: order of turns, percentiles, and contestants in processes of their own."""

import os

import pytest

from benchmarks.timing import (
    Remote,
    RemoteError,
    alternate,
    limit_threads,
    matmul_gigaflops,
    percentiles,
)


def test_percentiles_of_a_known_sample():
    assert percentiles([5.0, 1.0, 4.0, 2.0, 3.0, 0.0]) == (1.0, 2.5, 4.0, 6)


def test_one_outlier_does_not_move_the_median():
    assert percentiles([1.0, 1.0, 1.0, 1.0, 100.0]).p50 == 1.0


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples is empty"):
        percentiles([])


def test_contestants_take_turns_and_the_warm_up_does_not_count():
    order = []

    def contestant(name):
        def measure():
            order.append(name)
            return float(len(order))

        return measure

    samples = alternate({"a": contestant("a"), "b": contestant("b")}, rounds=2, warmup=1)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        alternate({"a": lambda: 1.0}, rounds=0)


def test_the_first_product_does_not_count():
    calls = []
    rate = matmul_gigaflops(lambda: calls.append(1), 1000, repeats=3)
    assert len(calls) == 4
    assert rate > 0


def counting_contestant(start: int):
    """Top of a module, so that another process can find it."""
    count = start

    def answer(word: str) -> tuple[str, int, int]:
        nonlocal count
        if word == "fail":
            raise ValueError(word)
        count += 1
        return word, count, len(os.sched_getaffinity(0))

    return answer


def test_a_remote_keeps_its_state_and_its_cores():
    with Remote(counting_contestant, 40, threads=1) as remote:
        assert remote("one") == ("one", 41, 1)
        assert remote("two") == ("two", 42, 1)


def test_a_failed_remote_is_one_error():
    with (
        Remote(counting_contestant, 0, threads=1) as remote,
        pytest.raises(RemoteError, match="counting_contestant ended with exit code 1"),
    ):
        remote("fail")


def test_the_thread_limit_reaches_openmp(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = os.sched_getaffinity(0)
    try:
        limit_threads(1)
        assert os.environ["OMP_NUM_THREADS"] == "1"
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)
