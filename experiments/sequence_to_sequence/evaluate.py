"""Exact match of a trained model, and of baselines on the same pairs.

python -m experiments.sequence_to_sequence evaluate --pairs pairs.tsv --run runs/pairs --split test
"""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.commands import check_least
from experiments.record import command_line, make_record, write_record
from experiments.sequence_to_sequence.baselines import BASELINES, words_of
from experiments.sequence_to_sequence.scores import exact_match
from experiments.sequence_to_sequence.text_pairs import Pair, Split
from experiments.sequence_to_sequence.train import read_task
from experiments.sequence_to_sequence.translator import (
    load_translator,
    teacher_forced,
    write_targets,
)
from recipe_jax.functional import num_parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is scored on what.

    Attributes:
        pairs: the table that the model was trained on; the task made up by rule if not given.
        run: a run folder, or its `model`.
        split: which part; choose on validation, look at test once.
        limit: most pairs to score, a random sample of the part, the same each time.
        beams: search for the most probable text, so many at a time; else byte by byte.
        batch_size: sources at a time.
        record: write the results to this file.
    """

    pairs: Path | None = None
    run: Path = Path("runs/sequence_to_sequence")
    split: Split = "validation"
    limit: int = 2000
    beams: int | None = None
    batch_size: int = 64
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, limit=1, batch_size=1, beams=1)


def run(flags: Flags) -> dict[str, Any]:
    """Score, print, write the record."""
    translator, table = load_translator(flags.run), read_task(flags.pairs)
    if table.fingerprint != translator.fingerprint:
        raise ValueError(
            f"{flags.run}: the model was trained on other pairs ({translator.task}) than "
            f"{table.name}: its training may hold what is to be tested"
        )
    training, pairs = table.part("train"), table.part(flags.split)[: flags.limit]
    sources = [pair.source for pair in pairs]
    written = write_targets(translator, sources, beams=flags.beams, batch_size=flags.batch_size)
    seen = {words_of(pair.source) for pair in training}
    unseen = [words_of(source) not in seen for source in sources]
    scores = {"model": score([text.text for text in written], pairs, unseen)}
    scores |= {
        name: score(baseline(training, sources), pairs, unseen)
        for name, baseline in BASELINES.items()
    }
    print_scores(f"{table.name}, {flags.split}", scores)
    headline = {
        "split": flags.split,
        **scores.pop("model"),
        **teacher_forced(
            translator.fn, translator.params, pairs, batch_size=min(flags.batch_size, len(pairs))
        ),
        "num_parameters": num_parameters(translator.fn.shapes),
        "num_training_pairs": len(training),
        "baselines": scores,
    }
    if flags.record is not None:
        command = command_line("experiments.sequence_to_sequence evaluate", flags)
        write_record(flags.record, make_record(command, **headline))
    return headline


def score(written: list[str], pairs: tuple[Pair, ...], unseen: list[bool]) -> dict[str, Any]:
    """Exact match on all pairs, and on those whose words together are no training source's.

    Args:
        written: a target for each pair.
        pairs: what was asked.
        unseen: whether no training source has the same words, numbers aside.
    """
    chosen = [i for i, is_unseen in enumerate(unseen) if is_unseen]
    harder = (
        exact_match([written[i] for i in chosen], [pairs[i].target for i in chosen])
        if chosen
        else {"n": 0}
    )
    return {**exact_match(written, [pair.target for pair in pairs]), "unseen_words": harder}


def print_scores(title: str, scores: dict[str, dict[str, Any]]) -> None:
    """A table on stderr: a row for the model and for each baseline."""
    table = Table(title=title)
    for column in ("", "exact match", "95 % interval", "n", "unseen words", "n"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in scores.items():
        low, high = found["exact_match_interval"]
        harder = found["unseen_words"]
        table.add_row(
            name,
            f"{found['exact_match']:.3f}",
            f"{low:.3f} to {high:.3f}",
            str(found["n"]),
            f"{harder['exact_match']:.3f}" if harder["n"] else "",
            str(harder["n"]),
        )
    Console(stderr=True).print(table)
