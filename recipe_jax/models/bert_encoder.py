"""The encoder of BERT, and what makes one vector of a text's states."""

import dataclasses
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.dropout import dropout, split_key
from recipe_jax.layers.embeddings import PositionEmbedding, TokenEmbedding
from recipe_jax.layers.initializers import truncated_normal
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.norms import make_norm
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.positions import Learned
from recipe_jax.layers.transformer import Stack, TransformerConfig

Pooling: TypeAlias = Literal["mean", "cls"]
"""How states become one vector: their mean, or the first one, which is the token `[CLS]`'s."""

_INITIAL = truncated_normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertEncoderConfig:
    """Shape of a BERT encoder (Devlin et al. 2019, arXiv:1810.04805).

    Attributes:
        vocab_size: number of tokens.
        transformer: shape of the blocks; BERT's own have layer norms after each sum, biases
            everywhere and exact GELU.
        max_positions: rows of the table of learned positions, and so the longest text in tokens.
        num_token_types: rows of the table that tells the first text of a pair from the second.
    """

    vocab_size: int
    transformer: TransformerConfig
    max_positions: int = 512
    num_token_types: int = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_positions", "num_token_types"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class BertEncoder(nnx.Module):
    """States of a text's tokens, each of which has seen all others.

    Parameters are float32; with `dtype="bfloat16"` activations and matrix products are bfloat16,
    their sums, norms, softmax and embeddings float32.  There is no pooler: sentence embeddings do
    not read it.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        dtype: of activations.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: BertEncoderConfig,
        *,
        attend: Attend = dot_product_attention,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.cfg, self.dtype = cfg, dtype
        t = cfg.transformer
        self.embedding = TokenEmbedding(
            cfg.vocab_size, t.embed_dim, initializer=_INITIAL, rngs=rngs
        )
        self.positions = PositionEmbedding(Learned(cfg.max_positions), t.embed_dim, rngs=rngs)
        self.token_types = parameter(
            rngs.params(), (cfg.num_token_types, t.embed_dim), (None, "embed"), _INITIAL
        )
        self.embedding_norm = make_norm(t.norm, t.embed_dim, eps=t.norm_eps, rngs=rngs)
        self.stack = Stack(t, attend=attend, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        lengths: Int[Array, "b"],
        *,
        token_types: Int[Array, "b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t e"]:
        """The last states of the tokens; those of padding mean nothing.

        Args:
            tokens: padded on the right with any token.
            lengths: how many are real, at least one.
            token_types: which text of a pair each token is of; all of the first if None.
            key: random key for dropout; None in evaluation.

        Raises:
            ValueError: if there are more tokens than `max_positions`.
        """
        embedding_key, key = split_key(key, 2)
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        x = self.embedding(tokens).astype(jnp.float32)
        x = self.positions(x) + self.token_types[...][types].astype(jnp.float32)
        x = dropout(self.embedding_norm(x), self.cfg.transformer.dropout_rate, embedding_key)
        return self.stack(x.astype(self.dtype), mask=Mask(key_lengths=lengths), key=key)


def pool_states(
    states: Float[Array, "b t e"], lengths: Int[Array, "b"], pooling: Pooling
) -> Float32[Array, "b e"]:
    """One vector for each text (Reimers and Gurevych 2019, arXiv:1908.10084, section 3).

    Args:
        states: of its tokens; those of padding may hold NaN.
        lengths: how many of the tokens are real, at least one.
        pooling: their mean, or the first.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling={pooling!r} must be one of {get_args(Pooling)}")
    wide = states.astype(jnp.float32)
    if pooling == "cls":
        return wide[:, 0]
    is_real = jnp.arange(states.shape[1])[None] < lengths[:, None]
    total = jnp.sum(jnp.where(is_real[..., None], wide, 0.0), axis=1)
    return total / lengths[:, None].astype(jnp.float32)


def unit_length(vectors: Float32[Array, "b e"]) -> Float32[Array, "b e"]:
    """Each vector divided by its length; one of length zero stays as it is."""
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(lengths, 1e-12)
