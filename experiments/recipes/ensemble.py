"""Runs of one model of amounts, trained from different seeds, as one model of their mixture.

python -m experiments.recipes ensemble --checkpoint RUN RUN RUN --data DIR --run runs/ensemble
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import tree_structure

from experiments.recipes import train
from experiments.recipes.evaluate import load_checkpoint
from experiments.recipes.prepared import read_prepared
from experiments.record import command_line, make_record, write_record
from recipe_jax.functional import abstract, num_parameters
from recipe_jax.huggingface import LoadedModel, make_module, save_model, to_json
from recipe_jax.models.amounts_ensemble import AmountsEnsembleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to put together.

    Attributes:
        checkpoint: run or model folders of `--model amounts`, all of one shape.
        data: a prepared folder; the sample inside the package if not given.
        run: where `model` and `record.json` go.
        seed: of the samples that calibrate the intervals.
    """

    checkpoint: tuple[Path, ...]
    data: Path | None = None
    run: Path = Path("runs/ensemble")
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.checkpoint) < 2:
            raise ValueError(
                f"--checkpoint names {len(self.checkpoint)} models, must name 2 or more"
            )


def run(flags: Flags) -> dict[str, Any]:
    """Check that the models fit, calibrate their mixture on validation recipes and write it."""
    prepared = read_prepared(flags.data)
    models = [load_checkpoint(folder, prepared, kinds=("amounts",)) for folder in flags.checkpoint]
    check_alike(flags.checkpoint, models)
    cfg = AmountsEnsembleConfig(model=models[0].cfg, num_models=len(models))
    fn, shapes = abstract(lambda: make_module("amounts_ensemble", cfg))
    params = {"models": jax.tree.map(lambda *leaves: np.stack(leaves), *(m.params for m in models))}
    if tree_structure(params) != tree_structure(shapes):
        raise RuntimeError("an ensemble's parameters are not those of its models")
    task = train.make_task(train.Flags(model="amounts", seed=flags.seed), prepared)
    params = task.finish(fn, params)
    headline = {
        "model": "amounts-ensemble",
        "num_models": len(models),
        "num_parameters": num_parameters(fn.shapes),
        "alone": [task.validate(model.fn, model.params) for model in models],
        **task.validate(fn, params),
    }
    cards = [_card_of(folder).read_text() for folder in flags.checkpoint]
    save_model(
        flags.run / "model",
        cfg=cfg,
        params=jax.device_get(params),
        foods=prepared.foods,
        molecules=prepared.molecules,
        card=f"{cards[0]}\n{card(headline)}",
        precision="float16",
    )
    record = make_record(
        command_line("experiments.recipes ensemble", flags),
        data="DIR" if flags.data else prepared.source,
        model_config=to_json(cfg),
        **headline,
    )
    write_record(flags.run / "record.json", record)
    return headline


def check_alike(folders: tuple[Path, ...], models: list[LoadedModel]) -> None:
    """Refuse models of another shape, and the same model twice.

    Raises:
        ValueError: naming the two folders.
    """
    for i, model in enumerate(models):
        for folder, other in zip(folders[:i], models[:i], strict=True):
            if model.cfg != other.cfg:
                raise ValueError(f"{folders[i]}: is of another shape than {folder}")
            pairs = zip(*map(jax.tree.leaves, (model.params, other.params)), strict=True)
            if all(np.array_equal(a, b) for a, b in pairs):
                raise ValueError(
                    f"{folders[i]}: is the same model as {folder}; train with another --seed"
                )


def card(headline: dict[str, Any]) -> str:
    """What a model card says of an ensemble, after the card of the first of its models."""
    alone = ", ".join(f"{one['log_ratio_error']:.4f}" for one in headline["alone"])
    return (
        f"This is the mixture of {headline['num_models']} such models, trained from different "
        "seeds; the table above is of the first.\n"
        f"Log-ratio error on validation: {headline['log_ratio_error']:.4f} together, "
        f"{alone} alone.\n"
    )


def _card_of(folder: Path) -> Path:
    return (folder / "model" if (folder / "model").is_dir() else folder) / "README.md"
