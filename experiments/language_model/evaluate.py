"""Score a checkpoint on a text: nats per token, perplexity, accuracy of the next token.

python -m experiments.language_model evaluate --model runs/stories --text stories.txt
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.commands import check_least
from experiments.language_model.checkpoints import read_checkpoint
from experiments.language_model.train import make_validation, row_length
from experiments.record import command_line, make_record, write_record
from recipe_jax.data.packing import TokenSequences, split_long
from recipe_jax.data.texts import read_documents, tokenize_documents
from recipe_jax.functional import num_parameters
from recipe_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is scored on what.

    Attributes:
        text: as for `train`; every document counts.
        model: as for `train`.
        num_tokens: tokens of a row; the model's own length, but at most 512, if not given.
        batch_size: rows of a batch.
        record: write the results to this file.
    """

    text: Path
    model: Path | None = None
    num_tokens: int | None = None
    batch_size: int = 8
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, num_tokens=2, batch_size=1)


def run(flags: Flags) -> dict[str, Any]:
    """Score, print, write the record."""
    checkpoint = read_checkpoint(flags.model)
    model = checkpoint.model
    num_tokens = row_length(flags.num_tokens, model)
    documents = read_documents(flags.text)
    sequences = split_long(tokenize_documents(documents, checkpoint.tokenizer), num_tokens)
    mesh = make_mesh("data=1", jax.devices()[:1])
    found = make_validation(model, sequences, num_tokens, flags.batch_size, mesh)(model.params)
    headline = {
        **found,
        "num_parameters": num_parameters(model.params),
        "baselines": {"unigram": {"nats_per_token": unigram_nats(sequences)}},
    }
    Console(stderr=True).print(
        f"{checkpoint.source}: {found['nats_per_token']:.4f} nats per token, perplexity "
        f"{found['perplexity']:.2f}, accuracy {found['accuracy']:.1%} on {found['n']} tokens of "
        f"{len(documents)} documents"
    )
    if flags.record is not None:
        command = command_line("experiments.language_model evaluate", flags, always=("text",))
        write_record(flags.record, make_record(command, **headline))
    return headline


def unigram_nats(sequences: TokenSequences) -> float:
    """Entropy of the tokens that count, as if each came from the text's own frequencies."""
    learned = sequences.tokens[sequences.weights > 0]
    shares = np.unique(learned, return_counts=True)[1] / len(learned)
    return float(-(shares * np.log(shares)).sum())
