"""Causal language models of the Llama family: one module for Llama, SmolLM2 and Qwen.

What distinguishes the families are values of the configuration: grouped-query heads, biases of the
query, key and value projections (Qwen2), normalized query and key heads (Qwen3), rotary scaling
(Llama 3.1) and tied embeddings.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray, Shaped

from recipe_jax.batches import TokenBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.embeddings import TokenEmbedding
from recipe_jax.layers.feed_forward import Linear
from recipe_jax.layers.initializers import normal
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import NoPositions, Rope
from recipe_jax.layers.products import project
from recipe_jax.layers.transformer import BlockCache, Remat, Stack, TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLanguageModelConfig:
    """Shape of a causal language model.

    Attributes:
        vocab_size: number of tokens.
        transformer: shape of the decoder.
        positions: rotary, or any other value of `recipe_jax.layers.positions` that needs no table.
        max_positions: tokens the model was made for; decoding refuses more.
        tied: whether the output layer is the embedding table (Press and Wolf 2017,
            arXiv:1608.05859).
    """

    vocab_size: int
    transformer: TransformerConfig
    positions: NoPositions = Rope()  # noqa: RUF009, a frozen value
    max_positions: int = 2048
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.positions.num_embeddings:
            raise ValueError(
                f"positions={self.positions} need a learned table, which this model has not"
            )


class CausalLanguageModel(nnx.Module):
    """Logits of the next token after every token.

    Parameters are float32; with `dtype="bfloat16"` activations and matrix products are bfloat16,
    their sums, norms, softmax and logits float32.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        remat: what the backward pass computes again instead of keeping it.
        unroll: blocks that are traced per step of the scan.
        dtype: of activations.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: CausalLanguageModelConfig,
        *,
        attend: Attend = dot_product_attention,
        remat: Remat = "none",
        unroll: int = 1,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.cfg, self.dtype = cfg, dtype
        e = cfg.transformer.embed_dim
        self.embedding = TokenEmbedding(cfg.vocab_size, e, initializer=normal(0.02), rngs=rngs)
        self.stack = Stack(
            cfg.transformer,
            positions=cfg.positions,
            attend=attend,
            remat=remat,
            unroll=unroll,
            rngs=rngs,
        )
        self.head = (
            None
            if cfg.tied
            else Linear(e, cfg.vocab_size, axes=("embed", "vocab"), use_bias=False, rngs=rngs)
        )

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        segments: Int[Array, "b t"] | None = None,
        indices: Int[Array, "#b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, "b t v"]:
        """Logits of the token that follows each of these, given those up to it.

        Args:
            tokens: padding may hold any token, as long as no real token follows it.
            segments: packed sequences do not see each other; all is one sequence if None.
            indices: positions, counted within each sequence; `0 … t - 1` if None.
            key: random key for dropout; None in evaluation.
        """
        return self.logits(self.states(tokens, segments=segments, indices=indices, key=key))

    def states(
        self,
        tokens: Int[Array, "b t"],
        *,
        segments: Int[Array, "b t"] | None = None,
        indices: Int[Array, "#b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t e"]:
        """What the output layer reads; arguments as for `__call__`."""
        x, mask = self._embed(tokens, indices), _causal(segments)
        return self.stack(x, mask=mask, key=key, indices=indices)

    def weights(
        self,
        tokens: Int[Array, "b t"],
        *,
        segments: Int[Array, "b t"] | None = None,
        indices: Int[Array, "#b t"] | None = None,
    ) -> Float32[Array, "layers b h t t"]:
        """Attention of every layer and head, query by key; arguments as for `__call__`.

        `recipe_jax.transformer_plots.attention_grid(weights[:, row])` draws those of one row.
        """
        x, mask = self._embed(tokens, indices), _causal(segments)
        return self.stack.weights(x, mask=mask, indices=indices)

    def logits(self, states: Float[Array, "... e"]) -> Float32[Array, "... v"]:
        """Logits of all tokens for each state."""
        if self.head is None:
            return self.embedding.logits(states)
        return project(states, self.head.kernel[...])

    def empty_cache(self, batch_size: int, capacity: int, context: None = None) -> BlockCache:
        """A cache that holds no token yet and has room for `capacity`; there is no context.

        Raises:
            ValueError: if `capacity` is above the model's `max_positions`.
        """
        del context
        if capacity > self.cfg.max_positions:
            raise ValueError(
                f"capacity={capacity} must be at most max_positions={self.cfg.max_positions}"
            )
        return self.stack.empty_cache(batch_size, capacity, dtype=jnp.dtype(self.dtype))

    def decode(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, "b"], cache: BlockCache
    ) -> tuple[Float[Array, "b t e"], BlockCache]:
        """Read more tokens of every row; states after each of them, for `logits`, and the cache.

        Args:
            tokens: those that follow what the cache holds, padded on the right.
            lengths: how many of them are no padding.
            cache: of what was read before; the caller sees to it that there is room.
        """
        read = cache.tokens.lengths[0]
        indices = read[:, None] + jnp.arange(tokens.shape[1])[None]
        mask = Mask(causal=True, query_lengths=lengths)
        return self.stack.decode(self._embed(tokens, indices), cache, mask=mask)

    def choose_rows(self, cache: BlockCache, rows: Int[Array, "n"]) -> BlockCache:
        """The cache of rows that go on from chosen ones."""
        return cache.choose_rows(rows)

    def _embed(
        self, tokens: Int[Array, "b t"], indices: Int[Array, "#b t"] | None
    ) -> Float[Array, "b t e"]:
        x = self.embedding(tokens).astype(self.dtype)
        places = jnp.arange(tokens.shape[1])[None] if indices is None else indices
        return self.cfg.positions.encode(x, places)


class NextTokenTerms(NamedTuple):
    """Per-example loss terms; divide sums by `tokens` for nats per token.

    Attributes:
        nats: cross-entropy summed over the tokens that count.
        tokens: how many count; with fractional weights, their sum.
        correct: how many of them were the most probable ones.
    """

    nats: Float32[Array, "b"]
    tokens: Float32[Array, "b"]
    correct: Float32[Array, "b"]


def next_token_loss(
    model: CausalLanguageModel,
    batch: TokenBatch,
    key: PRNGKeyArray | None = None,
    *,
    chunk_tokens: int = 32,
) -> NextTokenTerms:
    """Cross-entropy of every token, given those before it in its segment (Radford et al. 2018).

    Logits are made for a few tokens of each row at a time and made again in the backward pass, so
    that no array of `b t v` ever exists: with a large vocabulary it would be most of the memory.

    Args:
        model: gives states and logits.
        batch: whose `weights` say which tokens count.
        key: random key for dropout; None in evaluation.
        chunk_tokens: tokens of each row whose logits exist at a time.
    """
    states = model.states(batch.tokens, segments=batch.segments, indices=batch.positions, key=key)
    # The last token predicts nothing: its target is the first one, at no weight.
    targets = jnp.roll(batch.tokens, -1, axis=1)
    weights = jnp.roll(batch.weights, -1, axis=1).at[:, -1].set(0.0)

    @jax.checkpoint
    def of_chunk(carry: None, chunk: tuple[Array, Array, Array]) -> tuple[None, NextTokenTerms]:
        states, targets, weights = chunk
        return carry, token_terms(model.logits(states), targets, weights)

    chunks = tuple(_chunked(x, chunk_tokens) for x in (states, targets, weights))
    _, terms = jax.lax.scan(of_chunk, None, chunks)
    return jax.tree.map(lambda term: term.sum(axis=0), terms)


def token_terms(
    logits: Float32[Array, "b t v"], targets: Int[Array, "b t"], weights: Float[Array, "b t"]
) -> NextTokenTerms:
    """Weighted cross-entropy of targets, summed over each row; padding may hold NaN.

    Args:
        logits: of all tokens.
        targets: the right ones.
        weights: what each counts; nothing at 0.
    """
    # A comparison, where a gather would need a scatter in the backward pass.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
    picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    counts = weights > 0
    nats = jnp.where(counts, weights * (jax.nn.logsumexp(logits, axis=-1) - picked), 0.0)
    correct = jnp.where(counts & (picked >= jnp.max(logits, axis=-1)), weights, 0.0)
    return NextTokenTerms(nats.sum(axis=1), weights.sum(axis=1), correct.sum(axis=1))


def _causal(segments: Int[Array, "b t"] | None) -> Mask:
    return Mask(causal=True, query_segments=segments, key_segments=segments)


def _chunked(x: Shaped[Array, "b t ..."], size: int) -> Shaped[Array, "chunks b {size} ..."]:
    """Columns in groups, the last filled up with zeros, the groups first."""
    b, t = x.shape[:2]
    x = jnp.pad(x, [(0, 0), (0, -t % size)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(b, -1, size, *x.shape[2:]).swapaxes(0, 1)
