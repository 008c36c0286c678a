"""Examples from histories: what comes last is never learned, and each question is as it was."""

import pytest
from small_shop import make_catalogue, make_ids

from recipe_jax.data.files import DataError
from recipe_jax.data.history_tasks import history_examples
from recipe_jax.data.id_tasks import item_fields
from recipe_jax.data.id_templates import TRIGGER, packaged_templates
from recipe_jax.data.interactions import histories_of, leave_last_out, random_leave_one_out

HISTORIES = histories_of(
    ["ann", "bob", "cy"], [[0, 1, 2, 3, 4, 5], [5, 4, 3], [2, 0]], ordered=True
)


def next_items(histories=HISTORIES, ids=None, **options):
    catalogue = make_catalogue(6)
    ids = make_ids(catalogue) if ids is None else ids
    templates = packaged_templates(item_fields(catalogue))
    split = (leave_last_out if histories.ordered else random_out)(histories)
    return history_examples(split, catalogue.ids, ids, templates, **options), ids


def random_out(histories):
    return random_leave_one_out(histories, seed=0)


def told(rows, ids) -> list[tuple[str, list[str], str]]:
    """Of each example its part, the items of the question and that of the answer."""
    items = {text: item for item, text in ids.items()}
    found = []
    for row in rows:
        assert row.type == "predict_next_item" and row.query.endswith(TRIGGER)
        assert items[row.response] == row.item_id
        texts = [f"{start}[SEM_END]" for start in row.query.split("[SEM_END]")[:-1]]
        history = [items[text[text.index("[SEM_START]") :]] for text in texts]
        found.append((row.part, history, row.item_id))
    return found


def test_histories_are_split_within_each_user_the_last_items_left_out():
    examples, ids = next_items()
    assert told(examples.rows, ids) == [
        ("train", ["i0"], "i1"),
        ("train", ["i0", "i1"], "i2"),
        ("train", ["i0", "i1", "i2"], "i3"),
        ("train", ["i2"], "i0"),
        ("validation", ["i0", "i1", "i2", "i3"], "i4"),
        ("validation", ["i5"], "i4"),
        ("test", ["i0", "i1", "i2", "i3", "i4"], "i5"),
        ("test", ["i5", "i4"], "i3"),
    ]
    assert (examples.num_without_id, examples.num_not_asked) == (0, {"predict_next_item": 0})


def test_long_histories_are_cut_to_the_latest_and_few_targets_are_the_last():
    examples, ids = next_items(max_items=2, num_targets_per_user=1)
    found = told(examples.rows, ids)
    assert found[:2] == [("train", ["i1", "i2"], "i3"), ("train", ["i2"], "i0")]
    assert found[-2] == ("test", ["i3", "i4"], "i5")


def test_a_users_examples_use_different_templates():
    examples, _ = next_items()
    rows = [row for row in examples.rows if row.item_id != "i0"]
    begins = [row.query.split("[SEM_START]")[0] for row in rows]
    of_ann = [begins[place] for place in (0, 1, 2, 3, 5)]
    assert len(set(of_ann)) == 5


def test_items_without_an_id_are_left_out_of_histories():
    ids = make_ids(make_catalogue(6))
    some = {item: text for item, text in ids.items() if item not in ("i4", "i1")}
    examples, _ = next_items(ids=some)
    assert examples.num_without_id == 2
    assert examples.num_not_asked == {"predict_next_item": 2}
    assert told(examples.rows, some) == [
        ("train", ["i0"], "i2"),
        ("train", ["i0", "i2"], "i3"),
        ("train", ["i2"], "i0"),
        ("test", ["i0", "i2", "i3"], "i5"),
        ("test", ["i5"], "i3"),
    ]
    with pytest.raises(DataError, match="item 'i1' has no ID, nor have 1 others of 6"):
        next_items(ids=some, strict=True)


def test_sets_and_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="sets have no next item"):
        next_items(HISTORIES._replace(ordered=False))
    with pytest.raises(ValueError, match="max_items=0"):
        next_items(max_items=0)
    with pytest.raises(ValueError, match="num_targets_per_user=0"):
        next_items(num_targets_per_user=0)
