"""Write the targets of given sources.

python -m experiments.sequence_to_sequence predict --run runs/pairs --text "2 1/4 cups"
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from experiments.commands import check_least
from experiments.sequence_to_sequence.text_pairs import check_text
from experiments.sequence_to_sequence.translator import load_translator, write_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is read, and how the answer is searched.

    Attributes:
        text: one or several sources.
        run: a run folder, or its `model`.
        beams: search for the most probable text, so many at a time; else byte by byte.
    """

    text: tuple[str, ...]
    run: Path = Path("runs/sequence_to_sequence")
    beams: int | None = None

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("--text needs at least one source")
        check_least(self, beams=1)


def run(flags: Flags) -> dict[str, Any]:
    """Write, print."""
    for text in flags.text:
        check_text(text, "--text")
    written = write_targets(load_translator(flags.run), flags.text, beams=flags.beams)
    for source, (text, _) in zip(flags.text, written, strict=True):
        print(f"{source} | {text}", file=sys.stderr)
    return {
        "texts": [text.text for text in written],
        "log_probabilities": [text.log_probability for text in written],
        "n": len(written),
    }
