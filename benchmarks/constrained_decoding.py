"""What it costs to let a beam search name only items of a catalogue.

    python -m benchmarks.constrained_decoding --record benchmarks/records/constrained_decoding.json

A step is an eighth of a search over IDs of 8 levels with 2,048 codes each: 2 rows, 70 beams.  The
model is a table of logits by last code, so that next to nothing of the time is its own.  Catalogues
of all sizes branch alike, at most 8 ways.  Contestants do the same search in turns:

- ours, `search_items`;
- STATIC (Su et al. 2026, arXiv:2602.22647), plain `jax.numpy` after the paper: dense masks for the
  first two levels, then slices of a compressed sparse row matrix (algorithm 1);
- the same search without a constraint;
- transformers, `prefix_allowed_tokens_fn`, where torch is installed; of a smaller catalogue, since
  its tree of Python objects takes gigabytes.

Goals: ours takes at most 1.2 times as long for the largest catalogue as for the smallest, at most
120 bytes an item, no longer than STATIC, and at most a tenth of transformers' time.
"""

import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Answer, Remote, alternate, percentiles, seconds_of
from experiments.record import command_line, make_record, write_record
from recipe_jax.item_beam_search import search_items
from recipe_jax.prefix_index import build_prefix_index

LEVELS, CODES, BRANCHING = 8, 2048, 8
ROWS, BEAMS = 2, 70
STATIC_TOKENS_PER_BEAM = 30
"""What its dense levels keep of each beam, as published."""
SEARCHES = 5
"""Of a turn, after one that does not count: the processor's caches hold what others left there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        items: sizes of catalogues, at most 8 to the 8th.
        trie_items: size of the catalogue that transformers gets.
        rounds: searches of each contestant that count.
        threads: processor cores of each process, of which one works at a time.
        record: write the results to this file.
    """

    items: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    trie_items: int = 100_000
    rounds: int = 30
    threads: int = 2
    record: Path | None = None

    def __post_init__(self) -> None:
        for count in (*self.items, self.trie_items):
            if not 1 <= count <= BRANCHING**LEVELS:
                raise ValueError(f"--items {count} must be from 1 to {BRANCHING**LEVELS}")


