"""Recipe sets to padded batches: bucketed by size, shuffled and reordered anew each epoch.

Batch `i` is a pure function of the recipes, the seed and `i`, so that a resumed run reads exactly
the batches that an uninterrupted one would have read.  Grain adds the prefetching and the state.
"""

import functools
from collections.abc import Callable, Sequence

import grain
import numpy as np
from jaxtyping import Int64

from recipe_jax.batches import RecipeBatch
from recipe_jax.data.recipes import RecipeSets

BUCKETS = (6, 9, 12, 16, 25)
"""Padded sizes: each is one compilation, and a recipe goes into the smallest that holds it."""


def pad_recipes(
    sets: RecipeSets,
    rows: Sequence[int] | Int64[np.ndarray, "b"],
    *,
    num_foods: int,
    size: int,
    rng: np.random.Generator | None = None,
) -> RecipeBatch:
    """The recipes `rows` as one batch of padded size `size`.

    Args:
        sets: where the recipes are.
        rows: which recipes.
        num_foods: the vocabulary's size, which is also the padding index.
        size: members per row; a larger recipe is refused.
        rng: puts each recipe's members in a random order; None keeps the written order.

    Raises:
        ValueError: if a recipe has more members than `size`.
    """
    rows = np.asarray(rows, np.int64)
    lengths = sets.sizes[rows]
    if len(rows) and lengths.max() > size:
        worst = rows[lengths.argmax()]
        raise ValueError(
            f"recipe {sets.recipe_ids[worst]}: {lengths.max()} foods must be at most {size}"
        )
    place = np.arange(size)
    padding = place >= lengths[:, None]
    order = np.broadcast_to(place, padding.shape)
    if rng is not None:
        order = np.argsort(np.where(padding, 2.0, rng.random(padding.shape)), axis=1)
    member = np.where(padding, 0, sets.offsets[rows][:, None] + np.where(padding, 0, order))
    foods = np.where(padding, num_foods, sets.foods[member])
    grams = np.where(padding, 0.0, sets.grams[member])
    weighed = np.all(padding | (grams > 0), axis=1, keepdims=True)  # NaN grams are not weighed
    return RecipeBatch(
        foods=foods.astype(np.int32),
        lengths=lengths.astype(np.int32),
        grams=np.where(weighed, grams, 0.0).astype(np.float32),
    )


class EpochPlan:
    """Which examples form which batch of which epoch; a pure function of its arguments.

    Every epoch shuffles the examples, fills buckets in that order and shuffles the full batches.
    What is left over in the buckets at the end of an epoch is dropped for that epoch; the shuffle
    makes it other examples each time.  A bucket that can never fill a batch is merged upwards.
    """

    def __init__(
        self, sizes: Int64[np.ndarray, "n"], *, batch_size: int, buckets: Sequence[int], seed: int
    ):
        if len(sizes) < batch_size:
            raise ValueError(f"batch_size={batch_size} must be at most the {len(sizes)} examples")
        if sizes.max() > buckets[-1]:
            raise ValueError(f"an example of size {sizes.max()} must be at most {buckets[-1]}")
        self.batch_size = batch_size
        self.seed = seed
        self.bucket_sizes, self.bucket_of = _merge_buckets(sizes, batch_size, buckets)
        counts = np.bincount(self.bucket_of, minlength=len(self.bucket_sizes))
        self.batches_per_epoch = int((counts // batch_size).sum())

    def batch(self, index: int) -> tuple[Int64[np.ndarray, "b"], int]:
        """The examples of batch `index`, counted over all epochs, and their padded size."""
        epoch, place = divmod(index, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    @functools.lru_cache(maxsize=2)  # noqa: B019  (the plan lives as long as the run)
    def _epoch(self, epoch: int) -> list[tuple[Int64[np.ndarray, "b"], int]]:
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = rng.permutation(len(self.bucket_of))
        batches = []
        for bucket, size in enumerate(self.bucket_sizes):
            rows = shuffled[self.bucket_of[shuffled] == bucket]
            for start in range(0, len(rows) - self.batch_size + 1, self.batch_size):
                batches.append((rows[start : start + self.batch_size], size))
        return [batches[i] for i in rng.permutation(len(batches))]


def _merge_buckets(
    sizes: Int64[np.ndarray, "n"], batch_size: int, buckets: Sequence[int]
) -> tuple[list[int], Int64[np.ndarray, "n"]]:
    """Drop the boundary of any bucket with fewer examples than one batch."""
    kept = list(buckets)
    while len(kept) > 1:
        counts = np.bincount(np.searchsorted(kept, sizes), minlength=len(kept))
        thin = [i for i, count in enumerate(counts) if count < batch_size]
        if not thin:
            break
        kept.pop(thin[0] if thin[0] < len(kept) - 1 else thin[0] - 1)
    return kept, np.searchsorted(kept, sizes)


def recipe_batches(
    sets: RecipeSets,
    *,
    num_foods: int,
    batch_size: int,
    seed: int,
    buckets: Sequence[int] = BUCKETS,
    share: Callable[[RecipeBatch], RecipeBatch] = lambda batch: batch,
) -> grain.IterDataset[RecipeBatch]:
    """An endless, prefetched, resumable stream of shuffled batches.

    Args:
        sets: the training recipes.
        num_foods: the vocabulary's size, which is also the padding index.
        batch_size: recipes per batch.
        seed: of the shuffle and of the members' order.
        buckets: padded sizes, increasing.
        share: the rows of a batch that this process reads; all of them by default.
    """
    plan = EpochPlan(sets.sizes, batch_size=batch_size, buckets=buckets, seed=seed)

    def make(index: int) -> RecipeBatch:
        rows, size = plan.batch(index)
        rng = np.random.default_rng([seed, 1, index])
        return share(pad_recipes(sets, rows, num_foods=num_foods, size=size, rng=rng))

    endless = grain.MapDataset.range(np.iinfo(np.int32).max).map(make)
    return endless.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
