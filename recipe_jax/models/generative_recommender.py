"""A generative recommender: a history of items to the semantic ID of the next one."""

import dataclasses
import itertools
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import NextItemBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.dropout import dropout, split_key
from recipe_jax.layers.embeddings import TokenEmbedding
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import NoPositions, Rope
from recipe_jax.layers.transformer import BlockCache, Stack, TransformerConfig
from recipe_jax.models.causal_language_model import NextTokenTerms, token_terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerativeRecommenderConfig:
    """Shape of a generative recommender.

    Attributes:
        sizes: how many codes each level of an ID has.
        transformer: shape of the decoder's blocks, and of the encoder's but for their number.
        encoder_layers: blocks of the encoder.
        positions: of items in the encoder.
        max_items: longest history.
    """

    sizes: tuple[int, ...]
    transformer: TransformerConfig
    encoder_layers: int
    positions: NoPositions = Rope()  # noqa: RUF009, a frozen value
    max_items: int = 50

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes={self.sizes} must be at least 1 each, of one level or more")
        for name in ("encoder_layers", "max_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def level_tokens(self) -> tuple[int, ...]:
        """The token of code 0 of each level: levels are numbered one after the other."""
        return (0, *itertools.accumulate(self.sizes[:-1]))

    @property
    def start_token(self) -> int:
        """What a generated ID begins after."""
        return sum(self.sizes)

    @property
    def vocab_size(self) -> int:
        """Tokens in all."""
        return self.start_token + 1


class History(NamedTuple):
    """What a user had to do with, in order of time.

    Attributes:
        codes: IDs of the items, padded at the end with any.
        lengths: real items of each row, at least one.
    """

    codes: Int[Array, "b m q"]
    lengths: Int[Array, "b"]


class RecommenderCache(NamedTuple):
    """What is kept while an ID is generated.

    Attributes:
        last: the encoder's state of the last item of each history.
        blocks: of the decoder.
    """

    last: Float[Array, "b e"]
    blocks: BlockCache


class GenerativeRecommender(nnx.Module):
    """Logits of the next item's codes, given a history (TIGER, Rajput et al. 2023, 2305.05065).

    As there an encoder reads the history and a decoder writes an ID, code by code.  Two things
    differ, for the sake of learning from every item of a history in one pass rather than in as many
    as it has items: an item enters the encoder as one vector, the sum of its codes' vectors, and
    the encoder is causal.  A decoder that writes item `t + 1` begins with the encoder's state of
    item `t` and attends to those up to it.  There are no tokens of users.

    It is a `TokenDecoder`: the prompt is `cfg.start_token`, the context a `History`.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: GenerativeRecommenderConfig,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        self.embedding = TokenEmbedding(cfg.vocab_size, cfg.transformer.embed_dim, rngs=rngs)
        self.encoder = Stack(
            dataclasses.replace(cfg.transformer, num_layers=cfg.encoder_layers),
            positions=cfg.positions,
            attend=attend,
            rngs=rngs,
        )
        self.decoder = Stack(cfg.transformer, attend=attend, cross_attention=True, rngs=rngs)

    def __call__(
        self,
        codes: Int[Array, "b t q"],
        targets: Int[Array, "b t q"],
        *,
        segments: Int[Array, "b t"] | None = None,
        indices: Int[Array, "#b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, "b t q v"]:
        """Logits of each code of the item after each item, given all items up to it.

        Args:
            codes: IDs of the items of histories; padding may hold any, as long as no real item
                follows it.
            targets: IDs of the items that follow, whose first codes the later ones are given.
            segments: packed histories do not see each other; all is one history if None.
            indices: positions, counted within each history; `0 … t - 1` if None.
            key: random key for dropout; None in evaluation.
        """
        encoder_key, decoder_key, embedding_key = split_key(key, 3)
        b, t, q = codes.shape
        states = self.encode(codes, segments=segments, indices=indices, key=encoder_key)
        written = self.embedding(self.tokens(targets[..., :-1]))
        x = jnp.concatenate([states[:, :, None], written], axis=2).reshape(b, t * q, -1)
        item = jnp.broadcast_to(jnp.repeat(jnp.arange(t), q)[None], (b, t * q))
        x = self.decoder(
            dropout(x, self.cfg.transformer.dropout_rate, embedding_key),
            states,
            mask=Mask(causal=True, query_segments=item, key_segments=item),
            context_mask=Mask(dense=_reads(t, q, segments)),
            key=decoder_key,
        )
        return self.logits(x).reshape(b, t, q, -1)

    def encode(
        self,
        codes: Int[Array, "b t q"],
        *,
        segments: Int[Array, "b t"] | None = None,
        indices: Int[Array, "#b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t e"]:
        """A state after each item, of it and those before it; arguments as for `__call__`.

        Raises:
            ValueError: if there are more items than the model has room for.
        """
        if codes.shape[1] > self.cfg.max_items:
            raise ValueError(
                f"a history of {codes.shape[1]} items must have at most "
                f"max_items={self.cfg.max_items}: give the last ones"
            )
        embedding_key, key = split_key(key, 2)
        x = self.embedding(self.tokens(codes)).sum(axis=2)
        places = jnp.arange(codes.shape[1])[None] if indices is None else indices
        x = self.cfg.positions.encode(x, places)
        x = dropout(x, self.cfg.transformer.dropout_rate, embedding_key)
        mask = Mask(causal=True, query_segments=segments, key_segments=segments)
        return self.encoder(x, mask=mask, indices=indices, key=key)

    def logits(self, states: Float[Array, "... e"]) -> Float32[Array, "... v"]:
        """Logits of all tokens for each state."""
        return self.embedding.logits(states)

    def empty_cache(
        self, batch_size: int, capacity: int, context: History | None = None
    ) -> RecommenderCache:
        """A cache that has read the history and has room for `capacity` tokens.

        Raises:
            ValueError: without a history of so many rows, or one that is too long.
        """
        if context is None or context.codes.shape[0] != batch_size:
            raise ValueError(f"context must be a History of {batch_size} rows, is {context}")
        states = self.encode(context.codes)
        blocks = self.decoder.empty_cache(batch_size, capacity, states)
        if blocks.context is None:
            raise ValueError("the decoder has no cross-attention")
        known = jnp.broadcast_to(context.lengths, blocks.context.lengths.shape)
        last = jnp.take_along_axis(states, (context.lengths - 1)[:, None, None], axis=1)
        return RecommenderCache(
            last=last[:, 0],
            blocks=blocks._replace(context=blocks.context._replace(lengths=known)),
        )

    def decode(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, "b"], cache: RecommenderCache
    ) -> tuple[Float[Array, "b t e"], RecommenderCache]:
        """Read more tokens of IDs: states after each of them, for `logits`, and the cache.

        Args:
            tokens: those that follow what the cache holds, padded on the right.
            lengths: how many of them are no padding.
            cache: of `empty_cache` or of an earlier call.
        """
        if cache.blocks.context is None:
            raise ValueError("the cache has no history: make it by empty_cache")
        starts = (tokens == self.cfg.start_token)[..., None]
        last = jnp.repeat(cache.last, tokens.shape[0] // cache.last.shape[0], axis=0)
        x = jnp.where(starts, last[:, None], self.embedding(tokens))
        states, blocks = self.decoder.decode(
            x,
            cache.blocks,
            mask=Mask(causal=True, query_lengths=lengths),
            context_mask=Mask(key_lengths=cache.blocks.context.lengths[0]),
        )
        return states, cache._replace(blocks=blocks)

    def choose_rows(self, cache: RecommenderCache, rows: Int[Array, "n"]) -> RecommenderCache:
        """The cache of rows that go on from chosen ones; those of one history lie together."""
        return cache._replace(blocks=cache.blocks.choose_rows(rows))

    def tokens(self, codes: Int[Array, "... q"]) -> Int[Array, "... q"]:
        """The tokens of codes, those of the first levels."""
        first = jnp.array(self.cfg.level_tokens[: codes.shape[-1]], codes.dtype)
        return codes + first.reshape((1,) * (codes.ndim - 1) + first.shape)


def next_code_loss(
    model: GenerativeRecommender,
    batch: NextItemBatch,
    codes: Int[Array, "n q"],
    key: PRNGKeyArray | None = None,
) -> NextTokenTerms:
    """Cross-entropy of the codes of every next item, given the history up to it.

    Args:
        model: gives the logits.
        batch: rows of packed histories.
        codes: IDs of all items.
        key: random key for dropout; None in evaluation.
    """
    b = batch.items.shape[0]
    targets = codes[batch.targets]
    logits = model(
        codes[batch.items],
        targets,
        segments=batch.segments,
        indices=batch.positions,
        key=key,
    )
    counts = (batch.segments > 0).astype(jnp.float32)
    return token_terms(
        logits.reshape(b, -1, logits.shape[-1]),
        model.tokens(targets).reshape(b, -1),
        jnp.repeat(counts, codes.shape[1], axis=1),
    )


def _reads(t: int, q: int, segments: Int[Array, "b t"] | None) -> Bool[Array, "#b 1 tq t"]:
    """Which items the writer of each code sees: that which it follows, and those before."""
    seen = jnp.tril(jnp.ones((t, t), bool))[None]
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    return jnp.repeat(seen, q, axis=1)[:, None]
