"""Files: what is wrong with one that is read, and writing one whole or not at all."""

import os
from pathlib import Path


class DataError(ValueError):
    """Data broke a rule.  The message is one line that names file, row, value and rule."""


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, then rename: never half a file.

    Raises:
        OSError: a full disk or a folder that cannot be written; `path` is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
