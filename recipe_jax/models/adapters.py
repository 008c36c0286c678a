"""Low-rank adapters of a causal language model: added, told apart, merged."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from recipe_jax.functional import (
    Params,
    PureModule,
    abstract,
    flat_params,
    nested_params,
    purify,
)
from recipe_jax.layers.low_rank import LowRank, merged_weight
from recipe_jax.models.causal_language_model import CausalLanguageModel, CausalLanguageModelConfig

_SUFFIX = "_adapter"


def is_adapter(path: tuple[Any, ...]) -> bool:
    """Whether a parameter belongs to an adapter."""
    return any(str(name).endswith(_SUFFIX) for name in path)


def adapter_mask(params: Mapping[Any, Any]) -> Params:
    """A dict like the parameters: true for those of adapters, which alone are to be trained."""
    return nested_params({path: is_adapter(path) for path in flat_params(params)})


def add_adapters(
    cfg: CausalLanguageModelConfig,
    params: Params,
    adapters: LowRank,
    *,
    seed: int,
    **options: Any,
) -> tuple[CausalLanguageModelConfig, PureModule[CausalLanguageModel], Params]:
    """The same model with adapters, which at first change nothing (arXiv:2106.09685, section 4.1).

    Args:
        cfg: of the model.
        params: of the model.
        adapters: which weights get one.
        seed: of the adapters' initial values.
        options: of `CausalLanguageModel`, such as `remat`.
    """
    cfg = dataclasses.replace(
        cfg, transformer=dataclasses.replace(cfg.transformer, adapters=adapters)
    )

    def make() -> CausalLanguageModel:
        return CausalLanguageModel(cfg, rngs=nnx.Rngs(seed), **options)

    @jax.jit  # so that nothing but the adapters is ever drawn
    def draw() -> Params:
        fresh = flat_params(purify(make())[1])
        return nested_params({path: leaf for path, leaf in fresh.items() if is_adapter(path)})

    merged = flat_params(params) | flat_params(draw())
    return cfg, abstract(make)[0], nested_params(merged)


def merge_adapters(
    cfg: CausalLanguageModelConfig, params: Params
) -> tuple[CausalLanguageModelConfig, Params]:
    """The same function without adapters: each is added to its weight."""
    adapters = cfg.transformer.adapters
    plain = dataclasses.replace(
        cfg, transformer=dataclasses.replace(cfg.transformer, adapters=None)
    )
    if adapters is None:
        return plain, params
    scale = adapters.alpha / adapters.rank
    leaves = flat_params(params)
    merged = {path: leaf for path, leaf in leaves.items() if not is_adapter(path)}

    def merge(weight: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
        return merged_weight(weight, down, up, scale)

    for path, down in leaves.items():
        if not is_adapter(path) or path[-1] != "down":
            continue
        weight = (*path[:-2], str(path[-2]).removesuffix(_SUFFIX))
        of_layer = jax.vmap(merge)  # a stack: every array has a leading axis of layers
        merged[weight] = of_layer(merged[weight], down, leaves[*path[:-1], "up"])
    return plain, nested_params(merged)
