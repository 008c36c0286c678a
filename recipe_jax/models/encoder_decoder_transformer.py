"""The encoder-decoder transformer: sequences of tokens to sequences of tokens."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import SequencePairBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.dropout import dropout, split_key
from recipe_jax.layers.embeddings import PositionEmbedding, TokenEmbedding
from recipe_jax.layers.feed_forward import Linear
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import NoPositions, Sinusoidal
from recipe_jax.layers.products import project
from recipe_jax.layers.transformer import BlockCache, Stack, TransformerConfig
from recipe_jax.models.causal_language_model import NextTokenTerms, token_terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderTransformerConfig:
    """Shape of an encoder-decoder transformer (Vaswani et al. 2017, arXiv:1706.03762).

    Attributes:
        vocab_size: number of target tokens, and of source tokens where the table is shared.
        transformer: shape of the decoder's blocks, and of the encoder's but for their number.
        encoder_layers: blocks of the encoder.
        source_vocab_size: number of source tokens, with a table of their own; None shares the
            target's (section 3.4).
        positions: of both stacks.
        max_positions: target tokens that decoding has room for.
        tied: whether the output layer is the target's table (section 3.4).
    """

    vocab_size: int
    transformer: TransformerConfig
    encoder_layers: int
    source_vocab_size: int | None = None
    positions: NoPositions = Sinusoidal()  # noqa: RUF009, a frozen value
    max_positions: int = 512
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "encoder_layers", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.source_vocab_size is not None and self.source_vocab_size < 1:
            raise ValueError(
                f"source_vocab_size={self.source_vocab_size} must be at least 1; None shares"
            )


class Source(NamedTuple):
    """What the encoder reads.

    Attributes:
        tokens: padded on the right with any token.
        lengths: how many are real, at least one.
    """

    tokens: Int[Array, "b s"]
    lengths: Int[Array, "b"]


class EncoderDecoderTransformer(nnx.Module):
    """Logits of the next target token after every target token, given a source.

    Embeddings are scaled by the root of their width and dropped out with their positions, as in
    sections 3.4 and 5.4 of the paper.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: EncoderDecoderTransformerConfig,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        e = cfg.transformer.embed_dim

        def table(size: int) -> TokenEmbedding:
            return TokenEmbedding(size, e, scale=e**0.5, rngs=rngs)

        self.embedding = table(cfg.vocab_size)
        shares = cfg.source_vocab_size is None
        self.source_embedding = None if shares else table(cfg.source_vocab_size or 0)
        self.positions = PositionEmbedding(cfg.positions, e, rngs=rngs)

        def stack(num_layers: int, cross_attention: bool) -> Stack:
            return Stack(
                dataclasses.replace(cfg.transformer, num_layers=num_layers),
                positions=cfg.positions,
                attend=attend,
                cross_attention=cross_attention,
                rngs=rngs,
            )

        self.encoder = stack(cfg.encoder_layers, cross_attention=False)
        self.decoder = stack(cfg.transformer.num_layers, cross_attention=True)
        self.head = (
            None
            if cfg.tied
            else Linear(e, cfg.vocab_size, axes=("embed", "vocab"), use_bias=False, rngs=rngs)
        )

    def __call__(
        self, source: Source, target: Int[Array, "b t"], *, key: PRNGKeyArray | None = None
    ) -> Float32[Array, "b t v"]:
        """Logits of the token that follows each target token.

        Args:
            source: what is read.
            target: begins with the token that begins every target; padding on the right may be any.
            key: random key for dropout; None in evaluation.
        """
        encoder_key, decoder_key, embedding_key = split_key(key, 3)
        context = self.encode(source, key=encoder_key)
        x = self.positions(self.embedding(target))
        with jax.named_scope("decoder"):
            states = self.decoder(
                dropout(x, self.cfg.transformer.dropout_rate, embedding_key),
                context,
                mask=Mask(causal=True),
                context_mask=Mask(key_lengths=source.lengths),
                key=decoder_key,
            )
        return self.logits(states)

    def encode(self, source: Source, *, key: PRNGKeyArray | None = None) -> Float[Array, "b s e"]:
        """States of the source's tokens; those of padding mean nothing."""
        table = self.embedding if self.source_embedding is None else self.source_embedding
        embedding_key, key = split_key(key, 2)
        x = self.positions(table(source.tokens))
        x = dropout(x, self.cfg.transformer.dropout_rate, embedding_key)
        with jax.named_scope("encoder"):
            return self.encoder(x, mask=Mask(key_lengths=source.lengths), key=key)

    def logits(self, states: Float[Array, "... e"]) -> Float32[Array, "... v"]:
        """Logits of all target tokens for each state."""
        if self.head is None:
            return self.embedding.logits(states)
        return project(states, self.head.kernel[...])

    def empty_cache(
        self, batch_size: int, capacity: int, context: Source | None = None
    ) -> BlockCache:
        """A cache that has read the source and has room for `capacity` target tokens.

        Raises:
            ValueError: without a source, or if `capacity` is above the model's `max_positions`.
        """
        if context is None or context.tokens.shape[0] != batch_size:
            raise ValueError(f"context must be a Source of {batch_size} rows, is {context}")
        if capacity > self.cfg.max_positions:
            raise ValueError(
                f"capacity={capacity} must be at most max_positions={self.cfg.max_positions}"
            )
        states = self.encode(context)
        with jax.named_scope("decoder"):
            cache = self.decoder.empty_cache(batch_size, capacity, states)
        if cache.context is None:
            raise ValueError("the decoder has no cross-attention")
        known = jnp.broadcast_to(context.lengths, cache.context.lengths.shape)
        return cache._replace(context=cache.context._replace(lengths=known))

    def decode(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, "b"], cache: BlockCache
    ) -> tuple[Float[Array, "b t e"], BlockCache]:
        """Read more target tokens: states after each of them, for `logits`, and the cache.

        Args:
            tokens: those that follow what the cache holds, padded on the right.
            lengths: how many of them are no padding.
            cache: of `empty_cache` or of an earlier call.
        """
        if cache.context is None:
            raise ValueError("the cache has no source: make it by empty_cache")
        indices = cache.tokens.lengths[0][:, None] + jnp.arange(tokens.shape[1])[None]
        x = self.positions(self.embedding(tokens), indices)
        with jax.named_scope("decoder"):
            return self.decoder.decode(
                x,
                cache,
                mask=Mask(causal=True, query_lengths=lengths),
                context_mask=Mask(key_lengths=cache.context.lengths[0]),
            )

    def choose_rows(self, cache: BlockCache, rows: Int[Array, "n"]) -> BlockCache:
        """The cache of rows that go on from chosen ones; those of one source lie together."""
        return cache.choose_rows(rows)


def sequence_pair_loss(
    model: EncoderDecoderTransformer, batch: SequencePairBatch, key: PRNGKeyArray | None = None
) -> NextTokenTerms:
    """Cross-entropy of every target token after the first, given source and those before it.

    Args:
        model: gives the logits.
        batch: pairs of source and target.
        key: random key for dropout; None in evaluation.
    """
    source = Source(batch.source, batch.source_lengths)
    logits = model(source, batch.target[:, :-1], key=key)
    place = jnp.arange(1, batch.target.shape[1])[None]
    weights = (place < batch.target_lengths[:, None]).astype(jnp.float32)
    return token_terms(logits, batch.target[:, 1:], weights)