def draw_catalogue(count: int) -> np.ndarray:
    """IDs `n q` of random leaves of one tree whose nodes have 8 children each."""
    rng = np.random.default_rng(0)
    leaves = rng.permutation(BRANCHING**LEVELS)[:count]
    codes = np.empty((count, LEVELS), np.int32)
    for level in range(LEVELS):
        prefix = leaves // BRANCHING ** (LEVELS - level)
        way = leaves // BRANCHING ** (LEVELS - level - 1) % BRANCHING
        codes[:, level] = way * (CODES // BRANCHING) + (prefix * 40_503 + level) % 256
    return codes


def draw_logits() -> np.ndarray:
    """Logits `v v` of the next code by the last one."""
    return np.random.default_rng(1).normal(0, 2, (CODES, CODES)).astype(np.float32)


class _TableModel:
    """A `TokenDecoder` that looks its logits up."""

    def __init__(self, params: Any):
        self.params = params

    def empty_cache(self, batch_size: int, capacity: int, context: Any = None) -> jax.Array:
        return jnp.zeros((1, batch_size))

    def decode(self, tokens: Any, lengths: Any, cache: Any) -> tuple[Any, Any]:
        return self.params[tokens], cache

    def choose_rows(self, cache: Any, rows: Any) -> Any:
        return cache[:, rows]

    def logits(self, states: Any) -> Any:
        return states


@dataclasses.dataclass(frozen=True)
class _Table:
    """Stands for the pure function of a model."""

    def bind(self, params: Any) -> _TableModel:
        return _TableModel(params)


PROMPT = np.zeros((ROWS, 1), np.int32)


def ours(count: int) -> Answer:
    """Our search; answers seconds, bytes an item, or the best log-probabilities."""
    codes = draw_catalogue(count)
    index = jax.device_put(build_prefix_index(codes, (CODES,) * LEVELS))
    params = jnp.asarray(draw_logits())

    def run() -> Any:
        found = search_items(
            _Table(),
            params,
            jnp.asarray(PROMPT),
            jnp.ones(ROWS, jnp.int32),
            indexes=[index],
            level_tokens=(0,) * LEVELS,
            num_beams=BEAMS,
        )
        return jax.block_until_ready(found.log_probability)

    return functools.partial(_answer, run, index.num_bytes / count)


def unconstrained(count: int) -> Answer:
    """The same search when any codes are an ID; the catalogue plays no part."""
    del count
    params = jnp.asarray(draw_logits())

    @jax.jit
    def search(params: jax.Array) -> jax.Array:
        total, last = jnp.zeros((ROWS, 1)), jnp.asarray(PROMPT)
        for _ in range(LEVELS):
            steps = jax.nn.log_softmax(params[last])
            flat = (total[..., None] + steps).reshape(ROWS, -1)
            total, chosen = jax.lax.top_k(flat, BEAMS)
            last = chosen % CODES
        return total

    return functools.partial(_answer, lambda: search(params).block_until_ready(), 0.0)


def static(count: int) -> Answer:
    """STATIC; answers as `ours` does."""
    codes = draw_catalogue(count)
    matrix = sparse_matrix(codes[np.lexsort(codes.T[::-1])])
    on_device = jax.device_put(matrix.arrays)
    params = jnp.asarray(draw_logits())
    search = jax.jit(functools.partial(static_search, branching=matrix.branching))
    size = sum(x.nbytes for x in matrix.arrays.values())
    return functools.partial(
        _answer, lambda: search(params, on_device).block_until_ready(), size / count
    )


@dataclasses.dataclass(frozen=True)
class SparseMatrix:
    """The tree of IDs as a transition matrix.

    Attributes:
        arrays: `begins` of each node's row, its `codes` and `nodes`; `dense_nodes` of the second
            level by the first two codes, -1 for none.
        branching: most children of a node, of each level.
    """

    arrays: dict[str, np.ndarray]
    branching: tuple[int, ...]


def sparse_matrix(ordered: np.ndarray) -> SparseMatrix:
    """The matrix of sorted IDs; nodes of all levels are numbered one level after the other."""
    index = build_prefix_index(ordered, (CODES,) * LEVELS)
    counts = [len(ends) - 1 for ends in index.children]
    starts = np.cumsum([0, *counts, len(ordered)])
    begins = [starts[level + 1] - 1 + ends[:-1] for level, ends in enumerate(index.children)]
    edges = np.concatenate(index.codes).astype(np.int32)
    padding = np.zeros(CODES, np.int32)  # a slice at the end stays within the array
    first = np.repeat(index.codes[0], np.diff(index.children[1]))
    dense = np.full((CODES, CODES), -1, np.int32)
    dense[first, index.codes[1]] = starts[2] + np.arange(len(first))
    return SparseMatrix(
        arrays={
            "begins": np.append(np.concatenate(begins), len(edges)).astype(np.int32),
            "codes": np.concatenate([edges, padding]),
            "nodes": np.concatenate([np.arange(1, len(edges) + 1, dtype=np.int32), padding]),
            "dense_nodes": dense,
        },
        branching=index.branching,
    )


def static_search(
    params: jax.Array, arrays: dict[str, jax.Array], *, branching: tuple[int, ...]
) -> jax.Array:
    """Log-probabilities of the best `BEAMS` IDs."""
    dense = arrays["dense_nodes"]
    logits = jax.nn.log_softmax(params[PROMPT[:, 0]])
    total, last = jax.lax.top_k(jnp.where((dense >= 0).any(axis=1)[None], logits, -jnp.inf), BEAMS)
    node = last
    for level in range(1, LEVELS):
        steps = jax.nn.log_softmax(params[last])
        if level == 1:
            following = dense[last]
            masked = jnp.where(following >= 0, steps, -jnp.inf)
            steps, codes = jax.lax.top_k(masked, STATIC_TOKENS_PER_BEAM)
            following = jnp.take_along_axis(following, codes, axis=2)
        else:
            begin, end = arrays["begins"][node], arrays["begins"][node + 1]
            places = begin[..., None] + jnp.arange(branching[level])[None, None]
            codes, following = arrays["codes"][places], arrays["nodes"][places]
            steps = jnp.take_along_axis(steps, codes, axis=2)
            steps = jnp.where(places < end[..., None], steps, -jnp.inf)
        total, chosen = jax.lax.top_k((total[..., None] + steps).reshape(ROWS, -1), BEAMS)
        last, node = (
            jnp.take_along_axis(x.reshape(ROWS, -1), chosen, axis=1) for x in (codes, following)
        )
    return total


def transformers(count: int) -> Answer:
    """`prefix_allowed_tokens_fn` in the same search; the model is a table here, too."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

    children: dict[tuple[int, ...], list[int]] = {}
    for row in np.unique(draw_catalogue(count), axis=0).tolist():
        for level, code in enumerate(row):
            found = children.setdefault(tuple(row[:level]), [])
            if not found or found[-1] != code:
                found.append(code)
    processor = PrefixConstrainedLogitsProcessor(
        lambda _, tokens: children[tuple(tokens.tolist()[1:])], BEAMS
    )
    params = torch.from_numpy(draw_logits())

    @torch.no_grad()
    def run() -> Any:
        tokens = torch.zeros((ROWS * BEAMS, 1), dtype=torch.long)
        total = torch.full((ROWS, BEAMS), -1e30)
        total[:, 0] = 0
        for level in range(LEVELS):
            steps = torch.log_softmax(params[tokens[:, -1]], -1)
            # Beams of a first step that are none yet hold a prefix that is one.
            steps = processor(tokens, steps).reshape(ROWS, BEAMS, CODES)
            flat = (total[..., None] + steps).reshape(ROWS, -1)
            total, chosen = flat.topk(BEAMS)
            if level == 0:
                assert (chosen < CODES).all() or len(children[()]) < BEAMS
            parent = (torch.arange(ROWS)[:, None] * BEAMS + chosen // CODES).reshape(-1)
            tokens = torch.cat([tokens[parent], (chosen % CODES).reshape(-1, 1)], 1)
        return total.numpy()

    return functools.partial(_answer, run, 0.0)


def _answer(run: Any, bytes_per_item: float, word: str) -> Any:
    if word == "bytes":
        return bytes_per_item
    if word == "result":
        return np.asarray(run())
    run()
    return seconds_of(lambda: [run() for _ in range(SEARCHES)]) / SEARCHES


def measure(flags: Flags) -> list[dict[str, Any]]:
    """A row for each contestant and size; contestants of one size take turns."""
    rows = []
    for count in flags.items:
        made = [ours, static, unconstrained]
        if count == flags.trie_items and importlib.util.find_spec("torch") is not None:
            made.append(transformers)
        rows += _measure_size(flags, count, made)
    return rows


def _measure_size(flags: Flags, count: int, made: list[Any]) -> list[dict[str, Any]]:
    processes = {make.__name__: Remote(make, count, threads=flags.threads) for make in made}
    try:
        results = {name: process("result") for name, process in processes.items()}
        for name, found in results.items():
            if name != "unconstrained" and not np.allclose(found, results["ours"], atol=1e-3):
                raise ValueError(f"{name} finds other items than ours among {count}")
        samples = alternate(
            {name: lambda p=process: p("time") for name, process in processes.items()},
            rounds=flags.rounds,
        )
        return [
            {
                "items": count,
                "contestant": name,
                "bytes_per_item": round(processes[name]("bytes"), 1),
                "step_ms": percentiles([1e3 * s / LEVELS for s in samples[name]])._asdict(),
            }
            for name in processes
        ]
    finally:
        for process in processes.values():
            process.__exit__()


def goals(rows: list[dict[str, Any]], flags: Flags) -> dict[str, float | None]:
    """What is to be reached, as numbers."""

    def step(contestant: str, count: int) -> float | None:
        found = [
            row["step_ms"]["p50"]
            for row in rows
            if (row["contestant"], row["items"]) == (contestant, count)
        ]
        return found[0] if found else None

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float | None:
        above, below = step(*one), step(*other)
        return None if above is None or below is None else above / below

    few, many, trie = min(flags.items), max(flags.items), flags.trie_items
    return {
        "time_of_most_items_over_fewest": ratio(("ours", many), ("ours", few)),
        "most_bytes_per_item": max(
            row["bytes_per_item"] for row in rows if row["contestant"] == "ours"
        ),
        "static_time_over_ours": ratio(("static", many), ("ours", many)),
        "transformers_time_over_ours": ratio(("transformers", trie), ("ours", trie)),
    }


def main() -> None:
    """Measure, print a table, write the record."""
    flags = tyro.cli(Flags, description=__doc__)
    rows = measure(flags)
    table = Table("items", "contestant", "step, ms: p20", "p50", "p80", "bytes an item")
    for row in rows:
        times = (f"{row['step_ms'][name]:.3f}" for name in ("p20", "p50", "p80"))
        table.add_row(f"{row['items']:,}", row["contestant"], *times, str(row["bytes_per_item"]))
    Console(file=sys.stderr).print(table)
    headline = goals(rows, flags)
    if flags.record:
        command = command_line("benchmarks.constrained_decoding", flags)
        write_record(flags.record, make_record(command, **headline, rows=rows))
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
