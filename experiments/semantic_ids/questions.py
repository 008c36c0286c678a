"""How a language model that knows IDs is asked: as `examples` taught it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recipe_jax.data.files import DataError

FILE = "questions.json"


class Questions(NamedTuple):
    """What stands around every question.

    Attributes:
        system: what the model is told before.
        history_query: the question about a history, with `{history}`; empty if none was taught.
        max_items: a question holds at most so many items of a history, the latest.
    """

    system: str
    history_query: str
    max_items: int


def as_json(questions: Questions, **more: Any) -> bytes:
    """The content of a file of `read_questions`.

    Args:
        questions: what it holds.
        more: what else it holds.
    """
    return (json.dumps({**questions._asdict(), **more}, indent=2) + "\n").encode()


def knows_questions(run: Path) -> bool:
    """Whether a run or model folder is that of a language model that is asked so."""
    return any((folder / FILE).is_file() for folder in (run, run / "model"))


def read_questions(path: Path) -> tuple[Questions, Mapping[str, Any]]:
    """The questions of a file, and all that it holds.

    Raises:
        DataError: no such file, or one of another kind.
    """
    try:
        held = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    kinds = {"system": str, "history_query": str, "max_items": int}
    for name, kind in kinds.items():
        value = held.get(name) if isinstance(held, dict) else None
        if not isinstance(value, kind):
            raise DataError(f"{path}: {name}={value!r} must be of type {kind.__name__}")
    return Questions(*(held[name] for name in kinds)), held
