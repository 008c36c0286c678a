"""Tokens that a causal language model learns to know later: rows of its tables, and which they are.

The rows of the tokens that it knew stay as they are, bit for bit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from recipe_jax.functional import (
    Params,
    PureModule,
    Slice,
    abstract,
    flat_params,
    nested_params,
)
from recipe_jax.models.causal_language_model import CausalLanguageModel, CausalLanguageModelConfig

_TABLES = {("embedding", "table"): 0, ("head", "kernel"): 1}
"""Path of a parameter -> its axis of tokens; the output layer is not there if it is tied."""


def add_tokens(
    cfg: CausalLanguageModelConfig,
    params: Params,
    first: int,
    num_tokens: int,
    *,
    seed: int,
    **options: Any,
) -> tuple[CausalLanguageModelConfig, PureModule[CausalLanguageModel], Params]:
    """The same model with more tokens.

    A new token's vector is drawn from a normal distribution with the known ones' mean and variance
    in each column: its logit is then one of many, where that of a vector drawn near zero may exceed
    those of all known words (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models").

    Args:
        cfg: of the model.
        params: of the model.
        first: number of the first new token, which follows the last that the tokenizer knows.  A
            model whose tables have more rows than its tokenizer has tokens, as many have, uses
            those first.
        num_tokens: how many.
        seed: of the new vectors.
        options: of `CausalLanguageModel`, such as `remat`.

    Raises:
        ValueError: no tokens, or a first one that leaves a gap behind the tables.
    """
    if num_tokens < 1 or not 1 < first <= cfg.vocab_size:
        raise ValueError(
            f"{num_tokens} new tokens from {first} on must be at least one, and the first must "
            f"follow a known token of the vocabulary of {cfg.vocab_size}"
        )
    grown = dataclasses.replace(cfg, vocab_size=max(cfg.vocab_size, first + num_tokens))
    fn, _ = abstract(lambda: CausalLanguageModel(grown, rngs=nnx.Rngs(seed), **options))
    leaves = flat_params(params)
    for path, axis in _TABLES.items():
        if path in leaves:
            key = jax.random.fold_in(jax.random.key(seed), axis)
            table = _with_rows(jnp.moveaxis(leaves[path], axis, 0), first, num_tokens, key)
            leaves[path] = jnp.moveaxis(table, 0, axis)
    return grown, fn, nested_params(leaves)


def new_token_mask(params: Mapping[Any, Any], first: int, num_tokens: int) -> Params:
    """A dict like the parameters, for `train_only`: the new tokens' vectors and nothing else."""
    return nested_params(
        {
            path: path in _TABLES and Slice(first, first + num_tokens, axis=_TABLES[path])
            for path in flat_params(params)
        }
    )


def _with_rows(
    table: Float[Array, "v e"], first: int, num_tokens: int, key: PRNGKeyArray
) -> Float[Array, "new_v e"]:
    known = table[:first].astype(jnp.float32)
    noise = jax.random.normal(key, (num_tokens, table.shape[1]))
    drawn = known.mean(axis=0)[None] + known.std(axis=0)[None] * noise
    rest = table[first + num_tokens :]
    return jnp.concatenate([table[:first], drawn.astype(table.dtype), rest])
