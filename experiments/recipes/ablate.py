"""Every variant beside every other, over seeds, each with the same time to train.

python -m experiments.recipes ablate --data prepared --run runs/ablation --jobs 2

Each run is a run folder of its own and is done when it has a `scores.json`; the same command on the
same folder goes on where it was stopped.  A variant's steps are the time over its seconds per step,
measured once, after compilation, the way that the runs then run (alone, or each on its own core).
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from experiments.recipes.ablation_table import Estimate, estimates, markdown_table
from experiments.recipes.ablation_variants import VARIANTS
from experiments.recipes.child_processes import Job, Stopping, core_sets, run_jobs
from experiments.recipes.prepared import read_prepared
from experiments.record import command_line, make_record, write_record
from recipe_jax.data.files import replace_file

SHAPE = ("embed_dim", "num_layers", "num_heads", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to compare, and for how long.

    Attributes:
        data: a prepared folder; the sample inside the package if not given.
        run: holds the plan, a run folder for each variant and seed, and the table.
        seeds: runs of each variant.
        minutes: of training for each run, without compilation and scoring.
        only: variants to run; all of them if none is named.
        jobs: runs at a time, each on a core of its own; one run alone uses all cores.
        embed_dim: width of every variant; each one's own if not given.
        num_layers: depth, likewise.
        num_heads: attention heads, likewise.
        batch_size: recipes per step, likewise.
        record: write the results to this file.
    """

    data: Path | None = None
    run: Path = Path("runs/ablation")
    seeds: int = 3
    minutes: float = 4.0
    only: tuple[str, ...] = ()
    jobs: int = 1
    embed_dim: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    batch_size: int | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds} must be at least 1")
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes {self.minutes} must be above 0 and finite")
        for name in self.only:
            if name not in VARIANTS:
                raise ValueError(f"--only {name!r} must be one of {', '.join(VARIANTS)}")

    @property
    def shape(self) -> dict[str, int]:
        """Fields of `train` that differ for every variant."""
        return {name: getattr(self, name) for name in SHAPE if getattr(self, name) is not None}


def run(flags: Flags) -> dict[str, Any]:
    """Plan, run what is missing, and print the table of what is finished."""
    names = [name for name in VARIANTS if not flags.only or name in flags.only]
    runs = [(name, seed) for seed in range(flags.seeds) for name in names]
    places = core_sets(flags.jobs)
    source = read_prepared(flags.data).source
    failed: dict[str, str] = {}
    with Stopping() as stopping:
        steps = make_plan(flags, names, places, stopping)
        missing = [one for one in runs if not scores_of(flags, *one).is_file()]
        progress = Progress(flags, len(runs), len(missing), failed)
        jobs = [run_job(flags, name, seed, steps[name]) for name, seed in missing if name in steps]
        run_jobs(jobs, places, stopping, progress.ended)
    finished = [one for one in runs if scores_of(flags, *one).is_file()]
    if not finished:
        reason = next(iter(failed.values()), "stopped before the first run ended")
        raise ValueError(f"{flags.run}: no run is finished: {reason}")
    done = [json.loads(scores_of(flags, *one).read_text()) for one in finished]
    found = estimates(done)
    table = markdown_table(found)
    replace_file(flags.run / "table.md", table.encode())
    Console(stderr=True).print(Markdown(table))
    absent = [run_name(*one) for one in runs if one not in finished]
    if absent:
        print(f"missing: {', '.join(absent)}", file=sys.stderr)
    if flags.record is not None:
        write_record(flags.record, record_of(flags, source, steps, found, absent, done))
    return {
        "n": len(finished),
        "missing": absent,
        "table": str(flags.run / "table.md"),
        "means": {row: {k: v.mean for k, v in values.items()} for row, values in found.items()},
    }


