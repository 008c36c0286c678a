"""Milliseconds to find ten items for a query in words without a model, and seconds to index them.

    python -m benchmarks.text_retrieval --record benchmarks/records/text_retrieval.json

The recipes of the folder that `RECIPE_JAX_DATA` names, or a table of one's own: `make_retriever`
indexes title and ingredients, and `search` is asked for words that some of its texts begin with,
one query at a time, from the words to the names of the items.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.timing import limit_threads, percentiles, seconds_of
from experiments.record import command_line, make_record, write_record
from experiments.semantic_ids.catalogue_vectors import read_items
from experiments.semantic_ids.retrieval import Retriever, make_retriever

_WORDS = 4
"""Of a query."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        catalogue: beauty or recipes, or a table of one's own with the field title.
        id_field: of a table of one's own: what tells items apart.
        queries: how many count, after ten that do not.
        k: items asked for.
        threads: processor cores.
        record: write the results to this file.
    """

    catalogue: str = "recipes"
    id_field: str = "id"
    queries: int = 300
    k: int = 10
    threads: int = 2
    record: Path | None = None


def measure(flags: Flags) -> dict[str, Any]:
    """Index, ask."""
    items = read_items(flags.catalogue, id_field=flags.id_field)
    made: list[Retriever] = []
    index_seconds = seconds_of(lambda: made.append(make_retriever(items, None)))
    rows = np.random.default_rng(0).integers(len(items.ids), size=10 + flags.queries)
    queries = [" ".join(items.texts[row].split()[:_WORDS]) for row in rows.tolist()]
    milliseconds = [made[0].search(query, k=flags.k).milliseconds for query in queries][10:]
    return {
        "num_items": len(items.ids),
        "index_seconds": round(index_seconds, 2),
        "milliseconds": percentiles(milliseconds)._asdict(),
        "milliseconds_p95": float(np.percentile(milliseconds, 95)),
    }


def main(flags: Flags) -> int:
    """Measure, print, write the record; returns the exit code."""
    limit_threads(flags.threads)
    try:
        results = measure(flags)
    except (ValueError, OSError) as error:
        print(f"text_retrieval: {error}", file=sys.stderr)
        return 2
    found = results["milliseconds"]
    print(
        f"{results['num_items']} items indexed in {results['index_seconds']:.1f} s; {flags.k} of "
        f"them for a query: {found['p50']:.1f} ms (p20 {found['p20']:.1f}, p80 {found['p80']:.1f}, "
        f"p95 {results['milliseconds_p95']:.1f}, n {found['n']})",
        file=sys.stderr,
    )
    if flags.record is not None:
        command = command_line("benchmarks.text_retrieval", flags)
        write_record(flags.record, make_record(command, threads=flags.threads, **results))
    print(json.dumps({"milliseconds": found["p50"], "n": found["n"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
