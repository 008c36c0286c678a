"""`python -m experiments.semantic_ids COMMAND --help`: from a catalogue to recommendations."""

import sys
from collections.abc import Sequence

from experiments.commands import run_command

COMMANDS = {
    "demo": "from a catalogue and its users to recommendations, in minutes",
    "vectors": "vectors of items from their texts and from who took what",
    "quantize": "fit a quantizer to a catalogue and give every item its codes",
    "examples": "write what a language model learns about items that have codes",
    "tune": "teach a language model the IDs of items, in two stages",
    "train": "train a recommender on users' histories",
    "choose": "choose the baselines' hyperparameters and their blend on validation",
    "recommend": "items for somebody whose history is given",
    "search": "find items by text: every system ranks the whole catalogue for every query",
    "new_items": "items that no training saw: who finds them, and a fallback by vectors",
    "serve": "the same over HTTP, for this machine alone, and on a page",
    "evaluate": "rank every item for every user: trained models and baselines in one table",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    return run_command("experiments.semantic_ids", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
