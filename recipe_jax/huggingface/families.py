"""`config.json` of Llama, Qwen2 and Qwen3 as our configuration, and back.

Only what changes the function is read.  A key that would change it in a way that our module does
not know is refused with its value, so that no checkpoint is ever run as something else.
"""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recipe_jax.huggingface.config_values import number, truth, whole_number
from recipe_jax.huggingface.folder_files import ModelFolderError
from recipe_jax.layers.positions import LinearScaling, Llama3Scaling, Rope
from recipe_jax.layers.transformer import AttentionBias, TransformerConfig
from recipe_jax.models.causal_language_model import CausalLanguageModelConfig


class Family(NamedTuple):
    """What sets one `model_type` apart.

    Attributes:
        architecture: the class of the transformers library.
        defaults: of keys that `config.json` may leave out.
        qk_norm: whether query and key heads are normalized.
        head_dim: width of a head where `config.json` leaves it out; None for
            `hidden_size / num_attention_heads`.
    """

    architecture: str
    defaults: Mapping[str, Any]
    qk_norm: bool = False
    head_dim: int | None = None


FAMILIES: Mapping[str, Family] = types.MappingProxyType(
    {
        "llama": Family(
            "LlamaForCausalLM",
            {"vocab_size": 32000, "max_position_embeddings": 2048, "num_key_value_heads": None},
        ),
        "qwen2": Family(
            "Qwen2ForCausalLM",
            {"vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 32},
        ),
        "qwen3": Family(
            "Qwen3ForCausalLM",
            {"vocab_size": 151936, "max_position_embeddings": 32768, "num_key_value_heads": 32},
            qk_norm=True,
            head_dim=128,
        ),
    }
)
"""`model_type` -> what sets it apart.  SmolLM2 and stories260K are of the type "llama"."""

_SAME_FUNCTION = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0, None),
    "no_rope_layers": (None,),
    "adapter_config": (None,),
}
"""Keys whose other values would need a module that we do not have -> the values that do not."""

_ROPE_TYPES = ("default", "linear", "llama3")


