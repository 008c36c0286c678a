"""`python -m experiments.recipes COMMAND --help`: recipes from molecules.

Human tables go to stderr; the last line on stdout is one JSON object of headline metrics.  A wrong
flag, a missing file or a malformed row is one line on stderr and exit code 2.
"""

import contextlib
import importlib
import io
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.record import check_writable
from recipe_jax.training.run_folder import TrainingError

COMMANDS = {
    "fetch": "download the public sources, licence notices first",
    "prepare": "raw recipes to foods and grams",
    "train": "train a generator, a model of amounts, or both in one",
    "evaluate": "score a trained model beside its baselines",
    "ablate": "every variant beside every other, over seeds",
    "ensemble": "several models of amounts as one",
    "generate": "complete a pantry into recipes with grams",
    "explain": "what drove a choice; substitutes and pairings",
    "publish": "store a trained model small",
    "demo": "all of it in five minutes, ending in a report",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if not arguments or arguments[0] not in COMMANDS:
        rows = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        unknown = "" if asked or not arguments else f"unknown command {arguments[0]!r}\n\n"
        print(f"{unknown}usage: python -m experiments.recipes COMMAND\n\n{rows}", file=sys.stderr)
        return 0 if asked else 2
    name = arguments[0]
    command = importlib.import_module(f"experiments.recipes.{name}")
    try:
        flags = parse(command.Flags, arguments[1:], name, command.__doc__)
        if getattr(flags, "record", None) is not None:
            check_writable(flags.record)
        headline: dict[str, Any] = command.run(flags)
    except (ValueError, OSError, TrainingError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(headline))
    return 0


def parse(kind: type, arguments: Sequence[str], name: str, about: str | None) -> Any:
    """Flags from a command line.

    Raises:
        ValueError: what the flags' own rule says, which tyro would wrap in a box and a traceback.
        SystemExit: help, or a command line that cannot be parsed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=list(arguments),
                prog=f"python -m experiments.recipes {name}",
                description=about,
            )
    except SystemExit as stopped:
        error: BaseException | None = stopped
        while error is not None:
            frames = traceback.extract_tb(error.__traceback__)
            if isinstance(error, ValueError) and frames[-1].name == "__post_init__":
                raise error from None
            error = error.__context__
        print(said.getvalue(), end="", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