def make_plan(
    flags: Flags, names: Sequence[str], places: Sequence[set[int] | None], stopping: Stopping
) -> dict[str, int]:
    """Steps of each variant; what has not been timed yet is timed and kept in `RUN/plan.json`.

    Raises:
        ValueError: a plan of other settings, or a variant that cannot be timed.
    """
    path = flags.run / "plan.json"
    settings = {
        "data": str(flags.data),
        "minutes": flags.minutes,
        "jobs": flags.jobs,
        "shape": flags.shape,
    }
    seconds: dict[str, float] = {}
    if path.is_file():
        plan = _read_plan(path)
        for name, value in settings.items():
            if plan["settings"].get(name) != value:
                raise ValueError(
                    f"{path}: the plan has {name}={plan['settings'].get(name)!r}, not {value!r}: "
                    "choose another --run"
                )
        seconds = plan["seconds_per_step"]

    def ended(job: Job, code: int, elapsed: float) -> None:
        if stopping.asked:
            return
        if code:
            raise ValueError(f"{job.name}: {_last_line(job.log)}")
        seconds[job.name] = json.loads((job.log.parent / "seconds_per_step.json").read_text())
        plan = {"settings": settings, "seconds_per_step": seconds}
        replace_file(path, (json.dumps(plan, indent=1) + "\n").encode())
        print(f"plan: {job.name}: {seconds[job.name]:.3f} s a step", file=sys.stderr)

    untimed = [name for name in names if name not in seconds]
    run_jobs([time_job(flags, name) for name in untimed], places, stopping, ended)
    return {
        name: max(1, int(60 * flags.minutes / seconds[name])) for name in names if name in seconds
    }


class Progress:
    """A line for each run that ends, with the time that remains."""

    def __init__(self, flags: Flags, total: int, missing: int, failed: dict[str, str]):
        self._flags, self._total, self._left, self._failed = flags, total, missing, failed
        self._seconds: list[float] = []
        print(f"{total - missing} of {total} runs are done already", file=sys.stderr)

    def ended(self, job: Job, code: int, seconds: float) -> None:
        """Say how it went; a run that failed is named and the others go on."""
        scores = job.log.parent / "scores.json"
        if not scores.is_file():
            reason = "stopped" if code in (0, -15) else _last_line(job.log)
            self._failed[job.name] = f"{job.name}: {reason}"
            print(f"{job.name}: not finished: {reason}", file=sys.stderr)
            return
        self._left -= 1
        self._seconds.append(seconds)
        mean = sum(self._seconds) / len(self._seconds)
        minutes = mean * self._left / self._flags.jobs / 60
        metric, value = next(iter(json.loads(scores.read_text())["scores"][""].items()))
        done = f"[{self._total - self._left}/{self._total}] {job.name}: {seconds:.0f} s"
        print(f"{done}, {metric} {value:.3f}; about {minutes:.0f} min left", file=sys.stderr)


def record_of(
    flags: Flags,
    source: str,
    steps: Mapping[str, int],
    found: Mapping[str, Mapping[str, Estimate]],
    absent: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The table, and the runs that it sums up, with the circumstances under which it came about."""
    return make_record(
        command_line("experiments.recipes ablate", flags, always=("seeds", "minutes")),
        data="DIR" if flags.data else source,
        steps=dict(steps),
        missing=list(absent),
        results={
            row: {metric: value._asdict() for metric, value in values.items()}
            for row, values in found.items()
        },
        runs=list(runs),
    )


def run_name(variant: str, seed: int) -> str:
    """A run folder's name."""
    return f"{variant}-{seed}"


def scores_of(flags: Flags, variant: str, seed: int) -> Path:
    """The file that a finished run has."""
    return flags.run / run_name(variant, seed) / "scores.json"


def run_job(flags: Flags, variant: str, seed: int, steps: int) -> Job:
    """Train and score one run."""
    more = ["--do", "train", "--seed", str(seed), "--steps", str(steps)]
    return _job(flags, variant, run_name(variant, seed), more, run_name(variant, seed))


def time_job(flags: Flags, variant: str) -> Job:
    """Time one variant's steps."""
    return _job(flags, variant, f"timing/{variant}", ["--do", "time"], variant)


def _job(flags: Flags, variant: str, folder: str, more: Sequence[str], name: str) -> Job:
    path = flags.run / folder
    data = [] if flags.data is None else ["--data", str(flags.data)]
    command = [sys.executable, "-m", "experiments.recipes.ablation_run", "--variant", variant]
    shape = ["--shape", json.dumps(flags.shape)]
    return Job(name, [*command, "--run", str(path), *data, *shape, *more], path / "log.txt")


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text())
        return {name: dict(plan[name]) for name in ("settings", "seconds_per_step")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no plan of an ablation ({error}); delete it") from error


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"no output; see {path}"
