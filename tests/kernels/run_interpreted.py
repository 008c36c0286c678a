"""Run cases in Triton's interpreter; print, one JSON object a line, how far each result is off.

    TRITON_INTERPRET=1 python tests/kernels/run_interpreted.py NAME…

runs named cases; without a name, cases that Hypothesis draws, and ends with an error at the
first whose results are wrong.
"""

import json
import sys

import jax.numpy as jnp
import numpy as np
import triton_interpreter
from hypothesis import given, settings
from random_cases import cases
from recipe_kernels import triton_bridge
from recipe_kernels.attention import tiles, triton_gpu
from recipe_kernels.attention.cases import LONG, SHORT, Case, Drawn, draw, judge
from recipe_kernels.attention.exact import Results


def main(*names: str) -> None:
    triton_interpreter.mend_bfloat16()
    triton_bridge.launch = triton_interpreter.launch
    tiles.MANY_SETS = 2  # so that a program does several sets of these few
    known = {case.name: case for case in (*LONG, *SHORT)}
    for name in names:
        print(json.dumps(report(known[name])), flush=True)
    if not names:
        random_cases()


def report(case: Case) -> dict:
    drawn = draw(case)
    return {"name": case.name, "verdicts": judge(drawn, run(drawn))}


def run(drawn: Drawn) -> Results:
    arrays = tuple(map(jnp.asarray, drawn.arrays))
    out, log_sums = triton_gpu.forward(*arrays, problem=drawn.problem)
    results = (*arrays, out, log_sums)
    grads = (jnp.asarray(drawn.out_grad), jnp.asarray(drawn.log_sum_grad))
    found = triton_gpu.backward(*results, *grads, problem=drawn.problem)
    return Results(*(np.asarray(x, np.float32) for x in (out, log_sums, *found)))


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(cases())
def random_cases(case: Case) -> None:
    drawn = draw(case)
    for name, verdict in judge(drawn, run(drawn)).items():
        assert verdict.error <= verdict.bound, (name, verdict)


if __name__ == "__main__":
    main(*sys.argv[1:])
