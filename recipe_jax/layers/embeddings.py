"""Vectors for tokens and for positions."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from recipe_jax.layers.initializers import truncated_normal
from recipe_jax.layers.parameters import Initializer, parameter
from recipe_jax.layers.positions import NoPositions
from recipe_jax.layers.products import project


class TokenEmbedding(nnx.Module):
    """A table of token vectors, which may serve as the output layer too (Press and Wolf 2017).

    Args:
        vocab_size: rows of the table.
        embed_dim: columns.
        scale: multiplies the vectors that are looked up; `sqrt(embed_dim)` in Vaswani et al. 2017.
        initializer: of the table; deviation `1 / sqrt(embed_dim)` if None, with which tied logits
            of normalized states start with unit variance.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        scale: float = 1.0,
        initializer: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        self.scale = scale
        draw = truncated_normal(embed_dim**-0.5) if initializer is None else initializer
        shape = (vocab_size, embed_dim)
        self.table = parameter(rngs.params(), shape, ("vocab", "embed"), draw)

    def __call__(self, tokens: Int[Array, "*shape"]) -> Float[Array, "*shape e"]:
        """Scaled vectors of the tokens; a token outside the vocabulary is the caller's error."""
        return self.scale * self.table[...][tokens]

    def logits(self, x: Float[Array, "... e"]) -> Float32[Array, "... v"]:
        """Scalar products with all tokens' unscaled vectors (arXiv:1608.05859, section 3)."""
        return project(x, self.table[...].T)


class PositionEmbedding(nnx.Module):
    """Adds positions to embeddings, and holds the table if they are learned.

    Args:
        positions: which kind; those that rotate heads or bias logits add nothing here.
        embed_dim: width of the embeddings.
        initializer: of the learned table.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        positions: NoPositions,
        embed_dim: int,
        *,
        initializer: Initializer = truncated_normal(0.02),  # noqa: B008, a pure function
        rngs: nnx.Rngs,
    ):
        self.positions = positions
        shape = (positions.num_embeddings, embed_dim)
        self.table = (
            parameter(rngs.params(), shape, (None, "embed"), initializer) if shape[0] else None
        )

    def __call__(
        self, embeddings: Float[Array, "b t e"], indices: Int[Array, "#b t"] | None = None
    ) -> Float[Array, "b t e"]:
        """Embeddings with their positions, `0 … t - 1` if no indices are given."""
        if indices is None:
            indices = jnp.arange(embeddings.shape[1])[None]
        table = None if self.table is None else self.table[...]
        return self.positions.encode(embeddings, indices, table)
