"""Catalogues to vectors without a model: seconds, memory, and what neighbours are worth.

    python -m benchmarks.text_vectors --record benchmarks/records/text_vectors.json

Beauty and the recipes, of the folder that `RECIPE_JAX_DATA` names, are read, fitted and encoded
with the default settings, each in a process of its own: wall and processor seconds, and the most
memory that the process took.  On Beauty further settings follow, one change each.  Recall at 10 is
of the second-last item of every user (validation; the last, for testing, is not looked at) among
the nearest items to the sum of up to five items before it, weighted by 0.8 a step; those five are
left out.
"""

import dataclasses
import gzip
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tyro
from jaxtyping import Float32

from experiments.record import command_line, make_record, write_record
from recipe_jax.data.catalogues import Catalogue, beauty_catalogue, recipe_catalogue
from recipe_jax.data.text_vectors import TextVectorsConfig, fit_text_vectors

Result = TypeVar("Result")

CATALOGUES: Mapping[str, Callable[[Path], Catalogue]] = {
    "beauty": beauty_catalogue,
    "recipes": recipe_catalogue,
}
CHANGES: tuple[dict[str, int], ...] = (
    {"dim": 128},
    {"dim": 256},
    {"dim": 768},
    {"max_words": 2},
    {"min_texts": 1},
    {"min_texts": 3},
    {"num_iterations": 2},
    {"num_iterations": 10},
)
_HISTORY, _DECAY, _NEAREST = 5, 0.8, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        settings: whether further settings are tried on Beauty.
        record: write the results to this file.
    """

    settings: bool = True
    record: Path | None = None


def timed(function: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """A result with the seconds that it took, by the clock and of all processor cores."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, {
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
    }


def measure(name: str, folder: Path, changes: Mapping[str, int]) -> dict[str, Any]:
    """One catalogue with one setting; `peak_bytes` is of this process since it began."""
    catalogue, reading = timed(lambda: CATALOGUES[name](folder))
    cfg = TextVectorsConfig(**changes)
    fitted, fitting = timed(lambda: fit_text_vectors(catalogue.texts, cfg))
    vectors, encoding = timed(lambda: fitted.encode(catalogue.texts))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recall = next_item_recall(catalogue, vectors, folder) if name == "beauty" else None
    return {
        "changes": dict(changes),
        "n": len(catalogue.ids),
        "terms": len(fitted.terms),
        "width": vectors.shape[1],
        "explained_variance": round(fitted.explained_variance, 4),
        "zero_vectors": int((~vectors.any(axis=1)).sum()),
        "read": reading,
        "fit": fitting,
        "encode": encoding,
        "peak_bytes": peak,
        "validation_recall_at_10": recall,
    }


def next_item_recall(
    catalogue: Catalogue, vectors: Float32[np.ndarray, "n e"], folder: Path
) -> float:
    """Share of users whose second-last item is among the ten nearest to those before it."""
    place = {identifier: row for row, identifier in enumerate(catalogue.ids)}
    with gzip.open(folder / "amazon_beauty" / "Beauty.txt.gz", "rt") as file:
        users = [[place[item] for item in line.split()[1:]] for line in file]
    hits = 0
    for start in range(0, len(users), 512):
        histories = [items[:-2][-_HISTORY:] for items in users[start : start + 512]]
        targets = np.array([items[-2] for items in users[start : start + 512]])
        queries = [_DECAY ** np.arange(len(h))[::-1] @ vectors[h] for h in histories]
        scores = np.stack(queries).astype(np.float32) @ vectors.T
        for row, history in enumerate(histories):
            scores[row, history] = -np.inf
        own = scores[np.arange(len(targets)), targets]
        above = (scores >= own[:, None]).sum(axis=1) - 1  # one that is equal stands before it
        hits += int((above < _NEAREST).sum())
    return round(hits / len(users), 4)


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    if "RECIPE_JAX_DATA" not in os.environ:
        print("text_vectors: RECIPE_JAX_DATA must name the folder of real data", file=sys.stderr)
        return 2
    folder = Path(os.environ["RECIPE_JAX_DATA"])
    tasks: list[tuple[str, dict[str, int]]] = [(name, {}) for name in CATALOGUES]
    tasks += [("beauty", changes) for changes in CHANGES] if flags.settings else []
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CATALOGUES}
    # A process for each, one after the other: the most memory that one took is that task's.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, changes in tasks:
            found = pool.apply(measure, (name, folder, changes))
            results[name].append(found)
            print(f"{name} {json.dumps(found)}", file=sys.stderr)
    if flags.record is not None:
        command = command_line("benchmarks.text_vectors", flags)
        write_record(flags.record, make_record(command, **results))
    print(json.dumps({name: found[0] for name, found in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, description=__doc__)))
