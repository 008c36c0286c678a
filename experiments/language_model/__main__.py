"""`python -m experiments.language_model COMMAND --help`: Llama-family models from JAX alone."""

import sys
from collections.abc import Sequence

from experiments.commands import run_command

COMMANDS = {
    "train": "fine-tune a checkpoint on texts or conversations",
    "evaluate": "score a checkpoint on a text",
    "generate": "continue prompts, or answer a chat",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    return run_command("experiments.language_model", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
