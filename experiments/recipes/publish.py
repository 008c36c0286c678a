"""Store a trained model small: the form in which the pretrained models ship in the package."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.recipes.evaluate import load_checkpoint
from recipe_jax.huggingface import Precision, save_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to store where.

    Attributes:
        checkpoint: a run folder or model folder.
        out: the model folder to write.
        precision: of the stored parameters.
    """

    checkpoint: Path
    out: Path
    precision: Precision = "int8"


def run(flags: Flags) -> dict[str, Any]:
    """Load, store, and say how large the result is."""
    model = load_checkpoint(flags.checkpoint)
    source = flags.checkpoint / "model"
    card = (source if source.is_dir() else flags.checkpoint) / "README.md"
    save_model(
        flags.out,
        cfg=model.cfg,
        params=model.params,
        foods=model.foods,
        molecules=model.molecules,
        card=f"{card.read_text()}\nStored in {flags.precision}, a scale per row of each matrix.\n",
        precision=flags.precision,
    )
    sizes = [path.stat().st_size for path in flags.out.iterdir()]
    return {"out": str(flags.out), "bytes": sum(sizes)}
