"""The ablation: data that hide what they claim to hide, plans that hold, runs that resume."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import headline, refused

from experiments.recipes.ablation_run import unseen_queries
from experiments.recipes.ablation_table import estimate, estimates, markdown_table
from experiments.recipes.ablation_variants import (
    SHARED,
    VARIANTS,
    count_unseen,
    random_vectors,
    unseen_foods,
    without_unseen,
)
from experiments.recipes.child_processes import Job, Stopping, core_sets, run_jobs
from experiments.recipes.completion import completion_recipes
from experiments.recipes.prepared import read_prepared
from experiments.recipes.tasks import Flags as TrainFlags


@functools.cache
def sample():
    return read_prepared(None)


# Data.


def test_no_recipe_holds_an_unseen_food_and_all_others_stay():
    unseen, before, after = unseen_foods(sample()), sample().sets, without_unseen(sample()).sets
    assert 1 <= unseen.sum() <= 50
    assert not unseen[after.foods].any()
    kept = set(after.recipe_ids)
    for i, name in enumerate(before.recipe_ids):
        assert (name in kept) == (not unseen[before.foods_of(i)].any())


def test_an_unseen_query_hides_the_only_unseen_food_of_a_validation_recipe():
    unseen, queries = unseen_foods(sample()), unseen_queries(sample())
    recipes = completion_recipes(sample().sets, "validation")
    wanted = np.flatnonzero(count_unseen(recipes, unseen) == 1)
    assert len(queries) == len(wanted) > 0
    given, lengths = queries.padded()
    for row, i in enumerate(wanted.tolist()):
        shown = given[row, : lengths[row]].tolist()
        assert unseen[queries.hidden[row]] and not unseen[shown].any()
        assert {*shown, queries.hidden[row]} == set(recipes.foods_of(i).tolist())
        assert queries.recipe_ids[row] == recipes.recipe_ids[i]


def test_random_vectors_are_the_seeds_own_and_nothing_else_changes():
    first, again, other = (random_vectors(sample(), seed) for seed in (0, 0, 1))
    values = first.molecules.composition
    np.testing.assert_array_equal(values, again.molecules.composition)
    assert np.abs(values - other.molecules.composition).max() > 1
    assert values.shape == sample().molecules.composition.shape
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    assert (first.molecules.observed == 1).all()
    np.testing.assert_array_equal(first.molecules.flavour, sample().molecules.flavour)


def test_the_variants_differ_and_train_knows_their_flags():
    flags = [repr(TrainFlags(**{**SHARED, **v.flags})) for v in VARIANTS.values()]
    assert len({(f, v.data) for f, v in zip(flags, VARIANTS.values(), strict=True)}) == 13


# The table.


def test_a_mean_over_seeds_has_a_t_interval():
    found = estimate([0.61, 0.63, 0.62])
    # t with 2 degrees of freedom at 95 % is 4.303; the standard error is .01 / sqrt(3).
    assert found.mean == pytest.approx(0.62) and found.half == pytest.approx(0.02484, abs=1e-4)
    assert estimate([0.5]).half is None and str(estimate([0.5])) == "0.500"


def test_the_table_has_a_row_a_variant_and_a_way_of_use():
    runs = [
        {
            "variant": variant,
            "scores": {
                "": {"recall_at_10": 0.6 + seed / 100, "auc_logistic": 0.5},
                "in one pass": {"auc_logistic": 0.7},
            },
        }
        for seed in range(2)
        for variant in ("masked-set", "base")
    ]
    found = estimates(runs)
    assert list(found) == ["base", "base in one pass", "masked-set", "masked-set in one pass"]
    rows = markdown_table(found).splitlines()
    assert rows[2].startswith("| base | decoder alone") and "| 0.605 ± 0.064 |" in rows[2]
    assert len({row.count("|") for row in rows}) == 1
    assert "log-ratio" not in markdown_table(found)


# Processes.


def sleeper(tmp_path: Path, name: str, code: str) -> Job:
    return Job(name, [sys.executable, "-c", code], tmp_path / name / "log.txt")


def test_jobs_run_side_by_side_on_cores_of_their_own(tmp_path: Path):
    code = "import os, time; print(os.sched_getaffinity(0), flush=True); time.sleep(1)"
    count = min(2, len(os.sched_getaffinity(0)))
    places, ended = core_sets(count), []
    jobs = [sleeper(tmp_path, f"job-{i}", code) for i in range(2 * count)]
    before = os.sched_getaffinity(0)
    run_jobs(jobs, places, Stopping(), lambda job, code, seconds: ended.append((job.name, code)))
    assert os.sched_getaffinity(0) == before
    assert sorted(ended) == [(job.name, 0) for job in jobs]
    used = [job.log.read_text().strip() for job in jobs]
    assert set(used) == ({str(place) for place in places} if count > 1 else {str(before)})


def test_asked_to_stop_running_jobs_end_and_no_other_begins(tmp_path: Path):
    jobs = [sleeper(tmp_path, f"job-{i}", "import time; time.sleep(60)") for i in range(2)]
    ended = []
    with Stopping() as stopping:
        started = time.monotonic()
        previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            run_jobs(jobs, [None], stopping, lambda job, code, _: ended.append((job.name, code)))
        finally:
            signal.signal(signal.SIGALRM, previous)
    assert ended == [("job-0", -signal.SIGTERM)]
    assert time.monotonic() - started < 30 and not jobs[1].log.exists()


# The command.

TINY = ["--embed-dim", "8", "--num-layers", "1", "--num-heads", "1", "--batch-size", "96"]
ONE = ["ablate", "--seeds", "1", "--minutes", "0.05", "--only", "base", *TINY]


def test_a_variant_is_timed_trained_scored_and_never_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compilation is most of the time
    run, record = tmp_path / "run", tmp_path / "record.json"
    printed = headline(capsys, *ONE, "--run", run, "--record", record)
    plan = json.loads((run / "plan.json").read_text())
    scores = json.loads((run / "base-0" / "scores.json").read_text())
    assert scores["step"] == max(1, int(3 / plan["seconds_per_step"]["base"]))
    assert printed["n"] == 1 and printed["missing"] == []
    assert printed["means"]["base"] == scores["scores"][""]
    config = json.loads((run / "base-0" / "model" / "config.json").read_text())["config"]
    assert not config["pairs"] and config["embedding"]["embed_dim"] == 8
    written = json.loads(record.read_text())
    assert written["results"]["base"]["mrr"]["half"] is None and written["runs"] == [scores]
    assert (run / "table.md").read_text().splitlines()[2].startswith("| base | decoder alone")
    # A finished run and its plan stay as they are.
    (run / "base-0" / "scores.json").write_text(json.dumps(scores | {"step": -7}))
    again = headline(capsys, *ONE, "--run", run)
    assert again["means"] == printed["means"]
    assert json.loads((run / "base-0" / "scores.json").read_text())["step"] == -7
    other = [*ONE, "--minutes", "1", "--run", run]
    assert "plan.json: the plan has minutes=0.05, not 1.0" in refused(capsys, *other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "sourdough"], "--only 'sourdough' must be one of base, molecules"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--minutes", "0"], "--minutes 0.0 must be above 0"),
        (["--jobs", "999"], "--jobs 999 must be from 1 to"),
        (["--data", "/nowhere"], "no such file"),
    ],
)
def test_a_study_that_cannot_be_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    assert message in refused(capsys, "ablate", "--run", run, *arguments)
    assert not run.exists()


def test_a_run_by_hand_that_cannot_be_is_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.recipes.ablation_run", "--variant", "base"]
    more = ["--do", "time", "--run", str(tmp_path), "--data", "/nowhere"]
    done = subprocess.run([*command, *more], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
