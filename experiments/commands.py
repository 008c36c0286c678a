"""Command lines of experiments: `python -m experiments.NAME COMMAND --help`.

Human tables go to stderr; the last line on stdout is one JSON object of headline metrics.  A wrong
flag, a missing file or a malformed row is one line on stderr and exit code 2.
"""

import contextlib
import importlib
import io
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from experiments.record import check_writable
from recipe_jax.training.run_folder import TrainingError


def run_command(package: str, commands: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Run one command of an experiment; returns the exit code.

    Args:
        package: such as `experiments.recipes`; each command is a module of it, with a dataclass
            `Flags` and a function `run` from flags to headline metrics.
        commands: name -> what it does.
        arguments: of the command line.
    """
    if not arguments or arguments[0] not in commands:
        rows = "\n".join(f"  {name:10} {what}" for name, what in commands.items())
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        unknown = "" if asked or not arguments else f"unknown command {arguments[0]!r}\n\n"
        print(f"{unknown}usage: python -m {package} COMMAND\n\n{rows}", file=sys.stderr)
        return 0 if asked else 2
    name = arguments[0]
    command = importlib.import_module(f"{package}.{name}")
    try:
        program = f"python -m {package} {name}"
        flags = parse(command.Flags, arguments[1:], program, command.__doc__)
        if getattr(flags, "record", None) is not None:
            check_writable(flags.record)
        headline: dict[str, Any] = command.run(flags)
    except (ValueError, OSError, TrainingError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(headline))
    return 0


def check_least(flags: Any, **least_of: float) -> None:
    """Refuse flags below the least that makes sense; None is no value.

    Args:
        flags: their dataclass.
        least_of: field -> the least.

    Raises:
        ValueError: names the flag.
    """
    for name, least in least_of.items():
        value = getattr(flags, name)
        if value is not None and not least <= value < float("inf"):
            flag = f"--{name.replace('_', '-')}"
            rule = "finite" if value == float("inf") else f"at least {least}"
            raise ValueError(f"{flag} {value} must be {rule}")


def check_seed(seed: int) -> None:
    """Refuse a seed that numpy or JAX would not take.

    Raises:
        ValueError: names the flag.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed} must be from 0 to {2**63 - 1}")


def parse(kind: type, arguments: Sequence[str], program: str, about: str | None) -> Any:
    """Flags from a command line.

    Args:
        kind: their dataclass.
        arguments: the words after the command.
        program: how the command is called, for its help.
        about: what it does, for its help.

    Raises:
        ValueError: what a rule of the flags says, or of a value that they are made of, which tyro
            would wrap in a box and a traceback.
        SystemExit: help, or a command line that cannot be parsed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(arguments), prog=program, description=about)
    except SystemExit as stopped:
        error: BaseException | None = stopped
        while error is not None:
            frames = traceback.extract_tb(error.__traceback__)
            checked = any(frame.name == "__post_init__" for frame in frames)
            if isinstance(error, ValueError) and checked:
                raise error from None
            error = error.__context__
        print(said.getvalue(), end="", file=sys.stderr)
        raise
