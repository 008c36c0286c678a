"""The GPU kernels of attention, in Triton's interpreter, against the formula in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from recipe_kernels.attention.cases import LONG, SHORT

HERE = Path(__file__).parent
NAMES = [case.name for case in (*LONG, *SHORT)]
PARTS = 3
"""Processes that share the cases: starting one takes as long as some cases."""


def interpreted(*names: str) -> list[dict]:
    """Reports of a process of its own: triton reads TRITON_INTERPRET when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(HERE / "run_interpreted.py"), *names],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("part", range(PARTS))
def test_results_are_those_of_the_formula(part):
    names = NAMES[part::PARTS]
    reports = interpreted(*names)
    assert [report["name"] for report in reports] == names
    for report in reports:
        for result, (error, bound) in report["verdicts"].items():
            assert error <= bound, (report["name"], result)


def test_random_problems():
    interpreted()
