"""Examples about items: parts that do not leak, answers that are IDs, nothing left to chance."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shop import SIZES, make_catalogue, make_ids

from recipe_jax.data.catalogues import Catalogue
from recipe_jax.data.files import DataError
from recipe_jax.data.id_tasks import ITEM_TASKS, item_examples, item_fields
from recipe_jax.data.id_templates import (
    NOT_FIELDS,
    TRIGGER,
    Template,
    Templates,
    packaged_templates,
)
from recipe_jax.data.recipes import split_of
from recipe_jax.semantic_ids import format_id, parse_id


def make_examples(catalogue: Catalogue, ids: dict[str, str] | None = None, **options):
    ids = make_ids(catalogue) if ids is None else ids
    return item_examples(catalogue, ids, packaged_templates(item_fields(catalogue)), **options)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_laws_of_any_catalogue(titles, count, seed):
    catalogue = make_catalogue(len(titles), tuple(title or "x" for title in titles))
    ids = make_ids(catalogue)
    examples = make_examples(catalogue, num_examples_per_item=count, seed=seed)
    rows = list(examples.rows)
    asked = Counter((row.item_id, row.type) for row in rows)
    for task in ITEM_TASKS:
        found = [asked[item, task] for item in catalogue.ids]
        assert found.count(count) == len(found) - examples.num_not_asked[task]
        assert found.count(0) == examples.num_not_asked[task]
    for row in rows:
        assert row.part == split_of(row.item_id)
        if row.type == "predict_semantic_id":
            assert row.query.endswith(TRIGGER) and row.query.count("[") == 1
            assert format_id(parse_id(row.response, SIZES)) == ids[row.item_id]
        else:
            assert ids[row.item_id] in row.query and row.response.strip()
            assert row.query.count("[") == len(SIZES) + 2 and "[" not in row.response
    assert rows == list(make_examples(catalogue, num_examples_per_item=count, seed=seed).rows)


def test_no_item_has_examples_in_two_parts():
    rows = list(make_examples(make_catalogue(200), num_examples_per_item=3).rows)
    parts = defaultdict(set)
    for row in rows:
        parts[row.item_id].add(row.part)
    assert len(parts) == 200 and all(len(found) == 1 for found in parts.values())
    counts = Counter(found for part in parts.values() for found in part)
    assert counts["train"] > 140 and min(counts["validation"], counts["test"]) > 8
    texts = {part: {row.response for row in rows if row.part == part} for part in counts}
    ids = {part: {text for text in found if "[" in text} for part, found in texts.items()}
    assert ids["train"].isdisjoint(ids["test"] | ids["validation"])


def test_no_template_is_used_twice_while_others_are_left():
    catalogue = make_catalogue(30)
    ids = make_ids(catalogue)
    kinds = packaged_templates(item_fields(catalogue)).of("predict_attribute")
    usable = {False: [t for t in kinds if "brand" not in t.fields], True: list(kinds)}
    orders = set()
    for count in (3, 7, 9):
        examples = make_examples(
            catalogue, tasks=("predict_attribute",), num_examples_per_item=count
        )
        used = defaultdict(Counter)
        for row in examples.rows:
            used[row.item_id][row.query.replace(ids[row.item_id], "{id}")] += 1
        for place, item in enumerate(catalogue.ids):
            ways = usable[bool(catalogue.attributes["brand"][place])]
            times = [used[item][template.query] for template in ways]
            assert sum(times) == count and max(times) - min(times) <= 1
            orders.add(tuple(used[item]))
    assert len(orders) > 10  # not the same ones for all items


def test_an_item_has_the_same_examples_among_others_and_in_another_order():
    whole = make_catalogue(40)
    ids = make_ids(whole)
    few = Catalogue(
        whole.ids[9:4:-1],
        whole.texts[9:4:-1],
        {name: column[9:4:-1] for name, column in whole.attributes.items()},
        "",
    )
    expected = [row for row in make_examples(whole, ids).rows if row.item_id in few.ids]
    assert sorted(make_examples(few, ids).rows) == sorted(expected)
    other = [row for row in make_examples(whole, ids, seed=1).rows if row.item_id in few.ids]
    assert sorted(other) != sorted(expected)


def test_items_without_an_id_are_left_out_and_counted_or_refused():
    catalogue = make_catalogue(10)
    ids = make_ids(catalogue)
    some = {item: text for item, text in ids.items() if item not in ("i3", "i7", "i8")}
    found = make_examples(catalogue, some)
    assert found.num_without_id == 3 and {row.item_id for row in found.rows} == set(some)
    with pytest.raises(DataError, match="item 'i3' has no ID, nor have 2 others of 10"):
        make_examples(catalogue, some, strict=True)
    assert make_examples(catalogue, ids, strict=True).num_without_id == 0
    with pytest.raises(DataError, match="none of 10 items has an ID"):
        make_examples(catalogue, {"other": "x"})
    with pytest.raises(DataError, match=r"items 'i0' and 'i4' have one ID, '.SEM_START"):
        make_examples(catalogue, ids | {"i4": ids["i0"]})


def test_an_item_that_no_template_fits_is_counted():
    catalogue = make_catalogue(9)
    way = Template("predict_attribute", "Who makes {id}?", "{brand}")
    templates = Templates("mine", "You know items.", (way,))
    found = item_examples(catalogue, make_ids(catalogue), templates, tasks=("predict_attribute",))
    assert found.num_not_asked == {"predict_attribute": 3}
    assert {row.item_id for row in found.rows} == {"i1", "i2", "i4", "i5", "i7", "i8"}
    with pytest.raises(DataError, match="mine: holds no template of type 'predict_semantic_id'"):
        item_examples(catalogue, make_ids(catalogue), templates)
    other = catalogue._replace(attributes={})
    with pytest.raises(DataError, match="templates name 'brand'; items have text"):
        item_examples(other, make_ids(catalogue), templates, tasks=("predict_attribute",))


@pytest.mark.parametrize("options", [{"num_examples_per_item": 0}, {"tasks": ()}])
def test_calls_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=r"must be"):
        make_examples(make_catalogue(3), **options)


def test_names_that_templates_use_and_half_characters_are_refused():
    catalogue = make_catalogue(3)
    for name in NOT_FIELDS:
        with pytest.raises(DataError, match=f"attribute '{name}' must be called otherwise"):
            item_fields(catalogue._replace(attributes={name: catalogue.texts}))
    broken = catalogue._replace(texts=("a", "b\ud800", "c"))
    with pytest.raises(DataError, match=r"item 'i1': text: character 1 is '\\ud800'"):
        make_examples(broken)


def test_several_values_of_an_attribute_are_told_as_a_list():
    catalogue = make_catalogue(1)
    catalogue = catalogue._replace(attributes={"title": ("Soap|red\x07 ||",)})
    way = Template("predict_attribute", "{id}", "{title}")
    (row,) = item_examples(
        catalogue,
        make_ids(catalogue),
        Templates("mine", "s", (way,)),
        tasks=("predict_attribute",),
    ).rows
    assert row.response == "Soap, red"
