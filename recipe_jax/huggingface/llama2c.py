"""Checkpoints of llama2.c, as its training script exported them first (version 0, float32)."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from recipe_jax.functional import abstract, nested_params
from recipe_jax.huggingface.folder_files import ModelFolderError
from recipe_jax.huggingface.language_models import LanguageModel
from recipe_jax.huggingface.tensor_layouts import LAYOUTS
from recipe_jax.layers.positions import Rope
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.causal_language_model import CausalLanguageModel, CausalLanguageModelConfig

_NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_ORDER = (
    ("embedding", "table"),
    ("stack", "blocks", "attention_norm", "scale"),
    ("stack", "blocks", "attention", "query"),
    ("stack", "blocks", "attention", "key"),
    ("stack", "blocks", "attention", "value"),
    ("stack", "blocks", "attention", "output"),
    ("stack", "blocks", "feed_forward_norm", "scale"),
    ("stack", "blocks", "feed_forward", "gate", "kernel"),
    ("stack", "blocks", "feed_forward", "down", "kernel"),
    ("stack", "blocks", "feed_forward", "up", "kernel"),
    ("stack", "final_norm", "scale"),
    None,  # rotary cosines and sines, which follow from the configuration
    ("head", "kernel"),
)
"""In which order the file holds the parameters; all layers of one, then the next."""


def load_llama2c(path: Path | str) -> LanguageModel:
    """Read a legacy `.bin` file: seven numbers, then all weights in float32.

    Pairs of features are rotated interleaved, the norm's epsilon is 1e-5, token 1 begins a text
    and token 2 ends it.  A negative vocabulary size says that the output layer is not tied.

    Raises:
        ModelFolderError: a missing file, or one whose size is not what its header asks for.
    """
    path = Path(path)
    try:
        header = np.fromfile(path, "<i4", count=len(_NUMBERS))
        size = os.path.getsize(path)
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror})") from error
    if len(header) < len(_NUMBERS):
        raise ModelFolderError(f"{path}: {size} bytes are no llama2.c checkpoint")
    found = dict(zip(_NUMBERS, map(int, header), strict=True))
    tied, found["vocab_size"] = found["vocab_size"] > 0, abs(found["vocab_size"])
    for name, value in found.items():
        if not 0 < value < 2**24:
            raise ModelFolderError(f"{path}: {name}={value} is no llama2.c header")
    try:
        cfg = CausalLanguageModelConfig(
            vocab_size=found["vocab_size"],
            transformer=TransformerConfig(
                num_layers=found["n_layers"],
                embed_dim=found["dim"],
                num_heads=found["n_heads"],
                num_kv_heads=found["n_kv_heads"],
                mlp_dim=found["hidden_dim"],
                activation="swiglu",
                norm_eps=1e-5,
            ),
            positions=Rope(interleaved=True),
            max_positions=found["seq_len"],
            tied=tied,
        )
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    fn, _ = abstract(lambda: CausalLanguageModel(cfg, rngs=nnx.Rngs(0)))
    shapes = {leaf.path: leaf.shape for leaf in fn.leaves}
    rotary = cfg.max_positions * cfg.transformer.attention.head_width
    counts = [
        rotary if name is None else int(np.prod(shapes[name]))
        for name in _ORDER
        if name is None or name in shapes
    ]
    expected = 4 * (len(_NUMBERS) + sum(counts))
    if size != expected:
        raise ModelFolderError(f"{path}: {size} bytes, but its header asks for {expected}")
    weights = np.memmap(path, "<f4", mode="r", offset=4 * len(_NUMBERS))
    params = {}
    start = 0
    for name, count in zip([n for n in _ORDER if n is None or n in shapes], counts, strict=True):
        block, start = weights[start : start + count], start + count
        if name is None:
            continue
        layout, shape = LAYOUTS[name], shapes[name]
        if layout.per_layer:
            rows = block.reshape(shape[0], *layout.their_shape(shape[1:]))
            ours = np.stack([layout.from_theirs(row, shape[1:]) for row in rows])
        else:
            ours = layout.from_theirs(block.reshape(layout.their_shape(shape)), shape)
        if not np.isfinite(ours).all():
            raise ModelFolderError(f"{path}: {'.'.join(name)} holds values that are not finite")
        params[name] = jnp.array(ours)
    return LanguageModel(cfg, fn, nested_params(params), begin=1, ends=(2,))
