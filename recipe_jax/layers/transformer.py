"""Transformer blocks, and a stack of them under one scan.

The same stack is an encoder with `Mask()`, a decoder with `Mask(causal=True)` and, with
`cross_attention`, the decoder of an encoder-decoder.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from recipe_jax.functional import Params, purify, stack
from recipe_jax.layers.attention import (
    Attend,
    Attention,
    AttentionBias,
    AttentionConfig,
    dot_product_attention,
)
from recipe_jax.layers.dropout import check_rate, dropout, split_key
from recipe_jax.layers.feed_forward import Activation, FeedForward, FeedForwardConfig
from recipe_jax.layers.key_value_cache import KeyValueCache
from recipe_jax.layers.low_rank import LowRank
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.norms import Norm, NormName, make_norm
from recipe_jax.layers.positions import NoPositions

Remat: TypeAlias = Literal["none", "elementwise", "block"]
"""What the backward pass computes again instead of keeping it from the forward pass: nothing; all
but the products with weights, which are most of the time and little of the memory; or all of a
block but its input (Chen et al. 2016, arXiv:1604.06174)."""

_NO_MASK = Mask()
_CAUSAL = Mask(causal=True)
_NO_POSITIONS = NoPositions()
_FLOAT32 = jnp.dtype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a stack of transformer blocks.

    Attributes:
        num_layers: how many blocks.
        embed_dim: width of a token.
        num_heads: query heads.
        num_kv_heads: key/value heads; as many as query heads if None.
        head_dim: width of a head; `embed_dim / num_heads` if None.
        mlp_dim: width inside the feed-forward layers; `4 embed_dim` if None.
        activation: of the feed-forward layers; pointwise or gated.
        norm: root mean square or layer norm.
        norm_eps: added to its mean square or variance.
        norm_order: normalize before each sublayer (Xiong et al. 2020, arXiv:2002.04745), with one
            more norm at the end, or after each residual sum (Vaswani et al. 2017).
        dropout_rate: probability that a feature of a sublayer's output is dropped before it is
            added (Vaswani et al. 2017, section 5.4).
        qk_norm: whether query and key heads are normalized.
        bias: which of the attention's projections add a bias; with "all" the feed-forward too.
        adapters: low-rank corrections of the blocks' weights; None for none.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    activation: Activation = "gelu"
    norm: NormName = "rms"
    norm_eps: float = 1e-6
    norm_order: Literal["pre", "post"] = "pre"
    dropout_rate: float = 0.0
    qk_norm: bool = False
    bias: AttentionBias = "none"
    adapters: LowRank | None = None

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers} must be at least 1")
        if self.norm not in ("rms", "layer"):
            raise ValueError(f'norm={self.norm!r} must be "rms" or "layer"')
        if self.norm_order not in ("pre", "post"):
            raise ValueError(f'norm_order={self.norm_order!r} must be "pre" or "post"')
        check_rate(self.dropout_rate)
        _ = self.attention, self.feed_forward  # which check the rest

    @property
    def attention(self) -> AttentionConfig:
        """Shape of the attention of each block."""
        return AttentionConfig(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            qk_norm=self.qk_norm,
            bias=self.bias,
            norm_eps=self.norm_eps,
            adapters=self.adapters,
        )

    @property
    def feed_forward(self) -> FeedForwardConfig:
        """Shape of the feed-forward layer of each block."""
        return FeedForwardConfig(
            embed_dim=self.embed_dim,
            mlp_dim=4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim,
            activation=self.activation,
            use_bias=self.bias == "all",
            adapters=self.adapters,
        )


class BlockCache(NamedTuple):
    """What a block keeps while decoding; in a stack every array has a leading axis of layers.

    Attributes:
        tokens: keys and values of the tokens read so far.
        context: keys and values of the context, for a block with cross-attention; of as many rows
            as the tokens, or of fewer, each shared by rows of tokens that lie together.
    """

    tokens: KeyValueCache
    context: KeyValueCache | None = None

    def choose_rows(self, rows: Int[Array, "n"]) -> "BlockCache":
        """The cache of a stack for rows that go on from chosen rows, in their order.

        Args:
            rows: as many for each row of the context as for any other, those of the first first.
        """
        return self._replace(tokens=jax.tree.map(lambda x: x[:, rows], self.tokens))


class Block(nnx.Module):
    """Self-attention, cross-attention where there is a context, feed-forward; each with a residual.

    Args:
        cfg: its shape.
        positions: of self-attention.
        attend: the reference or a kernel of the same signature.
        cross_attention: whether the block reads a context.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        *,
        positions: NoPositions = _NO_POSITIONS,
        attend: Attend = dot_product_attention,
        cross_attention: bool = False,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg

        def norm() -> Norm:
            return make_norm(cfg.norm, cfg.embed_dim, eps=cfg.norm_eps, rngs=rngs)

        self.attention_norm = norm()
        self.attention = Attention(cfg.attention, positions=positions, attend=attend, rngs=rngs)
        self.cross_norm = norm() if cross_attention else None
        self.cross_attention = (
            Attention(cfg.attention, attend=attend, rngs=rngs) if cross_attention else None
        )
        self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(cfg.feed_forward, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t e"],
        context: Float[Array, "b s e"] | KeyValueCache | None = None,
        *,
        mask: Mask = _NO_MASK,
        context_mask: Mask = _NO_MASK,
        key: PRNGKeyArray | None = None,
        indices: Int[Array, "#b t"] | None = None,
    ) -> Float[Array, "b t e"]:
        """Transform the tokens; arguments as for `Stack`."""
        keys = split_key(key, 3)
        with jax.named_scope("attention"):
            y = self.attention(self._enter(self.attention_norm, x), mask=mask, indices=indices)
        x = self._leave(self.attention_norm, x, y, keys[0])
        return self._after_attention(x, context, context_mask, keys[1:])

    def decode(
        self,
        x: Float[Array, "b t e"],
        cache: BlockCache,
        *,
        mask: Mask = _CAUSAL,
        context_mask: Mask = _NO_MASK,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b t e"], BlockCache]:
        """Transform new tokens; arguments as for `Stack.decode` and `Attention.decode`."""
        with jax.named_scope("attention"):
            y, tokens = self.attention.decode(
                self._enter(self.attention_norm, x), cache.tokens, mask=mask, layer=layer
            )
        x = self._leave(self.attention_norm, x, y, None)
        x = self._after_attention(x, cache.context, context_mask, (None, None))
        return x, BlockCache(tokens, cache.context)

    def weights(
        self,
        x: Float[Array, "b t e"],
        *,
        mask: Mask = _NO_MASK,
        indices: Int[Array, "#b t"] | None = None,
    ) -> Float32[Array, "b h t t"]:
        """The weights of self-attention in `__call__`; arguments as there."""
        entered = self._enter(self.attention_norm, x)
        return self.attention.weights(entered, mask=mask, indices=indices)

    def empty_cache(
        self,
        batch_size: int,
        capacity: int,
        context: Float[Array, "b s e"] | None = None,
        dtype: jnp.dtype = _FLOAT32,
    ) -> BlockCache:
        """A cache for `decode`; arguments as for `Stack.empty_cache`."""
        self._check_context(context)
        tokens = self.attention.empty_cache(batch_size, capacity, dtype)
        if self.cross_attention is None or context is None:
            return BlockCache(tokens)
        with jax.named_scope("cross_attention"):
            return BlockCache(tokens, self.cross_attention.read(context))

    def _after_attention(
        self,
        x: Float[Array, "b t e"],
        context: Float[Array, "b s e"] | KeyValueCache | None,
        context_mask: Mask,
        keys: tuple[PRNGKeyArray | None, ...],
    ) -> Float[Array, "b t e"]:
        self._check_context(context)
        if self.cross_attention is not None and self.cross_norm is not None:
            with jax.named_scope("cross_attention"):
                y = self.cross_attention(
                    self._enter(self.cross_norm, x), context, mask=context_mask
                )
            x = self._leave(self.cross_norm, x, y, keys[0])
        with jax.named_scope("feed_forward"):
            y = self.feed_forward(self._enter(self.feed_forward_norm, x))
        return checkpoint_name(self._leave(self.feed_forward_norm, x, y, keys[1]), "residual")

    def _enter(self, norm: Norm, x: Float[Array, "b t e"]) -> Float[Array, "b t e"]:
        return norm(x) if self.cfg.norm_order == "pre" else x

    def _leave(
        self,
        norm: Norm,
        x: Float[Array, "b t e"],
        y: Float[Array, "b t e"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "b t e"]:
        x = x + dropout(y, self.cfg.dropout_rate, key)
        return x if self.cfg.norm_order == "pre" else norm(x)

    def _check_context(self, context: object | None) -> None:
        if self.cross_attention is None and context is not None:
            raise ValueError("context is given to a block built with cross_attention=False")
        if self.cross_attention is not None and context is None:
            raise ValueError("context is missing: the block was built with cross_attention=True")


class Stack(nnx.Module):
    """Blocks one after the other, their parameters stacked along a leading axis "layers".

    The blocks run under `lax.scan`, so that compile time hardly depends on their number.

    Args:
        cfg: shape of the blocks and their number.
        positions: of self-attention; what is added to embeddings is not this module's.
        attend: the reference or a kernel of the same signature.
        cross_attention: whether the blocks read a context.
        remat: what the backward pass computes again.
        unroll: how many blocks are traced per step of the scan: compile time grows with it.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        *,
        positions: NoPositions = _NO_POSITIONS,
        attend: Attend = dot_product_attention,
        cross_attention: bool = False,
        remat: Remat = "none",
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        if not 1 <= unroll <= cfg.num_layers:
            raise ValueError(f"unroll={unroll} must be from 1 to num_layers={cfg.num_layers}")
        if remat not in get_args(Remat):
            raise ValueError(f"remat={remat!r} must be one of {get_args(Remat)}")
        self.cfg, self.remat, self.unroll = cfg, remat, unroll

        def make_block(key: jax.Array) -> Block:
            return Block(
                cfg,
                positions=positions,
                attend=attend,
                cross_attention=cross_attention,
                rngs=nnx.Rngs(key),
            )

        self.blocks = stack(make_block, jax.random.split(rngs.params(), cfg.num_layers))
        self.final_norm = (
            make_norm(cfg.norm, cfg.embed_dim, eps=cfg.norm_eps, rngs=rngs)
            if cfg.norm_order == "pre"
            else None
        )

    def __call__(
        self,
        x: Float[Array, "b t e"],
        context: Float[Array, "b s e"] | None = None,
        *,
        mask: Mask = _NO_MASK,
        context_mask: Mask = _NO_MASK,
        key: PRNGKeyArray | None = None,
        indices: Int[Array, "#b t"] | None = None,
    ) -> Float[Array, "b t e"]:
        """Transform the tokens.

        Args:
            x: embeddings of the tokens.
            context: what cross-attention reads; needed with it, refused without.
            mask: which pairs of tokens may meet.
            context_mask: which pairs of token and context may meet.
            key: random key for dropout; None in evaluation.
            indices: positions of the tokens; `0 … t - 1` if None.

        Raises:
            ValueError: if there is a context without cross-attention, or none with it.
        """
        fn, params = purify(self.blocks)

        def step(x: jax.Array, layer: tuple[Params, jax.Array | None]) -> tuple[jax.Array, None]:
            params, key = layer
            block = fn.bind(params)
            y = block(x, context, mask=mask, context_mask=context_mask, key=key, indices=indices)
            return y, None

        keys = None if key is None else jax.random.split(key, self.cfg.num_layers)
        x, _ = self._scan(step, checkpoint_name(x, "embeddings"), (params, keys))
        return self._finish(x)

    def decode(
        self,
        x: Float[Array, "b t e"],
        cache: BlockCache,
        *,
        mask: Mask = _CAUSAL,
        context_mask: Mask = _NO_MASK,
    ) -> tuple[Float[Array, "b t e"], BlockCache]:
        """Transform new tokens, given the cache of those before them; see `Attention.decode`.

        Args:
            x: embeddings of tokens that follow those in the cache: a prompt, or one token.
            cache: from `empty_cache` or from an earlier call.
            mask: of new tokens against cached positions; `query_lengths` are the numbers of real
                tokens in each row of `x`.
            context_mask: which pairs of new token and context may meet.

        Returns:
            Outputs for the new tokens, and the cache with them; all shapes stay as they were.
        """
        fn, params = purify(self.blocks)

        # Keys and values are carried from layer to layer and written in place; as inputs and
        # outputs of the scan all of them would be copied for every token.
        tokens, added = cache.tokens, x.shape[1]
        if mask.query_lengths is not None:
            added = mask.query_lengths[None]

        def step(
            carry: tuple[jax.Array, jax.Array, jax.Array], layer: tuple[Params, Any, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
            (x, keys, values), (params, context, index) = carry, layer
            here = BlockCache(KeyValueCache(keys, values, tokens.lengths[0]), context)
            x, after = fn.bind(params).decode(
                x, here, mask=mask, context_mask=context_mask, layer=index
            )
            return (x, after.tokens.keys, after.tokens.values), None

        layers = (params, cache.context, jnp.arange(self.cfg.num_layers))
        carry = (checkpoint_name(x, "embeddings"), tokens.keys, tokens.values)
        (x, keys, values), _ = jax.lax.scan(step, carry, layers, unroll=self.unroll)
        tokens = KeyValueCache(keys, values, tokens.lengths + added)
        return self._finish(x), cache._replace(tokens=tokens)

    def weights(
        self,
        x: Float[Array, "b t e"],
        context: Float[Array, "b s e"] | None = None,
        *,
        mask: Mask = _NO_MASK,
        context_mask: Mask = _NO_MASK,
        indices: Int[Array, "#b t"] | None = None,
    ) -> Float32[Array, "layers b h t t"]:
        """The weights of self-attention in every layer, by the reference formula."""
        fn, params = purify(self.blocks)

        def step(x: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
            block = fn.bind(params)
            y = block(x, context, mask=mask, context_mask=context_mask, indices=indices)
            return y, block.weights(x, mask=mask, indices=indices)

        return self._scan(step, x, params)[1]

    def empty_cache(
        self,
        batch_size: int,
        capacity: int,
        context: Float[Array, "b s e"] | None = None,
        dtype: jnp.dtype = _FLOAT32,
    ) -> BlockCache:
        """A cache for `decode` that holds no token yet; every array has a leading axis of layers.

        Args:
            batch_size: rows.
            capacity: tokens per row that there is room for.
            context: what cross-attention reads; its keys and values are computed here, once.
            dtype: of the cached keys and values.

        Raises:
            ValueError: if there is a context without cross-attention, or none with it.
        """
        fn, params = purify(self.blocks)
        return jax.vmap(
            lambda params: fn.bind(params).empty_cache(batch_size, capacity, context, dtype)
        )(params)

    def _scan(self, step: Callable[..., Any], x: jax.Array, layers: Any) -> tuple[jax.Array, Any]:
        if self.remat != "none":
            kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            step = jax.checkpoint(step, policy=kept if self.remat == "elementwise" else None)
        return jax.lax.scan(step, x, layers, unroll=self.unroll)

    def _finish(self, x: Float[Array, "b t e"]) -> Float[Array, "b t e"]:
        return checkpoint_name(x if self.final_norm is None else self.final_norm(x), "states")
