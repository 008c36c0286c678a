"""Token sequences packed into rows: batches without much padding, each a function of its number."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32, Int32, Int64

from recipe_jax.batches import TokenBatch


@dataclasses.dataclass(frozen=True)
class TokenSequences:
    """Many token sequences in one array.

    Attributes:
        tokens: all sequences, one after the other.
        weights: what predicting each token counts; 0 for prompts that are not learned.
        offsets: where each sequence begins, and the end of the last.
    """

    tokens: Int32[np.ndarray, "total"]
    weights: Float32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "n_plus_one"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, "n"]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """Hash of all of it: the data by which a run is known, wherever the file lies."""
        digest = hashlib.sha256()
        for array in (self.offsets, self.tokens, self.weights):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def of(cls, sequences: Sequence[Any], weights: Sequence[Any] | None = None) -> "TokenSequences":
        """From lists or arrays, one for each sequence; every token counts without weights."""
        lengths = [len(sequence) for sequence in sequences]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.concatenate(
            [np.asarray(s, np.int32) for s in sequences] or [np.zeros(0, np.int32)]
        )
        counts = np.ones(len(flat), np.float32)
        if weights is not None:
            counts = np.concatenate([np.asarray(w, np.float32) for w in weights])
        return cls(flat, counts, offsets)


def split_long(sequences: TokenSequences, num_tokens: int) -> TokenSequences:
    """Sequences of more than `num_tokens` cut into pieces of that length.

    A piece begins with the last token of the one before, so that every token is predicted once.
    """
    if num_tokens < 2:
        raise ValueError(f"num_tokens={num_tokens} must be at least 2: a token predicts the next")
    tokens, weights = [], []
    for start, stop in zip(sequences.offsets, sequences.offsets[1:], strict=False):
        for first in range(start, max(stop - 1, start + 1), num_tokens - 1):
            last = min(first + num_tokens, stop)
            tokens.append(sequences.tokens[first:last])
            weights.append(sequences.weights[first:last])
    return TokenSequences.of(tokens, weights)


def pack_rows(
    lengths: Int64[np.ndarray, "n"], order: Int64[np.ndarray, "n"], num_tokens: int
) -> list[list[int]]:
    """Which sequences lie in which row: each in the fullest open row that has room (best fit).

    Args:
        lengths: of all sequences; none above `num_tokens`.
        order: in which they are placed.
        num_tokens: of a row.

    Returns:
        Rows of sequence numbers, in the order in which they were opened.
    """
    if len(lengths) and lengths.max() > num_tokens:
        worst = int(lengths.argmax())
        raise ValueError(
            f"sequence {worst} has {lengths[worst]} tokens, must be at most num_tokens={num_tokens}"
        )
    rows: list[list[int]] = []
    open_by_room: list[list[int]] = [[] for _ in range(num_tokens + 1)]
    for number in order:
        need = int(lengths[number])
        room = next((r for r in range(need, num_tokens + 1) if open_by_room[r]), None)
        if room is None:
            rows.append([])
            room, row = num_tokens, len(rows) - 1
        else:
            row = open_by_room[room].pop()
        rows[row].append(int(number))
        open_by_room[room - need].append(row)
    return rows


def make_batch(
    sequences: TokenSequences, rows: Sequence[Sequence[int]], num_tokens: int
) -> TokenBatch:
    """Rows of packed sequences as one batch; padding is token 0 in segment 0."""
    shape = (len(rows), num_tokens)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for row, members in enumerate(rows):
        place = 0
        for segment, number in enumerate(members, start=1):
            start, stop = sequences.offsets[number : number + 2]
            here = slice(place, place + int(stop - start))
            tokens[row, here] = sequences.tokens[start:stop]
            weights[row, here] = sequences.weights[start:stop]
            weights[row, place] = 0.0  # nothing comes before the first
            segments[row, here] = segment
            positions[row, here] = np.arange(stop - start)
            place = here.stop
    return TokenBatch(tokens, segments, positions, weights)


class PackingPlan:
    """Which sequences form which batch of which epoch; a pure function of its arguments.

    Every epoch packs the sequences in another order and shuffles the rows.  Rows that are left
    over at the end of an epoch are dropped for that epoch.
    """

    def __init__(self, sequences: TokenSequences, *, num_tokens: int, batch_size: int, seed: int):
        self.lengths, self.num_tokens = sequences.lengths, num_tokens
        self.batch_size, self.seed = batch_size, seed
        fewest = -(-int(self.lengths.sum()) // num_tokens)
        # Whatever the order, an epoch has at least the rows that its tokens fill.
        self.batches_per_epoch = fewest // batch_size
        if self.batches_per_epoch < 1:
            raise ValueError(
                f"batch_size={batch_size} rows of num_tokens={num_tokens} are more than the "
                f"{self.lengths.sum()} tokens of {len(sequences)} sequences: take smaller batches "
                "or more text"
            )

    def batch(self, index: int) -> list[list[int]]:
        """The rows of batch `index`, counted over all epochs."""
        epoch, place = divmod(index, self.batches_per_epoch)
        return self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    @functools.lru_cache(maxsize=2)  # noqa: B019  (the plan lives as long as the run)
    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        rows = pack_rows(self.lengths, rng.permutation(len(self.lengths)), self.num_tokens)
        return [rows[i] for i in rng.permutation(len(rows))]


def token_batches(
    sequences: TokenSequences,
    *,
    num_tokens: int,
    batch_size: int,
    seed: int,
    share: Callable[[TokenBatch], TokenBatch] = lambda batch: batch,
) -> grain.IterDataset[TokenBatch]:
    """An endless, prefetched, resumable stream of packed batches.

    Args:
        sequences: none longer than `num_tokens`.
        num_tokens: of a row.
        batch_size: rows of a batch.
        seed: of packing and shuffling.
        share: the rows of a batch that this process reads; all of them by default.
    """
    plan = PackingPlan(sequences, num_tokens=num_tokens, batch_size=batch_size, seed=seed)

    def make(index: int) -> TokenBatch:
        return share(make_batch(sequences, plan.batch(index), num_tokens))

    endless = grain.MapDataset.range(np.iinfo(np.int32).max).map(make)
    return endless.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))


def all_batches(
    sequences: TokenSequences, *, num_tokens: int, batch_size: int
) -> Iterator[TokenBatch]:
    """Every sequence once, in order, for evaluation; the last batch is filled with empty rows."""
    rows = pack_rows(sequences.lengths, np.arange(len(sequences)), num_tokens)
    for start in range(0, len(rows), batch_size):
        members = rows[start : start + batch_size]
        yield make_batch(sequences, members + [[]] * (batch_size - len(members)), num_tokens)
