"""Texts as tokens, one for each byte of UTF-8, and pairs of texts as padded batches.

No vocabulary has to be learned or kept: every text can be read and written.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Int32, Int64

from experiments.sequence_to_sequence.text_pairs import MAX_BYTES, Pair
from recipe_jax.batches import SequencePairBatch
from recipe_jax.data.batching import EpochPlan

BEGIN, END = 256, 257
"""The token that begins every target, and the one that ends every text."""

VOCAB_SIZE = 258
MAX_TOKENS = MAX_BYTES + 2

SIZES = (16, 32, 48, 64, 96, 128, MAX_TOKENS)
"""Padded lengths: each pair of them that occurs is one compilation."""


def encode_source(text: str) -> list[int]:
    """The bytes of a text and its end."""
    return [*text.encode(), END]


def encode_target(text: str) -> list[int]:
    """The bytes of a text between its beginning and its end."""
    return [BEGIN, *text.encode(), END]


def decode(tokens: Sequence[int] | Int32[np.ndarray, "t"]) -> str:
    """The text of all bytes before the end; what is not UTF-8 becomes U+FFFD."""
    found = [int(token) for token in tokens]
    if END in found:
        found = found[: found.index(END)]
    return bytes(token for token in found if 0 <= token < BEGIN).decode(errors="replace")


def pad(
    sequences: Sequence[Sequence[int]],
) -> tuple[Int32[np.ndarray, "b t"], Int32[np.ndarray, "b"]]:
    """Sequences as rows of the smallest of `SIZES` that holds all of them, and their lengths."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    tokens = np.full((len(sequences), _size(int(lengths.max()))), END, np.int32)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens, lengths


def make_batch(pairs: Sequence[Pair]) -> SequencePairBatch:
    """Pairs as one padded batch."""
    source, source_lengths = pad([encode_source(pair.source) for pair in pairs])
    target, target_lengths = pad([encode_target(pair.target) for pair in pairs])
    return SequencePairBatch(source, source_lengths, target, target_lengths)


def pair_batches(
    pairs: Sequence[Pair], *, batch_size: int, seed: int
) -> grain.IterDataset[SequencePairBatch]:
    """An endless, prefetched, resumable stream of batches of sources of about one length.

    Batch `i` is a pure function of the pairs, the seed and `i`.  Every epoch shuffles the pairs and
    the batches; pairs that fill no batch are left out of that epoch.

    Args:
        pairs: to learn from, at least `batch_size`.
        batch_size: pairs per batch.
        seed: of the shuffles.
    """
    lengths = np.array([len(pair.source.encode()) + 1 for pair in pairs], np.int64)
    plan = EpochPlan(lengths, batch_size=batch_size, buckets=SIZES, seed=seed)

    def make(index: int) -> SequencePairBatch:
        rows, _ = plan.batch(index)
        return make_batch([pairs[row] for row in rows])

    endless = grain.MapDataset.range(np.iinfo(np.int32).max).map(make)
    return endless.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))


def all_batches(
    pairs: Sequence[Pair], batch_size: int
) -> Iterator[tuple[Int64[np.ndarray, "rows"], SequencePairBatch]]:
    """Every pair once, shortest sources first: row numbers and their batch.

    The last batch is filled with copies of which no token counts (`target_lengths` is 1).
    """
    order = np.argsort([len(pair.source.encode()) for pair in pairs], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        filled = np.concatenate([rows, np.repeat(rows[:1], batch_size - len(rows))])
        batch = make_batch([pairs[row] for row in filled])
        counts = np.arange(batch_size) < len(rows)
        lengths = np.where(counts, batch.target_lengths, 1).astype(np.int32)
        yield rows, batch._replace(target_lengths=lengths)


def _size(length: int) -> int:
    """The smallest padded length that holds so many tokens."""
    return next(size for size in SIZES if size >= length)
