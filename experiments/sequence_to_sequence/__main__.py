"""`python -m experiments.sequence_to_sequence COMMAND --help`: texts to texts, byte by byte."""

import sys
from collections.abc import Sequence

from experiments.commands import run_command

COMMANDS = {
    "pairs": "raw ingredient lines and their foods as a table of pairs",
    "train": "train a model on a table of pairs",
    "evaluate": "exact match of a trained model and of baselines",
    "predict": "write the targets of given sources",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    return run_command("experiments.sequence_to_sequence", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
