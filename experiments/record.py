"""Records of what a command measured, on what, with which versions: a number counts with one."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe_jax.data.files import replace_file

_PROJECT = Path(__file__).resolve().parents[1]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "torch", "triton")


def make_record(command: str, **results: Any) -> dict[str, Any]:
    """Results with the circumstances under which they came about.

    Args:
        command: the command line that measures them again.
        results: what was measured, as JSON can hold it.
    """
    return {
        "command": command,
        **results,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "device": device(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def command_line(command: str, flags: Any, *, always: Sequence[str] = ()) -> str:
    """The command line that does this again, without what is its default anyway.

    No place of this machine is in it: see `place_of`.  The run folder is called RUN.

    Args:
        command: after `python -m`.
        flags: the dataclass of its flags.
        always: flags to name whatever their value.
    """
    words = [f"python -m {command}"]
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        known = value == field.default and field.name not in always
        if known or field.name in ("record", "progress"):
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            parts = value if isinstance(value, tuple) else (value,)
            words.append(f"--{name} {' '.join(_word(field.name, part) for part in parts)}")
    return " ".join(words)


def _word(name: str, value: Any) -> str:
    if not isinstance(value, Path):
        return str(value)
    if name == "run":
        return "RUN"
    place = place_of(value)
    return "DIR" if name in ("data", "prepared") and place.startswith("DIR") else place


def place_of(path: Path) -> str:
    """A path as somebody else would write it.

    Returns:
        The path from the repository, or from `$RECIPE_JAX_DATA`, or as `DIR/name` where it lies
        in neither: nobody else has that folder.
    """
    roots = {".": str(_PROJECT), "$RECIPE_JAX_DATA": os.environ.get("RECIPE_JAX_DATA")}
    whole = Path(os.path.abspath(path))
    for name, root in roots.items():
        if root and whole.is_relative_to(os.path.abspath(root)):
            return Path(name, whole.relative_to(os.path.abspath(root))).as_posix()
    return f"DIR/{path.name}"


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(record, indent=1) + "\n").encode())
    print(f"record: {path}", file=sys.stderr)


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON objects, one a line, whole or not at all; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def check_writable(path: Path) -> None:
    """Refuse a place where no record can be written: before the work, not after it.

    Raises:
        OSError: naming the place.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, must be a file to write the record to")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{path.parent}: is a file, must be a folder") from error
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def device() -> str:
    """The accelerator, or the processor and how many cores this process may use."""
    if "jax" in sys.modules:
        first = sys.modules["jax"].devices()[0]
        if first.platform != "cpu":
            return f"{first.device_kind} x {sys.modules['jax'].device_count()}"
    names = [
        line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")
    ]
    return f"CPU {names[0] if names else platform.processor()}, {len(names) or '?'} cores"


def commit() -> str | None:
    """The commit that the code is at, with `+` where files differ; None outside a repository."""
    folder = str(Path(__file__).parent)
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: str, *arguments: str) -> str:
    command = ["git", "-C", folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
