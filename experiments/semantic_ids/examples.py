"""Write what a language model learns about items that have codes, as conversations.

python -m experiments.semantic_ids examples --codes runs/codes --out runs/examples

`OUT` then holds `train.jsonl`, `validation.jsonl` and `test.jsonl`, split by item: from words to an
item's ID, and from an ID to a fact about the item.  With `--histories`, `histories_train.jsonl` and
so on hold what a user took next, split within each user.  `ids.npz` holds the IDs, and
`questions.json` how a model that learned them is asked; the words that a vocabulary needs are
`recipe_jax.semantic_ids.id_tokens` and `[REC]`.  The last line
on stdout is one JSON object of counts.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.commands import check_least, check_seed
from experiments.semantic_ids.catalogue_vectors import read_items
from experiments.semantic_ids.codes_file import read_all_codes
from experiments.semantic_ids.datasets import read_dataset
from experiments.semantic_ids.questions import FILE, Questions, as_json
from recipe_jax.data.catalogues import Catalogue
from recipe_jax.data.example_files import write_examples
from recipe_jax.data.files import DataError, replace_file
from recipe_jax.data.history_tasks import history_examples
from recipe_jax.data.id_tasks import Examples, item_examples, item_fields
from recipe_jax.data.id_templates import Templates, packaged_templates, read_templates
from recipe_jax.semantic_ids import format_id, ids_as_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is asked of which items.

    Attributes:
        catalogue: beauty, recipes, or recipe-titles and pantrypilot, which search asks of; or a
            table of one's own: .jsonl, plain or compressed, or .parquet.
        id_field: of a table of one's own: what tells items apart.
        text_fields: of a table of one's own: what is known of an item in words.
        attribute_fields: of a table of one's own: more that templates may name.
        codes: the run folder of quantize.
        out: the folder to write to; files of these names in it are replaced.
        templates: a file of templates; those of the package if not given.
        tasks: what is asked of items.
        num_examples_per_item: of each task.
        strict: refuse items without codes, which are otherwise left out and counted.
        histories: beauty, or a file with one line a user, `user item item …` in order of time; no
            examples of histories if not given.
        max_items: the latest so many items of a history are told.
        num_targets_per_user: ask only for the last so many training items of a user.
        seed: of the templates' order.
    """

    catalogue: str = "beauty"
    id_field: str = "id"
    text_fields: tuple[str, ...] = ("title",)
    attribute_fields: tuple[str, ...] = ()
    codes: Path = Path("runs/codes")
    out: Path = Path("runs/examples")
    templates: Path | None = None
    tasks: tuple[Literal["predict_semantic_id", "predict_attribute"], ...] = (
        "predict_semantic_id",
        "predict_attribute",
    )
    num_examples_per_item: int = 1
    strict: bool = False
    histories: str | None = None
    max_items: int = 20
    num_targets_per_user: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, num_examples_per_item=1, max_items=1, num_targets_per_user=1)
        check_seed(self.seed)
        if not self.tasks:
            raise ValueError("--tasks must name one at least")


def run(flags: Flags) -> dict[str, Any]:
    """Read and check everything, then write."""
    items = read_items(
        flags.catalogue,
        id_field=flags.id_field,
        text_fields=flags.text_fields,
        attribute_fields=(*flags.text_fields, *flags.attribute_fields),
    )
    codes = read_all_codes(flags.codes)
    ids = {item: format_id(row) for item, row in zip(codes.items, codes.codes, strict=True)}
    templates = templates_for(items, flags.templates)
    made = {"": of_items(flags, items, ids, templates)}
    if flags.histories is not None:
        made["histories_"] = of_histories(flags, flags.histories, ids, templates)
    flags.out.mkdir(parents=True, exist_ok=True)
    headline: dict[str, Any] = {"n": len(items.ids)}
    for prefix, examples in made.items():
        counts = write_examples(flags.out, examples.rows, system=templates.system, prefix=prefix)
        print(f"{prefix.rstrip('_') or 'items'}: {counts}", file=sys.stderr)
        headline |= {f"{prefix}{name}": count for name, count in counts.items()}
        headline[f"{prefix}items_without_codes"] = examples.num_without_id
        headline[f"{prefix}not_asked"] = examples.num_not_asked
    replace_file(flags.out / "ids.npz", ids_as_bytes(codes))
    replace_file(flags.out / FILE, as_json(questions_of(flags, templates)))
    return {**headline, "ids": codes.fingerprint}


def questions_of(flags: Flags, templates: Templates) -> Questions:
    """How a model that learns these examples is asked: about histories by the first template."""
    query = "" if flags.histories is None else templates.of("predict_next_item")[0].query
    return Questions(templates.system, query, flags.max_items)


def templates_for(items: Catalogue, path: Path | None) -> Templates:
    """The templates of a file, or those of the package that these items fill.

    Raises:
        DataError: a file that breaks a rule.
    """
    fields = item_fields(items)
    return packaged_templates(fields) if path is None else read_templates(path, fields)


def of_items(
    flags: Flags, items: Catalogue, ids: Mapping[str, str], templates: Templates
) -> Examples:
    """Examples of items."""
    try:
        return item_examples(
            items,
            ids,
            templates,
            tasks=flags.tasks,
            num_examples_per_item=flags.num_examples_per_item,
            seed=flags.seed,
            strict=flags.strict,
        )
    except DataError as error:
        raise DataError(f"{flags.catalogue} with {flags.codes}: {error}") from error


def of_histories(
    flags: Flags, histories: str, ids: Mapping[str, str], templates: Templates
) -> Examples:
    """Examples of histories."""
    if histories == "mealrec":
        raise DataError("--histories mealrec are sets, which have no next item: give ordered ones")
    data = read_dataset(histories)
    try:
        return history_examples(
            data.split,
            data.item_ids,
            ids,
            templates,
            max_items=flags.max_items,
            num_targets_per_user=flags.num_targets_per_user,
            seed=flags.seed,
            strict=flags.strict,
        )
    except DataError as error:
        raise DataError(f"{histories} with {flags.codes}: {error}") from error
