"""Quantizers as model folders: `config.json`, `model.safetensors` and a model card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from recipe_jax.huggingface import MODELS, ModelFolderError, save_module
from recipe_jax.huggingface.model_folder import read_module
from recipe_jax.quantizers.quantizer import ModelQuantizer, Scaling

QUANTIZERS = {name: MODELS[name] for name in ("residual_codebooks", "rq_vae")}
"""Those of `MODELS` that are quantizers."""


def save_quantizer(folder: Path, quantizer: ModelQuantizer, *, card: str) -> None:
    """Write a quantizer's folder: all of its files or none.

    Args:
        folder: created if missing.
        quantizer: what to write.
        card: the model card, in Markdown.

    Raises:
        ModelFolderError: a file that could not be written, such as on a full disk.
    """
    scaling = quantizer.scaling._asdict()
    save_module(
        folder,
        cfg=quantizer.cfg,
        params=jax.device_get(quantizer.params),
        card=card,
        tables={_table(name): np.asarray(values) for name, values in scaling.items()},
    )


def load_quantizer(folder: Path) -> ModelQuantizer:
    """Read a quantizer's folder, checking every name, shape and dtype before anything is used.

    Raises:
        ModelFolderError: a missing, corrupted or foreign file, a tensor that does not fit, or a
            deviation that is not above zero.
    """
    width: Callable[[Any], tuple[int, ...]] = lambda cfg: (cfg.in_dim,)  # noqa: E731
    tables = {_table(name): width for name in Scaling._fields}
    found, arrays = read_module(folder, tables, known=QUANTIZERS)
    scaling = Scaling(*(arrays[_table(name)] for name in Scaling._fields))
    if not (scaling.deviation > 0).all():
        raise ModelFolderError(
            f"{folder / 'model.safetensors'}: tensor 'scaling/deviation' must be above zero"
        )
    return ModelQuantizer(cfg=found.cfg, fn=found.fn, params=found.params, scaling=scaling)


def _table(name: str) -> str:
    return f"scaling/{name}"
