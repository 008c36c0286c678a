"""Attention kernels on the device that is there: right results, the same bits in every run.

    python -m benchmarks.attention_correctness --implementation triton --large

Every case of `recipe_kernels.attention.cases` goes through the operation, forwards and backwards,
twice.  Results are held to the formula in float64, in few bits to twice the error of naive code on
a CPU.  Several processes share the work, most of which is compiling.  Prints a JSON object for each
case and ends with 1 if one is wrong.  Needs no more than jax, numpy and this repository.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, get_args

from recipe_kernels.attention.cases import LARGE, LONG, SHORT, Case
from recipe_kernels.attention.fused import Implementation

from experiments.record import check_writable, make_record, write_lines


def examine(implementation: str, case: Case) -> dict[str, Any]:
    """Errors and bounds of every result, and whether a second run gives the same bits."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from recipe_kernels.attention.cases import draw, judge
    from recipe_kernels.attention.exact import Results
    from recipe_kernels.attention.fused import attend

    drawn = draw(case)

    @jax.jit
    def both(arrays: Any, out_grad: jax.Array, log_sum_grad: jax.Array) -> Any:
        out, pull = jax.vjp(functools.partial(attend, drawn.problem, implementation), arrays)
        return *out, *pull((out_grad, log_sum_grad))[0][:3]

    said: dict[str, Any] = {"case": case.name, "dtype": case.dtype}
    try:
        given = (tuple(map(jnp.asarray, drawn.arrays)), drawn.out_grad, drawn.log_sum_grad)
        first, again = ([np.asarray(x) for x in both(*given)] for _ in range(2))
    except Exception as error:  # one that cannot run is wrong, too, and others are to be seen
        return said | {"failure": f"{type(error).__name__}: {error}"[:500], "right": False}
    # Compared by bytes: an infinity equals itself, and so must a NaN.
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    found = Results(*(x.astype(np.float64) for x in first))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        verdicts = judge(drawn, found)
    right = same and all(verdict.error <= verdict.bound for verdict in verdicts.values())
    each = {name: verdict._asdict() for name, verdict in verdicts.items()}
    return said | {"verdicts": each, "same_bits": same, "right": right}


def main() -> int:
    """Examine all cases, print, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention_correctness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--implementation", choices=get_args(Implementation), default="tiled")
    parser.add_argument("--large", action="store_true", help="larger cases, too")
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--record", type=Path, help="write the results here, too")
    flags = parser.parse_args()
    cases = [*LONG, *SHORT, *(LARGE if flags.large else ())]
    if flags.only:
        cases = [case for case in cases if case.name in flags.only]
    if flags.record is not None:
        check_writable(flags.record)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # A fresh interpreter: device state does not survive a fork.
    context = multiprocessing.get_context("spawn")
    command = f"python -m benchmarks.attention_correctness --implementation {flags.implementation}"
    head = make_record(command + (" --large" if flags.large else ""))
    rows = []
    with concurrent.futures.ProcessPoolExecutor(flags.processes, context) as pool:
        for row in pool.map(functools.partial(examine, flags.implementation), cases):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if flags.record is not None:
                write_lines(flags.record, [head, *rows])
    wrong = [row["case"] for row in rows if not row["right"]]
    summary = {"cases": len(rows), "wrong": wrong}
    if flags.record is not None:
        write_lines(flags.record, [head, *rows, summary])
    print(json.dumps(summary))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
