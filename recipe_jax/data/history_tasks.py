"""What a language model learns from histories: from the IDs that a user took to the next one."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int32

from recipe_jax.data.id_tasks import Example, Examples, check_ids, drawn_order
from recipe_jax.data.id_templates import TaskName, Template, Templates
from recipe_jax.data.interactions import Histories, Split, histories_of


def history_examples(
    split: Split,
    item_ids: Sequence[str],
    ids: Mapping[str, str],
    templates: Templates,
    *,
    max_items: int = 20,
    num_targets_per_user: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Examples:
    """Examples of what a user took next, split within each user as `split` is.

    Of a user's training items each but the first is asked for, after those before it; validation
    and test items are asked for once, in their parts.  A user's examples go through the templates,
    each used once before any is used again.

    Histories hold items of all parts of `item_examples`: a model that shall not know some of them
    must not learn from these.

    Args:
        split: ordered histories, the last items left out.
        item_ids: of the items that the histories hold indices of.
        ids: item -> the text of its ID.
        templates: ways to ask.
        max_items: a question holds at most so many items, the latest.
        num_targets_per_user: ask only for the last so many training items; for all if None.
        seed: of the templates' order.
        strict: refuse items without an ID, which are otherwise left out of histories.

    Raises:
        DataError: an item without an ID if `strict`, an ID of two items, no item with an ID, no
            template of this task.
        ValueError: histories without an order, or numbers below 1.
    """
    if not split.train.ordered:
        raise ValueError("history_examples needs ordered histories: sets have no next item")
    if max_items < 1 or (num_targets_per_user is not None and num_targets_per_user < 1):
        raise ValueError(f"{max_items=} and {num_targets_per_user=} must be at least 1")
    task: TaskName = "predict_next_item"
    ways = templates.of(task)
    num_without_id = check_ids(item_ids, ids, strict=strict)
    known = np.array([item in ids for item in item_ids])

    def example(
        part: str, order: list[Template], history: Int32[np.ndarray, "t"], target: int
    ) -> Example:
        texts = ", ".join(ids[item_ids[int(item)]] for item in history[-max_items:])
        item = item_ids[target]
        # A user's questions have histories of different lengths: none shares another's template
        # before all have had their turn.
        way = order[len(history) % len(order)]
        return Example(part, task, item, *way.fill({"history": texts, "id": ids[item]}))

    train = _with_ids(split.train, known)
    parts = {"validation": split.validation, "test": split.test}
    asked = {
        part: (_with_ids(queries.histories, known), queries.targets)
        for part, queries in parts.items()
    }

    def examples() -> Iterator[Example]:
        for user, name in enumerate(train.users):
            items, order = train.items_of(user), drawn_order(ways, f"{seed} {name}")
            first = 1 if num_targets_per_user is None else len(items) - num_targets_per_user
            for place in range(max(1, first), len(items)):
                yield example("train", order, items[:place], int(items[place]))
        for part, (histories, targets) in asked.items():
            for user in np.flatnonzero(known[targets] & (histories.lengths > 0)):
                order = drawn_order(ways, f"{seed} {histories.users[user]}")
                yield example(part, order, histories.items_of(user), int(targets[user]))

    lost = sum(
        int((~known[targets] | (histories.lengths == 0)).sum())
        for histories, targets in asked.values()
    )
    return Examples(examples(), num_without_id, {task: lost})


def _with_ids(histories: Histories, known: Bool[np.ndarray, "n"]) -> Histories:
    """The same users without items that have no ID."""
    rows = [histories.items_of(user) for user in range(len(histories.users))]
    kept = [items[known[items]] for items in rows]
    return histories_of(histories.users, kept, ordered=histories.ordered)
