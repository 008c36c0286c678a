"""Attention kernels beside references on the same inputs: time, rate, memory, error.

    python -m benchmarks.attention --device cpu --record benchmarks/records/attention_cpu.jsonl
    python -m benchmarks.attention --device gpu --record benchmarks/records/attention_gpu.jsonl

Contestants take turns, those of JAX within one process and those of torch (where it is installed)
within another; `attention_workloads` says on what.  `both` is a forward and a backward pass.

Rates count the operations that the mask leaves, and the bytes that must move at least.  The
roofline is what the same device does in a large product and in a large copy; its share says how
near `both` comes to the nearer of the two.  Memory is what `both` takes beside arguments and
results.  Errors are the largest differences to float64, divided by its largest value, in the first
row and the heads that read its first key head.  Losses are printed like wins.

Needs no more than jax, numpy, rich and this repository, for machines that have little else.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.attention_contestants import in_jax, in_torch
from benchmarks.attention_goals import goals_of
from benchmarks.attention_workloads import OF_DEVICE, Workload
from benchmarks.timing import Remote, RemoteError, alternate, percentiles
from experiments.record import check_writable, command_line, make_record, write_lines

PARTS = ("forward", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        device: `cpu` or `gpu`.
        rounds: samples of each contestant that count, after one that does not.
        only: names of workloads; all of the device if none is given.
        quick: a few tokens, one round.
        record: write the results to this file, one JSON object a line.
    """

    device: str = "cpu"
    rounds: int = 5
    only: tuple[str, ...] = ()
    quick: bool = False
    record: Path | None = None


def read_flags(arguments: list[str] | None = None) -> Flags:
    """The command line, read with the standard library alone."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=tuple(OF_DEVICE), default=Flags.device)
    parser.add_argument("--rounds", type=int, default=Flags.rounds)
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", type=Path)
    found = parser.parse_args(arguments)
    known = {workload.name for workload in OF_DEVICE[found.device]}
    if found.rounds < 1:
        parser.error(f"--rounds {found.rounds} must be at least 1")
    if unknown := set(found.only) - known:
        parser.error(f"--only {sorted(unknown)} must be among {sorted(known)}")
    if found.record is not None:
        check_writable(found.record)
    found.only = tuple(found.only)
    return Flags(**vars(found))


def measure(
    workload: Workload, processes: list[Remote], ceilings: dict[str, float], rounds: int
) -> list[dict[str, Any]]:
    """All contestants on one workload, in turns; a row for each."""
    rows, of_name = {}, {}
    for process in processes:
        process.ask(f"prepare|{workload.name}")  # all of them: nothing is timed yet
    for process in processes:
        for name, said in process.answer().items():
            rows[name] = {"workload": workload.name, "contestant": name} | said
            if "failure" not in said:
                of_name[name] = process
    if workload.timed:
        samples = alternate(
            {
                f"{name}|{part}": functools.partial(process, f"seconds|{name}|{part}")
                for part in PARTS
                for name, process in of_name.items()
            },
            rounds=rounds,
        )
        for name, process in of_name.items():
            for part in PARTS:
                rows[name][part] = percentiles(samples[f"{name}|{part}"])._asdict()
            rows[name] |= _rates(workload, rows[name]["both"]["p50"], ceilings)
            rows[name]["error"] = process(f"error|{name}")
    return list(rows.values())


def _rates(workload: Workload, seconds: float, ceilings: dict[str, float]) -> dict[str, float]:
    operations, moved = workload.operations("both"), workload.moved_bytes("both")
    floor = max(operations / ceilings["operations"], moved / ceilings["bytes"])
    return {
        "operations_per_second": operations / seconds,
        "bytes_per_second": moved / seconds,
        "share_of_roofline": floor / seconds,
    }


def print_results(
    rows: list[dict[str, Any]], goals: list[dict[str, Any]], ceilings: dict[str, float]
) -> None:
    """Tables for people, on stderr."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)
    table = Table("", "", "forward ms", "both ms p50", "p20", "p80", title="attention")
    for head in ("TFLOP/s", "GB/s", "of roofline", "MB", "error"):
        table.add_column(head, justify="right")
    previous = None
    for row in rows:
        new, previous = row["workload"] != previous, row["workload"]
        names = (row["workload"] if new else "", row["contestant"])
        size = row.get("temporary_bytes")
        memory = "" if size is None else f"{size / 1e6:.1f}"
        if "failure" in row:
            table.add_row(*names, f"[dim]{row['failure'][:60]}[/dim]", end_section=False)
        elif "both" not in row:
            table.add_row(*names, *[""] * 7, memory)
        else:
            both = (f"{1e3 * row['both'][p]:.3f}" for p in ("p50", "p20", "p80"))
            rates = (
                f"{row['operations_per_second'] / 1e12:.3g}",
                f"{row['bytes_per_second'] / 1e9:.3g}",
                f"{row['share_of_roofline']:.0%}",
            )
            forward = f"{1e3 * row['forward']['p50']:.3f}"
            table.add_row(*names, forward, *both, *rates, memory, f"{row['error']:.0e}")
    console.print(table)
    large = ", ".join(f"{name} {value:.3g}/s" for name, value in ceilings.items())
    console.print(f"large product and large copy: {large}")
    for goal in goals:
        verdict = "reached" if goal["reached"] else "NOT reached"
        value = "not measured" if goal["value"] is None else f"{goal['value']:.3g}"
        console.print(f"{goal['goal']}: {value} (goal {goal['rule']}): {verdict}")


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    # Several processes share a GPU: none may take its memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    workloads = [x for x in OF_DEVICE[flags.device] if not flags.only or x.name in flags.only]
    makers = [in_jax] + ([in_torch] if importlib.util.find_spec("torch") else [])
    threads = 2 if flags.device == "cpu" else 8
    try:
        processes = [Remote(make, flags.device, flags.quick, threads=threads) for make in makers]
    except RemoteError as error:
        print(error, file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    try:
        ceilings = processes[0]("ceilings")
        head = make_record(command_line("benchmarks.attention", flags, always=("device",)))
        shapes = [workload._asdict() for workload in workloads]
        head |= {"device": processes[0]("device"), "ceilings": ceilings, "workloads": shapes}
        for workload in workloads:
            measured = workload.small() if flags.quick else workload
            rows += measure(measured, processes, ceilings, 1 if flags.quick else flags.rounds)
            goals = [] if flags.quick else goals_of(flags.device, rows)
            if flags.record is not None:  # so far: who stops it keeps what was measured
                write_lines(flags.record, [head, *rows, *goals])
            print(f"{workload.name}: done", file=sys.stderr)
    finally:
        for process in processes:
            process.__exit__()
    print_results(rows, goals, ceilings)
    print(json.dumps({"rows": rows, "goals": goals}))
    return 0


if __name__ == "__main__":
    sys.exit(main(read_flags()))
