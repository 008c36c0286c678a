"""Every model with its configuration, and configurations as JSON."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from recipe_jax.layers import positions
from recipe_jax.layers.low_rank import LowRank
from recipe_jax.models.amounts import AmountsConfig, AmountsModel
from recipe_jax.models.amounts_ensemble import AmountsEnsemble, AmountsEnsembleConfig
from recipe_jax.models.autoregressive_amounts import (
    AutoregressiveAmounts,
    AutoregressiveAmountsConfig,
)
from recipe_jax.models.bert_encoder import BertEncoder, BertEncoderConfig
from recipe_jax.models.causal_language_model import (
    CausalLanguageModel,
    CausalLanguageModelConfig,
)
from recipe_jax.models.encoder_decoder_generator import (
    EncoderDecoderConfig,
    EncoderDecoderGenerator,
)
from recipe_jax.models.encoder_decoder_transformer import (
    EncoderDecoderTransformer,
    EncoderDecoderTransformerConfig,
)
from recipe_jax.models.feed_forward_network import (
    FeedForwardClassifier,
    FeedForwardNetwork,
    FeedForwardNetworkConfig,
)
from recipe_jax.models.generative_recommender import (
    GenerativeRecommender,
    GenerativeRecommenderConfig,
)
from recipe_jax.models.ingredient_generator import GeneratorConfig, IngredientGenerator
from recipe_jax.models.joint_recipes import JointRecipes, JointRecipesConfig
from recipe_jax.models.masked_set_generator import MaskedSetConfig, MaskedSetGenerator
from recipe_jax.models.residual_codebooks import ResidualCodebooks, ResidualCodebooksConfig
from recipe_jax.models.rq_vae import RqVae, RqVaeConfig
from recipe_jax.models.sasrec import Sasrec, SasrecConfig

RECIPE_MODELS: Mapping[str, tuple[type, Callable[..., nnx.Module]]] = types.MappingProxyType(
    {
        "ingredient_generator": (GeneratorConfig, IngredientGenerator),
        "encoder_decoder_generator": (EncoderDecoderConfig, EncoderDecoderGenerator),
        "masked_set_generator": (MaskedSetConfig, MaskedSetGenerator),
        "joint_recipes": (JointRecipesConfig, JointRecipes),
        "amounts": (AmountsConfig, AmountsModel),
        "amounts_ensemble": (AmountsEnsembleConfig, AmountsEnsemble),
        "autoregressive_amounts": (AutoregressiveAmountsConfig, AutoregressiveAmounts),
    }
)
"""Models of foods, as `MODELS`."""

MODELS: Mapping[str, tuple[type, Callable[..., nnx.Module]]] = types.MappingProxyType(
    {
        **RECIPE_MODELS,
        "bert_encoder": (BertEncoderConfig, BertEncoder),
        "causal_language_model": (CausalLanguageModelConfig, CausalLanguageModel),
        "encoder_decoder_transformer": (
            EncoderDecoderTransformerConfig,
            EncoderDecoderTransformer,
        ),
        "generative_recommender": (GenerativeRecommenderConfig, GenerativeRecommender),
        "sasrec": (SasrecConfig, Sasrec),
        "feed_forward_network": (FeedForwardNetworkConfig, FeedForwardNetwork),
        "feed_forward_classifier": (FeedForwardNetworkConfig, FeedForwardClassifier),
        "residual_codebooks": (ResidualCodebooksConfig, ResidualCodebooks),
        "rq_vae": (RqVaeConfig, RqVae),
    }
)
"""`model_type` in `config.json` -> configuration and module."""

VALUES = {
    cls.__name__: cls
    for cls in (
        positions.NoPositions,
        positions.Sinusoidal,
        positions.Learned,
        positions.Rope,
        positions.LinearScaling,
        positions.Llama3Scaling,
        positions.Alibi,
        LowRank,
    )
}
"""Frozen values that a configuration may hold where any of several types fits."""


def make_module(model_type: str, cfg: Any, *, seed: int = 0, **options: Any) -> nnx.Module:
    """Build the module of a configuration.

    Args:
        model_type: key in `MODELS`.
        cfg: its configuration.
        seed: of the initial parameters.
        options: passed to the module, such as `attend`.
    """
    return MODELS[model_type][1](cfg, rngs=nnx.Rngs(seed), **options)


def to_json(value: Any) -> Any:
    """A frozen dataclass of numbers, strings, tuples and dataclasses as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        name = type(value).__name__
        return {"type": name, **fields} if name in VALUES else fields
    return list(value) if isinstance(value, tuple) else value


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json` for a value of type `kind`.

    Raises:
        ValueError: an unknown type or key, named.
    """
    if isinstance(value, dict) and ("type" in value or dataclasses.is_dataclass(kind)):
        if value.get("type", "NoPositions") not in VALUES:
            raise ValueError(f"type={value['type']!r} must be one of {sorted(VALUES)}")
        kind = VALUES[value["type"]] if "type" in value else kind
        hints = typing.get_type_hints(kind)
        given = {name: item for name, item in value.items() if name != "type"}
        unknown = sorted(set(given) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}")
        return kind(**{name: from_json(hints[name], item) for name, item in given.items()})
    return tuple(value) if isinstance(value, list) else value
