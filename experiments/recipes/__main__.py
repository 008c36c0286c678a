"""`python -m experiments.recipes COMMAND --help`: recipes from molecules."""

import sys
from collections.abc import Sequence

from experiments.commands import run_command

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
    return run_command("experiments.recipes", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
