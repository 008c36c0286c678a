"""Templates of questions about items that have IDs, and of their answers: given as data.

A file of templates is one JSON object: `system`, the prompt before every question, and `templates`,
a list of objects with `type` (one of `TASKS`), `query` and `response`.  In both of these `{id}`
stands for the ID of the item, `{history}` for the IDs of what a user took, and any other name in
braces for a field of the item, such as `{title}`.

What an item's text says must never read as a token of the model.  Tokens of IDs and of chat
templates are written in square brackets or begin with an angle bracket, `[REC]` and `<|im_end|>`:
a template holds no such bracket but the trigger at its end, and `plain_text` leaves none in the
fields, so that no text of an item, nor what stands beside it, can come to be one.
"""

import importlib.resources
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from recipe_jax.data.files import DataError
from recipe_jax.data.texts import check_characters

TaskName = Literal["predict_semantic_id", "predict_attribute", "predict_next_item"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

TRIGGER = "[REC]"
"""The token that ends a question whose answer is an ID."""

NOT_FIELDS = ("id", "history")
"""What stands in braces and is no field of an item."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_ABOUT = {"predict_attribute": "id", "predict_next_item": "history"}
_KEYS = ("type", "query", "response")
# Full-width, small and vertical forms as well: tokenizers that normalize turn them into the plain.
_BRACKETS = str.maketrans("[［﹇]］﹈<＜﹤", "((()))‹‹‹")  # noqa: RUF001
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], " ")


class Template(NamedTuple):
    """One way to ask and to answer.

    Attributes:
        type: the task.
        query: what is asked, with placeholders.
        response: what is answered, with placeholders.
    """

    type: TaskName
    query: str
    response: str

    @property
    def fields(self) -> frozenset[str]:
        """Fields of the item that question or answer name."""
        named = _PLACEHOLDER.findall(self.query) + _PLACEHOLDER.findall(self.response)
        return frozenset(named).difference(NOT_FIELDS)

    def fill(self, values: Mapping[str, str]) -> tuple[str, str]:
        """Question and answer with these values; braces within a value mean nothing."""
        query, response = (
            _PLACEHOLDER.sub(lambda found: values[found[1]], text)
            for text in (self.query, self.response)
        )
        return query, response


class Templates(NamedTuple):
    """The templates of one file.

    Attributes:
        source: where they come from, for messages.
        system: what the model is told before each question.
        templates: all of them.
    """

    source: str
    system: str
    templates: tuple[Template, ...]

    def of(self, task: TaskName) -> tuple[Template, ...]:
        """Those of one task.

        Raises:
            DataError: there is none.
        """
        found = tuple(template for template in self.templates if template.type == task)
        if not found:
            raise DataError(f"{self.source}: holds no template of type {task!r} for these items")
        return found


def packaged_templates(fields: Collection[str]) -> Templates:
    """The templates of this package that need no other fields than these."""
    file = importlib.resources.files("recipe_jax") / "assets" / "id_templates.json"
    whole = _parse("id_templates.json", file.read_bytes(), None)
    return whole._replace(templates=tuple(t for t in whole.templates if t.fields <= set(fields)))


def read_templates(path: Path, fields: Collection[str]) -> Templates:
    """Read a file of templates.

    Args:
        path: JSON, as the module says.
        fields: what the items have.

    Raises:
        DataError: a file that cannot be read, or a template that breaks a rule: the message names
            file, row, field, value and rule.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return _parse(str(path), content, fields)


def plain_text(text: str) -> str:
    """A text of an item in one line, in which nothing can be read as a token.

    Control characters become spaces and runs of white space one space.  Square brackets become
    round ones and `<` becomes a quotation mark, which it looks like.
    """
    return " ".join(text.translate(_CONTROLS).translate(_BRACKETS).split())


def _parse(source: str, content: bytes, fields: Collection[str] | None) -> Templates:
    """`fields` is None where any may be named."""
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: byte {error.start} is no UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not readable as JSON ({error})") from error
    if not isinstance(whole, dict) or set(whole) != {"system", "templates"}:
        raise DataError(f"{source}: must be a JSON object of 'system' and 'templates'")
    system, rows = whole["system"], whole["templates"]
    _check_text(f"{source}: system", system, allowed=())
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{source}: templates={rows!r:.60} must be a list that is not empty")
    templates: list[Template] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, start=1):
        template = _read_template(f"{source}: row {number}", row, fields)
        key = (template.type, " ".join(template.query.split()))
        if seen.setdefault(key, number) != number:
            raise DataError(
                f"{source}: row {number}: query={template.query!r:.60} is that of row {seen[key]}; "
                "each must stand there once"
            )
        templates.append(template)
    return Templates(source, system, tuple(templates))


def _read_template(place: str, row: Any, fields: Collection[str] | None) -> Template:
    if not isinstance(row, dict) or set(row) != set(_KEYS):
        raise DataError(f"{place}: {row!r:.60} must be an object of {', '.join(_KEYS)}")
    task, query, response = (row[key] for key in _KEYS)
    if task not in TASKS:
        raise DataError(f"{place}: type={task!r:.60} must be one of {', '.join(TASKS)}")
    asks_id = task != "predict_attribute"
    if asks_id and not (isinstance(query, str) and query.endswith(TRIGGER)):
        raise DataError(f"{place}: query={query!r:.60} must end in {TRIGGER}")
    before = query.removesuffix(TRIGGER) if asks_id else query
    about = _ABOUT.get(task)
    asked = _check_text(f"{place}: query", before, fields if about is None else (about,))
    if not asked or (about is None and not asked.isdisjoint(NOT_FIELDS)):
        rule = "name fields of the item, no ID" if about is None else f"hold {{{about}}}"
        raise DataError(f"{place}: query={query!r:.60} must {rule}")
    if asks_id:
        if response != "{id}":
            raise DataError(f"{place}: response={response!r:.60} must be {{id}} and nothing else")
        return Template(task, query, response)
    answered = _check_text(f"{place}: response", response, fields)
    if not answered or not answered.isdisjoint(NOT_FIELDS):
        raise DataError(f"{place}: response={response!r:.60} must name fields of the item, no ID")
    return Template(task, query, response)


def _check_text(place: str, text: Any, allowed: Collection[str] | None) -> set[str]:
    """The placeholders of a text, of which any is allowed if None is said."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}={text!r:.60} must be a text that is not empty")
    check_characters(place, text)
    named = set(_PLACEHOLDER.findall(text))
    rest = _PLACEHOLDER.sub("", text)
    if "{" in rest or "}" in rest:
        raise DataError(f"{place}={text!r:.60} has a brace that is no placeholder such as {{id}}")
    if rest.translate(_BRACKETS) != rest:
        raise DataError(
            f"{place}={text!r:.60} must hold no [ ] or <, with which tokens are written, but "
            f"{TRIGGER} at the end of a question for an ID"
        )
    if any(ord(character) in _CONTROLS and character != "\n" for character in rest):
        raise DataError(f"{place}={text!r:.60} must hold no control character but line breaks")
    for name in sorted(named.difference(named if allowed is None else allowed)):
        known = ", ".join(sorted(allowed or ())) or "none"
        raise DataError(f"{place}={text!r:.60}: {{{name}}} is unknown here; allowed: {known}")
    return named
