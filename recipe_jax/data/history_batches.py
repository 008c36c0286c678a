"""Item histories to batches: packed for learning the next item, padded for asking for it."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int32, Int64

from recipe_jax.batches import NextItemBatch
from recipe_jax.data.interactions import Histories, in_random_order
from recipe_jax.data.packing import PackingPlan, TokenSequences, make_batch, split_long

SIZES = (8, 16, 32, 50)
"""Padded lengths of histories that are asked about; each is one compilation, as is the longest."""


class PaddedHistories(NamedTuple):
    """Some users' histories, padded on the right.

    Attributes:
        users: row numbers among all histories.
        items: index into the catalogue; 0 at padding and in rows beyond `users`.
        lengths: real items of each row.
    """

    users: Int64[np.ndarray, "k"]
    items: Int32[np.ndarray, "b t"]
    lengths: Int32[np.ndarray, "b"]


def next_item_batches(
    histories: Histories,
    *,
    max_items: int,
    batch_size: int,
    seed: int,
    share: Callable[[NextItemBatch], NextItemBatch] = lambda batch: batch,
) -> grain.IterDataset[NextItemBatch]:
    """An endless, prefetched, resumable stream of packed histories with the item after each item.

    Batch `i` is a pure function of the histories, the seed and `i`.  A history of more than
    `max_items + 1` items is cut into pieces of which each begins with the last item of the one
    before, so that every item but a user's first is a target once an epoch; users with one item
    are left out.  Sets are histories in an order that is drawn anew for each pass over them.

    Args:
        histories: to learn from.
        max_items: items of a row, and the most that a prediction sees.
        batch_size: rows of a batch.
        seed: of packing and shuffling.
        share: the rows of a batch that this process reads; all of them by default.

    Raises:
        ValueError: fewer items than a batch holds.
    """

    @functools.lru_cache(maxsize=2)
    def pairs(epoch: int) -> tuple[TokenSequences, TokenSequences]:
        rows = histories
        if not histories.ordered:
            rows = in_random_order(histories, seed=seed, draw=epoch)
        return _pairs(rows, max_items)

    plan = PackingPlan(pairs(0)[0], num_tokens=max_items, batch_size=batch_size, seed=seed)

    def make(index: int) -> NextItemBatch:
        rows = plan.batch(index)
        # Whatever their order, sets come in pieces of the same lengths.
        inputs, targets = pairs(0 if histories.ordered else index // plan.batches_per_epoch)
        packed = make_batch(inputs, rows, max_items)
        following = make_batch(targets, rows, max_items)
        batch = NextItemBatch(packed.tokens, following.tokens, packed.segments, packed.positions)
        return share(batch)

    endless = grain.MapDataset.range(np.iinfo(np.int32).max).map(make)
    return endless.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))


def padded_histories(
    histories: Histories, *, max_items: int, batch_size: int
) -> Iterator[PaddedHistories]:
    """The latest items of every user, users with short histories first; random ones of a set.

    Args:
        histories: of at least one item each.
        max_items: the most of each user that is read.
        batch_size: rows of a batch; the last is filled with rows of one item.

    Raises:
        ValueError: a user without items.
    """
    if not histories.ordered:
        histories = in_random_order(histories, seed=0)
    recent = histories.latest(max_items)
    lengths = recent.lengths
    if len(lengths) and not lengths.min():
        user = histories.users[int(lengths.argmin())]
        raise ValueError(f"user {user!r} has no items, must have at least one to be asked about")
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        users = order[start : start + batch_size]
        longest = int(lengths[users].max())
        size = next((size for size in SIZES if longest <= size <= max_items), max_items)
        items = np.zeros((batch_size, size), np.int32)
        within = np.arange(size) < lengths[users, None]
        items[: len(users)][within] = np.concatenate([recent.items_of(user) for user in users])
        counts = np.pad(lengths[users], (0, batch_size - len(users)), constant_values=1)
        yield PaddedHistories(users, items, counts.astype(np.int32))


def _pairs(histories: Histories, max_items: int) -> tuple[TokenSequences, TokenSequences]:
    """Pieces of histories without their last items, and without their first."""
    whole = TokenSequences(
        histories.items, np.ones(len(histories.items), np.float32), histories.offsets
    )
    pieces = split_long(whole, max_items + 1)
    spans = [
        (start, stop)
        for start, stop in zip(pieces.offsets, pieces.offsets[1:], strict=False)
        if stop - start > 1
    ]
    return (
        TokenSequences.of([pieces.tokens[start : stop - 1] for start, stop in spans]),
        TokenSequences.of([pieces.tokens[start + 1 : stop] for start, stop in spans]),
    )
