"""Numbers and truths of `config.json`, each checked and refused by file, key and value."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe_jax.huggingface.folder_files import ModelFolderError

LARGEST = 2**31 - 1
"""Of whole numbers."""


def whole_number(config: Mapping[str, Any], key: str, path: Path, *default: int | None) -> Any:
    """A positive whole number, or the default where the key is missing or null."""
    value = config.get(key)
    if value is None and default:
        return default[0]
    if value is None:
        raise ModelFolderError(f"{path}: key {key!r} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ModelFolderError(
            f"{path}: {key}={value!r} must be a whole number from 1 to {LARGEST}"
        )
    return value


def number(config: Mapping[str, Any], key: str, path: Path, default: float) -> float:
    """A finite number above 0, or the default where the key is missing or null."""
    value = default if config.get(key) is None else config[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= sys.float_info.max:
        raise ModelFolderError(f"{path}: {key}={value!r} must be a finite number above 0")
    return float(value)


def truth(config: Mapping[str, Any], key: str, path: Path) -> bool:
    """True or false; false where the key is missing or null."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelFolderError(f"{path}: {key}={value!r} must be true or false")
    return bool(value)
