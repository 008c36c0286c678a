"""What attention is to reach, computed from the rows that `benchmarks.attention` measured."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Rows: TypeAlias = Mapping[tuple[str, str], Mapping[str, Any]]
"""By workload and contestant."""

OURS = {"cpu": "recipe_kernels, tiled", "gpu": "recipe_kernels, triton"}
XLA, CUDNN, TORCH = "jax.nn, xla", "jax.nn, cudnn", "torch, SDPA"


def goals_of(device: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal with its value, its rule and whether it is reached.

    A goal of workloads that were not asked for is left out; one whose contestant could not run has
    no value, and is not reached.
    """
    asked = {row["workload"] for row in rows}
    known = {(row["workload"], row["contestant"]): row for row in rows}
    found = []
    for name, value, sign, bound in _GPU if device == "gpu" else _CPU:
        measured, reached = None, False
        try:
            measured = value(known)
            reached = measured >= bound if sign == "≥" else measured <= bound
        except KeyError as error:
            missing = error.args[0]  # a row, or what is not in the row of what failed
            if isinstance(missing, tuple) and missing[0] not in asked:
                continue
        rule = f"{sign} {bound:g}"
        found.append({"goal": name, "value": measured, "rule": rule, "reached": bool(reached)})
    return found


def _both(rows: Rows, workload: str, contestant: str) -> float:
    return rows[workload, contestant]["both"]["p50"]


def _backward(rows: Rows, workload: str, contestant: str) -> float:
    row = rows[workload, contestant]
    return row["both"]["p50"] - row["forward"]["p50"]


def _memory(rows: Rows, workload: str, contestant: str) -> float:
    return rows[workload, contestant]["temporary_bytes"]


Measure: TypeAlias = Callable[[Rows, str, str], float]


def _over(measure: Measure, workload: str, theirs: str, ours: str) -> Callable[[Rows], float]:
    """How many times ours the other takes."""
    return lambda rows: measure(rows, workload, theirs) / measure(rows, workload, ours)


_CPU = (
    ("causal, 2,048: time of XLA over ours",
     _over(_both, "causal, 2,048", XLA, OURS["cpu"]), "≥", 3.0),
    ("causal, 2,048: our time over torch's",
     _over(_both, "causal, 2,048", OURS["cpu"], TORCH), "≤", 1.6),
    ("causal, 4,096: our memory over XLA's",
     _over(_memory, "causal, 4,096", OURS["cpu"], XLA), "≤", 0.125),
)  # fmt: skip

_TRITON = OURS["gpu"]
_GPU = (
    ("G1 short sets: milliseconds",
     lambda rows: 1e3 * _both(rows, "short sets", _TRITON), "≤", 1.0),
    ("G1 short sets: time of cuDNN over ours",
     _over(_both, "short sets", CUDNN, _TRITON), "≥", 3.0),
    ("G1 short sets: time of XLA over ours",
     _over(_both, "short sets", XLA, _TRITON), "≥", 4.0),
    ("G2 ALiBi: our time over ours without it",
     lambda rows: _both(rows, "ALiBi", _TRITON) / _both(rows, "causal, width 64", _TRITON),
     "≤", 1.03),
    ("G2 ALiBi: time of cuDNN with a bias over ours",
     _over(_both, "ALiBi", CUDNN, _TRITON), "≥", 2.0),
    ("G2 ALiBi: time of XLA over ours", _over(_both, "ALiBi", XLA, _TRITON), "≥", 5.0),
    ("G2 ALiBi, 32,768: temporary bytes over those of one head's logits",
     lambda rows: _memory(rows, "ALiBi, 32,768", _TRITON) / (4 * 32768**2), "≤", 0.1),
    ("G3 causal, width 64: time of cuDNN over ours",
     _over(_both, "causal, width 64", CUDNN, _TRITON), "≥", 0.95),
    ("G3 causal, width 128: time of cuDNN over ours",
     _over(_both, "causal, width 128", CUDNN, _TRITON), "≥", 0.70),
    ("G4 packed 16 x 512: time of cuDNN with a mask over ours",
     _over(_both, "packed 16 x 512", CUDNN, _TRITON), "≥", 8.0),
    ("G10 causal, width 64, backward: time of cuDNN over ours",
     _over(_backward, "causal, width 64", CUDNN, _TRITON), "≥", 0.85),
)  # fmt: skip
"""G1 to G10 are named in kernels/README.md."""
