"""Batches: every recipe at most once an epoch, in buckets, in new orders, and resumable exactly."""

import itertools

import numpy as np
import pytest

from recipe_jax.data.batching import EpochPlan, pad_recipes, recipe_batches
from recipe_jax.data.recipes import RecipeSets

NUM_FOODS = 30
RNG = np.random.default_rng(0)
SIZES = RNG.integers(2, 13, 200)


def recipe_sets(sizes=SIZES) -> RecipeSets:
    rng = np.random.default_rng(1)
    foods = [rng.permutation(NUM_FOODS)[:size] for size in sizes]
    grams = [food + 1.0 for food in foods]  # grams tell which food they belong to
    return RecipeSets(
        recipe_ids=[f"r{i}" for i in range(len(sizes))],
        offsets=np.cumsum([0, *sizes], dtype=np.int64),
        foods=np.concatenate(foods).astype(np.int32),
        grams=np.concatenate(grams).astype(np.float32),
        num_lines=np.asarray(sizes, np.int32),
        num_mapped=np.asarray(sizes, np.int32),
    )


def plan(seed=0, **options) -> EpochPlan:
    return EpochPlan(SIZES, **{"batch_size": 8, "buckets": (4, 8, 12)} | options, seed=seed)


def epoch(p, index):
    return [p.batch(index * p.batches_per_epoch + i) for i in range(p.batches_per_epoch)]


def batches(count, seed=3):
    it = iter(
        recipe_batches(
            recipe_sets(), num_foods=NUM_FOODS, batch_size=8, seed=seed, buckets=(4, 8, 12)
        )
    )
    return it, list(itertools.islice(it, count))


def test_a_recipe_comes_at_most_once_an_epoch_and_nearly_all_come():
    p = plan()
    for index in range(3):
        rows = np.concatenate([rows for rows, _ in epoch(p, index)])
        assert len(set(rows.tolist())) == len(rows)
        assert len(rows) > len(SIZES) - len(p.bucket_sizes) * p.batch_size


def test_over_epochs_every_recipe_comes():
    p = plan()
    rows = np.concatenate([rows for index in range(12) for rows, _ in epoch(p, index)])
    assert set(rows.tolist()) == set(range(len(SIZES)))


def test_a_batch_holds_recipes_of_its_bucket_only():
    for rows, size in epoch(plan(), 0):
        below = {4: 0, 8: 4, 12: 8}[size]
        assert len(rows) == 8
        assert ((SIZES[rows] > below) & (SIZES[rows] <= size)).all()


def test_each_epoch_has_another_order_and_each_seed_too():
    p = plan()
    first, second = epoch(p, 0), epoch(p, 1)
    assert any((a[0] != b[0]).any() for a, b in zip(first, second, strict=True))
    assert any((a[0] != b[0]).any() for a, b in zip(first, epoch(plan(seed=1), 0), strict=True))
    again = epoch(plan(), 1)
    assert all((a[0] == b[0]).all() for a, b in zip(second, again, strict=True))


def test_a_bucket_that_never_fills_a_batch_is_merged_upwards():
    sizes = np.array([3] * 20 + [5] * 3 + [9] * 20)
    p = EpochPlan(sizes, batch_size=8, buckets=(4, 6, 12), seed=0)
    assert list(p.bucket_sizes) == [4, 12]
    assert set(p.bucket_of[sizes == 5].tolist()) == {1}
    few_large = EpochPlan(sizes[:-15], batch_size=8, buckets=(4, 6, 12), seed=0)
    assert few_large.bucket_sizes[-1] == 12  # the largest stays, however thin: recipes must fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 201}, "batch_size=201 must be at most the 200 examples"),
        ({"buckets": (4, 8)}, "an example of size 12 must be at most 8"),
    ],
)
def test_impossible_plans_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_padding_holds_no_food_and_no_grams():
    sets = recipe_sets()
    rows = np.arange(20)
    for rng in (None, np.random.default_rng(5)):
        batch = pad_recipes(sets, rows, num_foods=NUM_FOODS, size=13, rng=rng)
        assert batch.foods.dtype == batch.lengths.dtype == np.int32
        assert batch.grams.dtype == np.float32
        for i, n in enumerate(batch.lengths):
            assert n == SIZES[i]
            assert set(batch.foods[i, :n].tolist()) == set(sets.foods_of(i).tolist())
            assert (batch.foods[i, n:] == NUM_FOODS).all()
            assert (batch.grams[i, n:] == 0).all()
            assert (batch.grams[i, :n] == batch.foods[i, :n] + 1).all()  # grams follow their food


def test_without_a_generator_the_written_order_is_kept_and_with_one_every_order_comes():
    sets = recipe_sets(np.array([3]))
    written = pad_recipes(sets, [0], num_foods=NUM_FOODS, size=3)
    assert written.foods[0].tolist() == sets.foods_of(0).tolist()
    rng = np.random.default_rng(0)
    orders = {
        tuple(pad_recipes(sets, [0], num_foods=NUM_FOODS, size=3, rng=rng).foods[0].tolist())
        for _ in range(60)
    }
    assert len(orders) == 6


def test_a_recipe_that_is_not_fully_weighed_has_no_grams_at_all():
    sets = recipe_sets(np.array([3, 3, 3]))
    sets.grams[1], sets.grams[3] = np.nan, 0.0
    batch = pad_recipes(sets, [0, 1, 2], num_foods=NUM_FOODS, size=4)
    assert (batch.grams[:2] == 0).all()
    assert (batch.grams[2, :3] > 0).all()


def test_a_recipe_above_the_padded_size_is_named():
    with pytest.raises(ValueError, match=r"recipe r1: 5 foods must be at most 4"):
        pad_recipes(recipe_sets(np.array([3, 5])), [0, 1], num_foods=NUM_FOODS, size=4)


def test_a_resumed_stream_gives_the_batches_that_an_uninterrupted_one_gives():
    it, _ = batches(5)
    state = it.get_state()
    expected = list(itertools.islice(it, 30))  # over the end of the epoch
    resumed, _ = batches(0)
    resumed.set_state(state)
    for batch, other in zip(itertools.islice(resumed, 30), expected, strict=True):
        for got, wanted in zip(batch, other, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_members_come_in_another_order_in_another_epoch():
    p = plan(seed=3)
    _, found = batches(2 * p.batches_per_epoch)
    seen = {}
    for i, batch in enumerate(found):
        for foods, length, row in zip(batch.foods, batch.lengths, p.batch(i)[0], strict=True):
            seen.setdefault(int(row), []).append(foods[:length].tolist())
    twice = [orders for orders in seen.values() if len(orders) == 2]
    assert all(set(a) == set(b) for a, b in twice)
    assert np.mean([a != b for a, b in twice]) > 0.7
