"""Self-attentive sequential recommendation: the next item of a history by a causal transformer.

Kang & McAuley 2018, arXiv:1808.09781 (SASRec), trained with the cross-entropy over all items, which
makes it the stronger model (Klenitskiy & Vasilev 2023, arXiv:2309.07602).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import NextItemBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.dropout import dropout, split_key
from recipe_jax.layers.embeddings import PositionEmbedding, TokenEmbedding
from recipe_jax.layers.initializers import normal
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.positions import Learned, NoPositions
from recipe_jax.layers.products import project
from recipe_jax.layers.transformer import Stack, TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SasrecConfig:
    """Shape of a sequential recommender.

    Attributes:
        num_items: of the catalogue.
        transformer: shape of the decoder; its `dropout_rate` is that of the embeddings, too.
        positions: place of an item in its history, counted from the oldest that is read; learned
            as in the paper, or any other value of `recipe_jax.layers.positions`.
        max_items: longest history that is read; of a longer one, the latest items.
        temperature: with a number, states and item vectors are scaled to length 1 before their
            product and divided by it (Gupta et al. 2019, arXiv:1909.04276: popular items no longer
            win by the length of their vectors); None is the paper's plain product.
    """

    num_items: int
    transformer: TransformerConfig
    positions: NoPositions = Learned(50)  # noqa: RUF009, a frozen value
    max_items: int = 50
    temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_items", "max_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if isinstance(self.positions, Learned) and self.positions.max_positions < self.max_items:
            raise ValueError(f"positions={self.positions} must cover max_items={self.max_items}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0, or None")


class Sasrec(nnx.Module):
    """Scores of every item as the next one, after each item of a history.

    One table serves as input and output.  Beside the paper: blocks of this library (normalization
    before each sublayer, GELU, feed-forward layers four times as wide), positions counted from the
    oldest item read, and no separate padding vector.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: SasrecConfig,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        e = cfg.transformer.embed_dim
        self.embedding = TokenEmbedding(
            cfg.num_items, e, scale=e**0.5, initializer=normal(0.02), rngs=rngs
        )
        self.positions = PositionEmbedding(cfg.positions, e, rngs=rngs)
        self.stack = Stack(cfg.transformer, positions=cfg.positions, attend=attend, rngs=rngs)

    def __call__(
        self,
        items: Int[Array, "b t"],
        *,
        segments: Int[Array, "b t"] | None = None,
        indices: Int[Array, "#b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, "b t n"]:
        """Scores of what follows each of these items, given those up to it.

        Args:
            items: padding may hold any item, as long as no real item follows it.
            segments: packed histories do not see each other; all is one history if None.
            indices: positions, counted within each history; `0 … t - 1` if None.
            key: random key for dropout; None in evaluation.
        """
        return self.scores(self.states(items, segments=segments, indices=indices, key=key))

    def states(
        self,
        items: Int[Array, "b t"],
        *,
        segments: Int[Array, "b t"] | None = None,
        indices: Int[Array, "#b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t e"]:
        """What the items' vectors are multiplied with; arguments as for `__call__`."""
        keys = split_key(key, 2)
        x = self.positions(self.embedding(items), indices)
        x = dropout(x, self.cfg.transformer.dropout_rate, keys[0])
        mask = Mask(causal=True, query_segments=segments, key_segments=segments)
        x = self.stack(x, mask=mask, key=keys[1], indices=indices)
        if self.cfg.temperature is None:
            return x
        return unit_vectors(x) / self.cfg.temperature

    def item_vectors(self) -> Float32[Array, "n e"]:
        """The vector of each item, whose product with a state is its score."""
        table = self.embedding.table[...]
        return table if self.cfg.temperature is None else unit_vectors(table)

    def scores(self, states: Float[Array, "... e"]) -> Float32[Array, "... n"]:
        """Scores of all items for each state: logits of a softmax over them."""
        return project(states, self.item_vectors().T)


class NextItemTerms(NamedTuple):
    """Loss terms of each row; divide sums by `items` for nats per item.

    Attributes:
        nats: cross-entropy summed over the targets.
        items: how many targets there are.
    """

    nats: Float32[Array, "b"]
    items: Float32[Array, "b"]


def next_item_loss(
    model: Sasrec,
    batch: NextItemBatch,
    key: PRNGKeyArray | None = None,
    *,
    positions_at_once: int = 64,
) -> NextItemTerms:
    """Cross-entropy of every next item over the whole catalogue (arXiv:2309.07602).

    Logits are made for a few positions at a time and made again in the backward pass: no array of
    `b t n` exists, and what exists at a time may fit a processor's cache.

    Args:
        model: gives states and item vectors.
        batch: rows of packed histories.
        key: random key for dropout; None in evaluation.
        positions_at_once: whose logits exist at a time, at least one of each row.
    """
    states = model.states(batch.items, segments=batch.segments, indices=batch.positions, key=key)
    vectors = model.item_vectors()

    @jax.checkpoint
    def nats_of(column: tuple[Array, Array]) -> Float32[Array, "b"]:
        states, targets = column
        own = jnp.sum(states * vectors[targets], axis=-1)
        return jax.nn.logsumexp(project(states, vectors.T), axis=-1) - own

    b = batch.items.shape[0]
    columns = (jnp.swapaxes(states, 0, 1), jnp.swapaxes(batch.targets, 0, 1))
    nats = jax.lax.map(nats_of, columns, batch_size=max(1, positions_at_once // b)).T
    counts = batch.segments > 0
    return NextItemTerms(
        jnp.where(counts, nats, 0.0).sum(axis=1), counts.sum(axis=1, dtype=nats.dtype)
    )


def unit_vectors(x: Float[Array, "... e"]) -> Float[Array, "... e"]:
    """Vectors of Euclidean length 1; a vector of zeros stays one."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(x.dtype).tiny))
