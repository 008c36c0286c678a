"""The GPU kernels of attention, in Triton's interpreter, against the formula in float64."""

import json
from pathlib import Path

import pytest
from interpreted import run_interpreted

pytest.importorskip("triton")

from recipe_kernels.attention.cases import LONG, SHORT

PROGRAM = Path(__file__).with_name("run_interpreted.py")
NAMES = [case.name for case in (*LONG, *SHORT)]
PARTS = 3
"""Processes that share the cases: starting one takes as long as some cases."""


@pytest.mark.parametrize("part", range(PARTS))
def test_results_are_those_of_the_formula(part):
    names = NAMES[part::PARTS]
    reports = [json.loads(line) for line in run_interpreted(PROGRAM, *names)]
    assert [report["name"] for report in reports] == names
    for report in reports:
        for result, (error, bound) in report["verdicts"].items():
            assert error <= bound, (report["name"], result)


def test_random_problems():
    run_interpreted(PROGRAM)
