"""`python -m experiments.recipes COMMAND --help`: recipes from molecules.

Human tables go to stderr; the last line on stdout is one JSON object of headline metrics.  A wrong
flag, a missing file or a malformed row is one line on stderr and exit code 2.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from recipe_jax.training.run_folder import TrainingError

COMMANDS = {
    "fetch": "download the public sources, licence notices first",
    "prepare": "raw recipes to foods and grams",
    "train": "train a generator or a model of amounts",
    "evaluate": "score a trained model beside its baselines",
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
    flags = tyro.cli(
        command.Flags,
        args=list(arguments[1:]),
        prog=f"python -m experiments.recipes {name}",
        description=command.__doc__,
    )
    try:
        headline: dict[str, Any] = command.run(flags)
    except (ValueError, OSError, TrainingError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(headline))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
