"""Attention over sets: equivariant blocks, invariant pooling (Lee et al. 2019, arXiv:1810.00825).

No block knows positions: permuting the members permutes the outputs, pooling gives the same.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from recipe_jax.layers.attention import Attend, Attention, AttentionConfig, dot_product_attention
from recipe_jax.layers.dropout import check_rate, dropout, split_key
from recipe_jax.layers.feed_forward import Activation, FeedForward, FeedForwardConfig
from recipe_jax.layers.initializers import xavier_uniform
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.norms import NormName, make_norm
from recipe_jax.layers.parameters import parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetConfig:
    """Shape of the blocks of a set transformer.

    Attributes:
        embed_dim: width of a member.
        num_heads: heads of every attention.
        mlp_dim: width inside the feed-forward layers; `embed_dim` if None, as in the paper.
        activation: of the feed-forward layers.
        norm: layer norm as in the paper, or root mean square.
        dropout_rate: probability that a feature of a sublayer's output is dropped.
    """

    embed_dim: int
    num_heads: int
    mlp_dim: int | None = None
    activation: Activation = "relu"
    norm: NormName = "layer"
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        check_rate(self.dropout_rate)
        _ = self.attention, self.feed_forward  # which check the rest

    @property
    def attention(self) -> AttentionConfig:
        """Shape of the attention of each block."""
        return AttentionConfig(embed_dim=self.embed_dim, num_heads=self.num_heads, bias="all")

    @property
    def feed_forward(self) -> FeedForwardConfig:
        """Shape of the row-wise feed-forward layer of each block."""
        return FeedForwardConfig(
            embed_dim=self.embed_dim,
            mlp_dim=self.embed_dim if self.mlp_dim is None else self.mlp_dim,
            activation=self.activation,
            use_bias=True,
        )


class MultiheadAttentionBlock(nnx.Module):
    """MAB(X, Y): `H = norm(X + attention(X, Y))`, then `norm(H + feed_forward(H))` (eq. 6, 7).

    Unlike the paper's code, the first residual is `X` itself, not its query heads.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(self, cfg: SetConfig, *, attend: Attend = dot_product_attention, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention = Attention(cfg.attention, attend=attend, rngs=rngs)
        self.attention_norm = make_norm(cfg.norm, cfg.embed_dim, rngs=rngs)
        self.feed_forward = FeedForward(cfg.feed_forward, rngs=rngs)
        self.feed_forward_norm = make_norm(cfg.norm, cfg.embed_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t e"],
        y: Float[Array, "b s e"],
        *,
        y_lengths: Int[Array, "b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t e"]:
        """What each member of `x` becomes on reading `y`.

        Args:
            x: the set that asks.
            y: the set that is read.
            y_lengths: real members of `y`, the rest is padding; all are real if None.
            key: random key for dropout; None in evaluation.
        """
        first, second = split_key(key, 2)
        rate = self.cfg.dropout_rate
        with jax.named_scope("attention"):
            attended = self.attention(x, y, mask=Mask(key_lengths=y_lengths))
        x = self.attention_norm(x + dropout(attended, rate, first))
        with jax.named_scope("feed_forward"):
            fed = self.feed_forward(x)
        x = self.feed_forward_norm(x + dropout(fed, rate, second))
        return checkpoint_name(x, "residual")


class SetAttentionBlock(nnx.Module):
    """SAB(X) = MAB(X, X), quadratic in the size of the set (arXiv:1810.00825, eq. 8).

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(self, cfg: SetConfig, *, attend: Attend = dot_product_attention, rngs: nnx.Rngs):
        self.block = MultiheadAttentionBlock(cfg, attend=attend, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b m e"],
        *,
        lengths: Int[Array, "b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b m e"]:
        """What each member becomes; `lengths` counts real members, `key` is for dropout."""
        return self.block(x, x, y_lengths=lengths, key=key)


class InducedSetAttentionBlock(nnx.Module):
    """ISAB(X) = MAB(X, MAB(I, X)): linear in the size of the set (arXiv:1810.00825, eq. 9, 10).

    Args:
        cfg: its shape.
        num_inducing: learned points `I` through which the members exchange information.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.

    Raises:
        ValueError: if there are no inducing points.
    """

    def __init__(
        self,
        cfg: SetConfig,
        num_inducing: int,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.points = _learned_points("num_inducing", num_inducing, cfg, rngs)
        self.gather = MultiheadAttentionBlock(cfg, attend=attend, rngs=rngs)
        self.spread = MultiheadAttentionBlock(cfg, attend=attend, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b m e"],
        *,
        lengths: Int[Array, "b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b m e"]:
        """What each member becomes; `lengths` counts real members, `key` is for dropout."""
        first, second = split_key(key, 2)
        points = _repeat(self.points, x)
        with jax.named_scope("gather"):
            gathered = self.gather(points, x, y_lengths=lengths, key=first)
        with jax.named_scope("spread"):
            return self.spread(x, gathered, key=second)


class AttentionPooling(nnx.Module):
    """PMA(Z) = MAB(S, rFF(Z)): a set becomes a fixed number of vectors (arXiv:1810.00825, eq. 11).

    Args:
        cfg: its shape.
        num_seeds: learned questions `S`, of which each gives one vector.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.

    Raises:
        ValueError: if there are no seeds.
    """

    def __init__(
        self,
        cfg: SetConfig,
        num_seeds: int = 1,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.seeds = _learned_points("num_seeds", num_seeds, cfg, rngs)
        self.feed_forward = FeedForward(cfg.feed_forward, rngs=rngs)
        self.block = MultiheadAttentionBlock(cfg, attend=attend, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b m e"],
        *,
        lengths: Int[Array, "b"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b n e"]:
        """One vector per seed; `lengths` counts real members, `key` is for dropout."""
        with jax.named_scope("members"):
            members = self.feed_forward(x)
        return self.block(_repeat(self.seeds, x), members, y_lengths=lengths, key=key)


def _learned_points(name: str, count: int, cfg: SetConfig, rngs: nnx.Rngs) -> nnx.Param[Any]:
    if count < 1:
        raise ValueError(f"{name}={count} must be at least 1")
    shape = (count, cfg.embed_dim)
    return parameter(rngs.params(), shape, (None, "embed"), xavier_uniform("n -> e"))


def _repeat(points: nnx.Param[Any], x: Float[Array, "b m e"]) -> Float[Array, "b n e"]:
    table = points[...].astype(x.dtype)
    return jnp.broadcast_to(table[None], (x.shape[0], *table.shape))