def read_family_config(config: Mapping[str, Any], path: Path) -> CausalLanguageModelConfig:
    """Our configuration of a checkpoint.

    Args:
        config: what `config.json` holds, as transformers 4 or 5 writes it.
        path: where it was read, for messages.

    Raises:
        ModelFolderError: an unknown `model_type`, a missing key, or a value that our module does
            not know.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelFolderError(f"{path}: model_type={name!r} must be one of {sorted(FAMILIES)}")
    family = FAMILIES[name]
    for key, values in _SAME_FUNCTION.items():
        if key in config and config[key] not in values:
            raise ModelFolderError(f"{path}: {key}={config[key]!r} must be {values[0]!r}")
    layer_types = config.get("layer_types")
    if layer_types is not None and not isinstance(layer_types, list):
        raise ModelFolderError(f"{path}: layer_types={layer_types!r} must be a list")
    for kind in layer_types or ():
        if kind != "full_attention":
            raise ModelFolderError(f"{path}: layer_types holds {kind!r}, must be 'full_attention'")
    width, mlp_dim, num_layers, num_heads = (
        whole_number(config, key, path)
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    )
    vocab_size, max_positions, kv_heads = (
        whole_number(config, key, path, default) for key, default in family.defaults.items()
    )
    if config.get("num_key_value_heads", kv_heads) is None:
        kv_heads = None  # as many as query heads, whatever the family has where the key is missing
    head_dim = whole_number(config, "head_dim", path, family.head_dim)
    _check_heads(width, num_heads, kv_heads, head_dim, path)
    try:
        return CausalLanguageModelConfig(
            vocab_size=vocab_size,
            transformer=TransformerConfig(
                num_layers=num_layers,
                embed_dim=width,
                num_heads=num_heads,
                num_kv_heads=kv_heads,
                head_dim=head_dim,
                mlp_dim=mlp_dim,
                activation="swiglu",
                norm="rms",
                norm_eps=number(config, "rms_norm_eps", path, 1e-6),
                qk_norm=family.qk_norm,
                bias=_biases(name, config, path),
            ),
            positions=_read_rope(config, max_positions, path),
            max_positions=max_positions,
            tied=truth(config, "tie_word_embeddings", path),
        )
    except ModelFolderError:
        raise
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from error


def write_family_config(cfg: CausalLanguageModelConfig) -> dict[str, Any]:
    """The `config.json` from which transformers 4 and 5 build the same function.

    Raises:
        ModelFolderError: a model that is of none of the families.
    """
    t = cfg.transformer
    expected = {"activation": "swiglu", "norm": "rms", "norm_order": "pre"}
    for key, value in expected.items():
        if getattr(t, key) != value:
            raise ModelFolderError(
                f"{key}={getattr(t, key)!r} must be {value!r} in a model of {sorted(FAMILIES)}"
            )
    if not isinstance(cfg.positions, Rope):
        raise ModelFolderError(f"positions={cfg.positions} must be Rope in a Llama-family model")
    name = "qwen3" if t.qk_norm else "qwen2" if t.bias == "qkv" else "llama"
    head_dim = t.attention.head_width
    if name == "qwen3" and t.bias not in ("none", "attention"):
        raise ModelFolderError(f'bias={t.bias!r} must be "none" or "attention" in qwen3')
    theta = cfg.positions.base
    rope = {"rope_type": "default", "rope_theta": theta, **_write_scaling(cfg.positions)}
    config = {
        "architectures": [FAMILIES[name].architecture],
        "model_type": name,
        "vocab_size": cfg.vocab_size,
        "hidden_size": t.embed_dim,
        "intermediate_size": t.feed_forward.mlp_dim,
        "num_hidden_layers": t.num_layers,
        "num_attention_heads": t.num_heads,
        "num_key_value_heads": t.attention.kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": t.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "rope_parameters": rope,
        "attention_bias": t.bias in ("attention", "all"),
        "use_sliding_window": False,
    }
    if name == "llama":
        config["mlp_bias"] = t.bias == "all"
    return config


def _biases(name: str, config: Mapping[str, Any], path: Path) -> AttentionBias:
    if name == "qwen2":
        return "qkv"
    attention, mlp = (truth(config, key, path) for key in ("attention_bias", "mlp_bias"))
    if mlp and not attention:
        raise ModelFolderError(f"{path}: mlp_bias=true needs attention_bias=true")
    return "all" if mlp else "attention" if attention else "none"


def _read_rope(config: Mapping[str, Any], max_positions: int, path: Path) -> Rope:
    """From `rope_scaling` and `rope_theta` of transformers 4, else `rope_parameters` of 5.

    Where a file has both, or a length before scaling in two places, it is as transformers 5 has it.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if not isinstance(given, dict):
        raise ModelFolderError(f"{path}: {name}={given!r} must be an object")
    for key, value in given.items():
        if isinstance(value, dict):
            raise ModelFolderError(f"{path}: {name} has the key {key!r}, must be for all layers")
    theta = number(given, "rope_theta", path, number(config, "rope_theta", path, 10_000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise ModelFolderError(f"{path}: rope_type={kind!r} must be one of {_ROPE_TYPES}")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        found = given["partial_rotary_factor"]
        raise ModelFolderError(f"{path}: partial_rotary_factor={found} must be 1.0")
    if kind == "default":
        return Rope(theta)
    names = ("factor", "low_freq_factor", "high_freq_factor")[: 1 if kind == "linear" else 3]
    for key in names:
        if given.get(key) is None:
            raise ModelFolderError(f"{path}: rope_type={kind!r} needs the key {key!r}")
    numbers = {key: number(given, key, path, 1.0) for key in names}
    if kind == "linear":
        return Rope(theta, LinearScaling(numbers["factor"]))
    key = "original_max_position_embeddings"
    original = whole_number(config, key, path, whole_number(given, key, path, max_positions))
    return Rope(theta, Llama3Scaling(**numbers, original_max_positions=original))


def _write_scaling(rope: Rope) -> dict[str, Any]:
    if isinstance(rope.scaling, LinearScaling):
        return {"rope_type": "linear", "factor": rope.scaling.factor}
    if isinstance(rope.scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": rope.scaling.factor,
            "low_freq_factor": rope.scaling.low_freq_factor,
            "high_freq_factor": rope.scaling.high_freq_factor,
            "original_max_position_embeddings": rope.scaling.original_max_positions,
        }
    return {}


def _check_heads(
    width: int, num_heads: int, kv_heads: int | None, head_dim: int | None, path: Path
) -> None:
    """What the configuration would refuse by its own names, by those of `config.json`."""
    if num_heads % (kv_heads or num_heads):
        raise ModelFolderError(
            f"{path}: num_attention_heads={num_heads} must be a multiple of "
            f"num_key_value_heads={kv_heads}"
        )
    if head_dim is None and width % num_heads:
        raise ModelFolderError(
            f"{path}: hidden_size={width} must be a multiple of num_attention_heads={num_heads}, "
            "unless head_dim is given"
        )
    head_dim = width // num_heads if head_dim is None else head_dim
    if head_dim % 2:
        raise ModelFolderError(f"{path}: head_dim={head_dim} must be even: features turn in pairs")
