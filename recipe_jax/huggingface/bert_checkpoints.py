"""Checkpoints of BERT: a Hugging Face folder to the parameters of our encoder.

Heads of pretraining and of classifiers, and the pooler, are left where they are: they read the
encoder's states and do not change them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from recipe_jax.functional import Params, PureModule, abstract, flat_params
from recipe_jax.huggingface.checkpoint_parameters import check_tensors, read_parameters
from recipe_jax.huggingface.checkpoint_tensors import StoredTensor, find_tensors
from recipe_jax.huggingface.config_values import number, whole_number
from recipe_jax.huggingface.folder_files import ModelFolderError, read_json
from recipe_jax.huggingface.tensor_layouts import Layout, expected_tensors
from recipe_jax.layers.feed_forward import Activation
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.bert_encoder import BertEncoder, BertEncoderConfig
from recipe_jax.sharding import Mesh

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""`hidden_act` -> ours."""

_SAME_FUNCTION = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None,),
}
"""Keys whose other values would need a module that we do not have -> the values that do not."""

_BLOCK: Mapping[tuple[str, ...], tuple[str, str, str]] = {
    ("attention", "query"): ("attention.self.query.weight", "e h d", "(h d) e"),
    ("attention", "key"): ("attention.self.key.weight", "e k d", "(k d) e"),
    ("attention", "value"): ("attention.self.value.weight", "e k d", "(k d) e"),
    ("attention", "output"): ("attention.output.dense.weight", "h d e", "e (h d)"),
    ("attention", "query_bias"): ("attention.self.query.bias", "h d", "(h d)"),
    ("attention", "key_bias"): ("attention.self.key.bias", "k d", "(k d)"),
    ("attention", "value_bias"): ("attention.self.value.bias", "k d", "(k d)"),
    ("attention", "output_bias"): ("attention.output.dense.bias", "e", "e"),
    ("attention_norm", "scale"): ("attention.output.LayerNorm.weight", "e", "e"),
    ("attention_norm", "bias"): ("attention.output.LayerNorm.bias", "e", "e"),
    ("feed_forward", "up", "kernel"): ("intermediate.dense.weight", "e f", "f e"),
    ("feed_forward", "up", "bias"): ("intermediate.dense.bias", "f", "f"),
    ("feed_forward", "down", "kernel"): ("output.dense.weight", "f e", "e f"),
    ("feed_forward", "down", "bias"): ("output.dense.bias", "e", "e"),
    ("feed_forward_norm", "scale"): ("output.LayerNorm.weight", "e", "e"),
    ("feed_forward_norm", "bias"): ("output.LayerNorm.bias", "e", "e"),
}

BERT_LAYOUTS: Mapping[tuple[str, ...], Layout] = {
    ("embedding", "table"): Layout("embeddings.word_embeddings.weight", "v e", "v e"),
    ("positions", "table"): Layout("embeddings.position_embeddings.weight", "n e", "n e"),
    ("token_types",): Layout("embeddings.token_type_embeddings.weight", "n e", "n e"),
    ("embedding_norm", "scale"): Layout("embeddings.LayerNorm.weight", "e", "e"),
    ("embedding_norm", "bias"): Layout("embeddings.LayerNorm.bias", "e", "e"),
    **{
        ("stack", "blocks", *path): Layout(f"encoder.layer.{{layer}}.{name}", ours, theirs)
        for path, (name, ours, theirs) in _BLOCK.items()
    },
}
"""Path of a parameter of `BertEncoder` -> its place in a checkpoint of `BertModel`."""

_HEADS = ("pooler.", "cls.", "classifier.", "qa_outputs.")
_DERIVED = ("embeddings.position_ids", "embeddings.token_type_ids")


class BertCheckpoint(NamedTuple):
    """An encoder, read.

    Attributes:
        cfg: its configuration.
        fn: its pure function.
        params: its parameters.
    """

    cfg: BertEncoderConfig
    fn: PureModule[BertEncoder]
    params: Params


def load_bert_encoder(
    folder: Path | str, *, mesh: Mesh | None = None, param_dtype: str | None = None, **options: Any
) -> BertCheckpoint:
    """Read a folder of `BertModel`, or of BERT with a head, which is left out.

    Tensors may be named with the prefix `bert.` or without, and norms by `gamma` and `beta` as
    older checkpoints have them.  All names, shapes and dtypes are checked before the first tensor
    is read.

    Args:
        folder: holds `config.json` and `model.safetensors`, or an index and its files.
        mesh: where the parameters go, by the default rules; one device if None.
        param_dtype: of the parameters; as stored if None.
        options: of `BertEncoder`, such as `attend` and `dtype`.

    Raises:
        ModelFolderError: a file that is missing, broken or of another kind of model.
    """
    folder = Path(folder)
    path = folder / "config.json"
    cfg = read_bert_config(read_json(path), path)
    fn = abstract(lambda: BertEncoder(cfg, rngs=nnx.Rngs(0), **options))[0]
    shapes = {path: leaf.shape for path, leaf in flat_params(fn.shapes).items()}
    tensors = _encoder_tensors(find_tensors(folder, skip=_DERIVED))
    check_tensors(folder, tensors, expected_tensors(BERT_LAYOUTS, shapes))
    params = read_parameters(fn, tensors, BERT_LAYOUTS, mesh=mesh, param_dtype=param_dtype)
    return BertCheckpoint(cfg, fn, params)


def read_bert_config(config: Mapping[str, Any], path: Path) -> BertEncoderConfig:
    """Our configuration of a checkpoint.

    Only what changes the function is read; a value that changes it in a way that our module does
    not know is refused.  Rates of dropout are for training, which is the caller's.

    Args:
        config: what `config.json` holds.
        path: where it was read, for messages.

    Raises:
        ModelFolderError: another `model_type`, a missing key, or a value that our module does not
            know.
    """
    for key, values in _SAME_FUNCTION.items():
        if config.get(key) not in values:
            raise ModelFolderError(f"{path}: {key}={config.get(key)!r} must be {values[0]!r}")
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ModelFolderError(
            f"{path}: hidden_act={activation!r} must be one of {sorted(_ACTIVATIONS)}"
        )
    width, mlp_dim, num_layers, num_heads, vocab_size = (
        whole_number(config, key, path)
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
        )
    )
    if width % num_heads:
        raise ModelFolderError(
            f"{path}: hidden_size={width} must be a multiple of num_attention_heads={num_heads}"
        )
    return BertEncoderConfig(
        vocab_size=vocab_size,
        transformer=TransformerConfig(
            num_layers=num_layers,
            embed_dim=width,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            activation=_ACTIVATIONS[activation],
            norm="layer",
            norm_eps=number(config, "layer_norm_eps", path, 1e-12),
            norm_order="post",
            bias="all",
        ),
        max_positions=whole_number(config, "max_position_embeddings", path, 512),
        num_token_types=whole_number(config, "type_vocab_size", path, 2),
    )


def _encoder_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the encoder by the names of `BertModel`, and those of no known head."""
    found: dict[str, StoredTensor] = {}
    for stored in tensors.values():
        name = stored.name.removeprefix("bert.")
        if name.startswith(_HEADS):
            continue
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name in found:
            raise ModelFolderError(
                f"{stored.file}: tensors {found[name].name!r} and {stored.name!r} are both "
                f"{name!r}; which one counts cannot be known"
            )
        found[name] = stored
    return found
