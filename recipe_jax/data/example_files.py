"""Examples as JSON lines that `recipe_jax.data.texts` reads, a file for each part."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from recipe_jax.data.id_tasks import Example

PARTS = ("train", "validation", "test")


def example_row(example: Example, system: str) -> dict[str, object]:
    """One row: `messages` of system, user and assistant, `query, response, type, item_id`."""
    roles = {"system": system, "user": example.query, "assistant": example.response}
    return {
        "messages": [{"role": role, "content": content} for role, content in roles.items()],
        "query": example.query,
        "response": example.response,
        "type": example.type,
        "item_id": example.item_id,
    }


def write_examples(
    folder: Path, examples: Iterable[Example], *, system: str, prefix: str = ""
) -> dict[str, int]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`; a part without examples is empty.

    Rows go to temporary names as they come, and take the places of what was there once all of them
    are written: whatever stops it before leaves the folder as it was.

    Args:
        folder: where the files go; it must be there.
        examples: in any order of parts.
        system: what the model is told before each question.
        prefix: of the files' names.

    Returns:
        How many examples each part has.
    """
    paths = {part: folder / f"{prefix}{part}.jsonl" for part in PARTS}
    parts = {
        part: path.with_name(f".{path.name}.{os.getpid()}.part") for part, path in paths.items()
    }
    counts: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    try:
        with contextlib.ExitStack() as stack:
            files = {part: stack.enter_context(path.open("wb")) for part, path in parts.items()}
            for example in examples:
                row = json.dumps(example_row(example, system), ensure_ascii=False)
                files[example.part].write(row.encode() + b"\n")
                counts[example.part] += 1
        for part, path in parts.items():
            path.replace(paths[part])
    finally:
        for path in parts.values():
            path.unlink(missing_ok=True)
    return dict(counts)
