"""The benchmark of attention: what it counts, what it calls reached, what it refuses and needs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from recipe_kernels.attention.exact import allowed_pairs
from recipe_kernels.attention.problem import Operands, Problem

from benchmarks.attention import main, read_flags
from benchmarks.attention_goals import goals_of
from benchmarks.attention_workloads import CPU, GPU, Workload
from experiments.record import make_record

RAGGED = Workload("ragged", 5, 12, 4, 8, k=2, causal=False, shortest=3)
PACKED = Workload("packed", 2, 12, 2, 8, packed=4)


@pytest.mark.parametrize("workload", [RAGGED, PACKED, PACKED._replace(causal=False)], ids=str)
def test_pairs_are_those_that_the_mask_leaves(workload):
    found = dict.fromkeys(Operands._fields)
    found["query"] = found["key"] = np.zeros((workload.b, workload.t, 1, 1))
    found["query_lengths"] = found["key_lengths"] = workload.lengths()
    found["query_segments"] = found["key_segments"] = workload.segments()
    problem = Problem(names=(), scale=1.0, causal=workload.causal)
    assert workload.pairs == allowed_pairs(problem, Operands(**found)).sum()


def test_work_and_traffic_of_a_small_shape_by_hand():
    whole = Workload("whole", 1, 10, 4, 8, k=2, causal=False)
    assert whole.operations("forward") == 2 * 2 * 100 * 4 * 8
    assert whole.operations("both") == 7 * 2 * 100 * 4 * 8
    of_queries, of_keys = 10 * 4 * 8 * 2, 10 * 2 * 8 * 2
    assert whole.moved_bytes("forward") == 2 * of_queries + 2 * of_keys
    assert whole.moved_bytes("both") == 5 * of_queries + 6 * of_keys


@pytest.mark.parametrize("workload", [*CPU, *GPU], ids=lambda workload: workload.name)
def test_small_ones_can_be_drawn_and_computed_exactly(workload):
    small = workload.small()
    found = [*small.draw()[:1], *small.draw()[:3]]
    for x, y in zip(small.sample(found), small.exact(), strict=True):
        assert x.shape == y.shape and np.isfinite(y).all()


def test_goals_are_reached_or_not_by_what_was_measured():
    def row(workload: str, contestant: str, both: float) -> dict:
        return {"workload": workload, "contestant": contestant, "both": {"p50": both}}

    rows = [
        row("causal, 2,048", "recipe_kernels, tiled", 1.0),
        row("causal, 2,048", "jax.nn, xla", 2.9),
        row("causal, 2,048", "torch, SDPA", 0.7),
    ]
    found = {goal["goal"]: goal for goal in goals_of("cpu", rows)}
    assert found["causal, 2,048: time of XLA over ours"]["reached"] is False
    assert found["causal, 2,048: our time over torch's"]["reached"] is True
    assert len(found) == 2  # nothing is said of what was not asked for
    rows[1] = {"workload": "causal, 2,048", "contestant": "jax.nn, xla", "failure": "no memory"}
    for given in (rows, [rows[0], rows[2]]):
        found = {goal["goal"]: goal for goal in goals_of("cpu", given)}
        goal = found["causal, 2,048: time of XLA over ours"]
        assert goal["value"] is None and goal["reached"] is False


def test_it_measures_and_records_a_line_for_each_contestant(tmp_path):
    record = tmp_path / "attention.jsonl"
    flags = read_flags(["--quick", "--only", "causal, 64", "--record", str(record)])
    assert main(flags) == 0
    head, *rows = map(json.loads, record.read_text().splitlines())
    assert head["command"].startswith("python -m benchmarks.attention --device cpu")
    assert head.keys() > make_record("").keys()
    ours = next(row for row in rows if row["contestant"] == "recipe_kernels, tiled")
    assert ours["error"] < 1e-5 and ours["both"]["n"] == 1 and ours["temporary_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only ['nothing'] must be among"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        read_flags(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_one_line(capfd):
    assert main(read_flags(["--device", "gpu", "--quick"])) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "--device gpu: jax finds no such device here" and len(said) <= 2


def test_a_bare_machine_can_import_what_the_check_of_a_gpu_runs():
    program = """
import importlib, sys
for name in ("beartype", "grain", "matplotlib", "pint", "polars", "pyarrow", "rapidfuzz", "sklearn",
             "torch", "triton", "tyro", "zstandard"):
    sys.modules[name] = None
for name in ("attention", "attention_correctness", "attention_training"):
    importlib.import_module(f"benchmarks.{name}")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
