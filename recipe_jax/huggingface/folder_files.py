"""The files of a model folder: JSON and safetensors, read with care and written all or none."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
"""Names under which other libraries keep weights that only unpickling can read."""


class ModelFolderError(ValueError):
    """A folder is no model that can be read.  The message is one line: file, key, value, rule."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelFolderError: a missing file, or one that holds anything else.
    """
    value = _parsed(path)
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def read_json_list(path: Path) -> list[Any]:
    """A JSON array.

    Raises:
        ModelFolderError: a missing file, or one that holds anything else.
    """
    value = _parsed(path)
    if not isinstance(value, list):
        raise ModelFolderError(f"{path}: must hold a JSON array, not a {type(value).__name__}")
    return value


def open_tensors(path: Path) -> Any:
    """A memory-mapped safetensors file; a context manager.

    Raises:
        ModelFolderError: a missing, truncated or foreign file.  Weights that are only there as a
            pickle are named and left alone: to read one is to run whatever it says.
    """
    if not path.is_file():
        pickles = sorted(file for glob in _PICKLES for file in path.parent.glob(glob))
        hint = f"; {pickles[0].name} is pickled, and no pickle is ever read" if pickles else ""
        raise ModelFolderError(f"{path}: no such file{hint}")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"{path}: not a whole safetensors file ({reason})") from error


def replace_all(files: Mapping[Path, bytes | Callable[[IO[bytes]], None]]) -> None:
    """Replace all files or none: every one lies whole beside its place before the first moves.

    Args:
        files: path -> what it shall hold, or what writes that.

    Raises:
        ModelFolderError: a file that cannot be written, such as on a full disk.
    """
    beside = {path: path.with_name(f".{path.name}.tmp") for path in files}
    for path, content in files.items():
        try:
            if isinstance(content, bytes):
                beside[path].write_bytes(content)
            else:
                with beside[path].open("wb") as file:
                    content(file)
        except OSError as error:
            for temporary in beside.values():
                temporary.unlink(missing_ok=True)
            reason = f"{path}: could not be written ({error.strerror or error})"
            raise ModelFolderError(f"{reason}; the folder is as it was") from error
    for path, temporary in beside.items():
        temporary.replace(path)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelFolderError(f"{path}: no such file; it is no model folder") from None
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path}: not readable as JSON ({error})") from error
