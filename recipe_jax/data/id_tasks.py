"""What a language model learns about items that have IDs: questions and answers from templates.

Tasks as templates come from P5 (Geng et al. 2022, arXiv:2203.13366), those that tie words to IDs
from LC-Rec (Zheng et al. 2024, arXiv:2311.09049): from words to an item's ID, and from an ID to a
fact about the item.  `history_tasks` has the one from what a user took to what comes next.

IDs come as their texts, as `recipe_jax.semantic_ids.format_id` writes them: nothing here makes or
reads one.  Everything drawn depends on the seed and on the id of the item or user alone, not on
which others there are nor on their order.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from recipe_jax.data.catalogues import LIST_SEPARATOR, Catalogue
from recipe_jax.data.files import DataError
from recipe_jax.data.id_templates import NOT_FIELDS, TaskName, Template, Templates, plain_text
from recipe_jax.data.recipes import split_of
from recipe_jax.data.texts import check_characters

ITEM_TASKS: tuple[TaskName, ...] = ("predict_semantic_id", "predict_attribute")


class Example(NamedTuple):
    """A question and its answer.

    Attributes:
        part: train, validation or test.
        type: the task.
        item_id: of the item that question or answer is about.
        query: what is asked.
        response: what is answered.
    """

    part: str
    type: str
    item_id: str
    query: str
    response: str


class Examples(NamedTuple):
    """Examples, made as they are taken, and what has none.

    Attributes:
        rows: the examples; they can be taken once.
        num_without_id: items left out for want of an ID.
        num_not_asked: task -> how many of those that have an ID no template could be filled for;
            of histories, how many validation and test questions were lost for want of IDs.
    """

    rows: Iterator[Example]
    num_without_id: int
    num_not_asked: dict[str, int]


def item_fields(catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    """What templates can say of each item: its attributes, and as `text` all that is known of it.

    An attribute named `text` goes before.

    Raises:
        DataError: an attribute whose name means something else in a template.
    """
    for name in NOT_FIELDS:
        if name in catalogue.attributes:
            raise DataError(f"attribute {name!r} must be called otherwise: templates use the name")
    return {"text": catalogue.texts, **catalogue.attributes}


def item_examples(
    catalogue: Catalogue,
    ids: Mapping[str, str],
    templates: Templates,
    *,
    tasks: Sequence[TaskName] = ITEM_TASKS,
    num_examples_per_item: int = 1,
    seed: int = 0,
    strict: bool = False,
) -> Examples:
    """Examples of each item, `num_examples_per_item` of each task, split by item.

    All examples of an item are in one part, that of `split_of`.  An item's examples use templates
    that its fields fill, each once before any is used again.  Items stand in their own order.

    Args:
        catalogue: the items.
        ids: item -> the text of its ID; those of other items do not matter.
        templates: ways to ask and to answer.
        tasks: which of `ITEM_TASKS` to make examples of.
        num_examples_per_item: of each task.
        seed: of the templates' order.
        strict: refuse items without an ID, which are otherwise left out.

    Raises:
        DataError: an item without an ID if `strict`, an ID of two items, no item with an ID, no
            template of a task, a text that is no UTF-8.
        ValueError: a task of another kind, or fewer than one example.
    """
    if num_examples_per_item < 1:
        raise ValueError(f"num_examples_per_item={num_examples_per_item} must be at least 1")
    if not tasks or not set(tasks) <= set(ITEM_TASKS):
        raise ValueError(f"tasks={tuple(tasks)} must be of {ITEM_TASKS}, one at least")
    kinds: dict[str, list[tuple[Template, frozenset[str]]]] = {
        task: [(way, way.fields) for way in templates.of(task)] for task in tasks
    }
    num_without_id = check_ids(catalogue.ids, ids, strict=strict)
    fields = _plain_fields(catalogue, [names for kind in kinds.values() for _, names in kind])
    rows = [row for row, item in enumerate(catalogue.ids) if item in ids]

    def usable(row: int, task: str) -> list[Template]:
        return [way for way, names in kinds[task] if all(fields[name][row] for name in names)]

    def examples() -> Iterator[Example]:
        for row in rows:
            item = catalogue.ids[row]
            values = {"id": ids[item]} | {name: column[row] for name, column in fields.items()}
            for task in kinds:
                order = drawn_order(usable(row, task), f"{seed} {item}")
                for number in range(num_examples_per_item if order else 0):
                    filled = order[number % len(order)].fill(values)
                    yield Example(split_of(item), task, item, *filled)

    not_asked = {task: sum(not usable(row, task) for row in rows) for task in kinds}
    return Examples(examples(), num_without_id, not_asked)


def check_ids(items: Sequence[str], ids: Mapping[str, str], *, strict: bool) -> int:
    """How many items have no ID.

    Raises:
        DataError: some have none if `strict`, all have none, or two have the same.
    """
    owner: dict[str, str] = {}
    missing = [item for item in items if item not in ids]
    if strict and missing:
        raise DataError(
            f"item {missing[0]!r} has no ID, nor have {len(missing) - 1} others of {len(items)}; "
            "without strict they are left out"
        )
    if len(missing) == len(items):
        raise DataError(f"none of {len(items)} items has an ID: are these IDs of other items?")
    for item in items:
        if item in ids and owner.setdefault(ids[item], item) != item:
            raise DataError(
                f"items {owner[ids[item]]!r} and {item!r} have one ID, {ids[item]!r}; "
                "each must have its own"
            )
    return len(missing)


def drawn_order(templates: Collection[Template], draw: str) -> list[Template]:
    """The templates in an order that looks random, whatever theirs in the file."""
    return sorted(templates, key=lambda way: hashlib.sha1(f"{draw}\0{way.query}".encode()).digest())


def _plain_fields(catalogue: Catalogue, needed: Sequence[Collection[str]]) -> dict[str, list[str]]:
    """The columns that templates need, as they tell them."""
    columns = item_fields(catalogue)
    found: dict[str, list[str]] = {}
    for name in sorted(set().union(*needed)):
        if name not in columns:
            raise DataError(f"templates name {name!r}; items have {', '.join(sorted(columns))}")
        found[name] = [
            _field(value, f"item {item!r}: {name}")
            for item, value in zip(catalogue.ids, columns[name], strict=True)
        ]
    return found


def _field(value: str, place: str) -> str:
    """A value as people write it: several of them in a list."""
    check_characters(place, value)
    return ", ".join(part for part in map(plain_text, value.split(LIST_SEPARATOR)) if part)
