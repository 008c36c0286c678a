"""The folder of one run: `config.json`, `metrics.jsonl`, `checkpoints/`."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TrainingError(RuntimeError):
    """Training cannot go on.  The message is one line: what is wrong, where, and the way out."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files.

    Attributes:
        path: the folder, `--run DIR`.
    """

    path: Path

    @property
    def config(self) -> Path:
        """What defines the run."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per saved step."""
        return self.path / "checkpoints"

    def claim(self, config: Mapping[str, Any] | None = None) -> None:
        """Create the folder for this configuration, or recognise it as the run to resume.

        Args:
            config: what defines the run, as JSON can hold it; None writes no `config.json`.

        Raises:
            TrainingError: if the folder cannot be written or belongs to another configuration.
        """
        if config is None:
            _make_folder(self.path)
            return
        wanted = json.loads(json.dumps(config))
        if self.config.is_file():
            _check_same_config(self.config, wanted)
        write_text(self.config, json.dumps(wanted, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, with its folder.

    Raises:
        TrainingError: if the file system refuses.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> TrainingError:
    """The error to raise where the file system refuses to write `path`."""
    return TrainingError(
        f"{path}: cannot write ({error.strerror or error}): make space or choose another --run; "
        "the same command resumes from the last checkpoint"
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _check_same_config(path: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path}: not readable as JSON ({error}): choose another --run or delete the folder"
        ) from error
    if not isinstance(found, dict):
        raise TrainingError(f"{path}: not a JSON object: choose another --run")
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise TrainingError(
                f"{path}: this folder holds a run with {name}={found.get(name)!r}, not "
                f"{wanted.get(name)!r}: choose another --run or delete the folder"
            )
