"""Ingredient sets, one food at a time: a decoder-only transformer without positions.

A recipe of `n` foods is read in a random order, new in every epoch.  After the first `j` foods
the model predicts what else the recipe holds: any of the `n - j` foods that remain, or the end when
none does.  Foods already chosen have probability zero, in training as in generation, so that no
food can come twice.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.initializers import lecun_normal, normal, zeros
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.positions import NoPositions
from recipe_jax.layers.transformer import BlockCache, Stack, TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbedding, FoodEmbeddingConfig, gather_foods
from recipe_jax.models.pair_memory import FoodEmbeddingWithPairs, pair_logits

_NO_POSITIONS = NoPositions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of an ingredient generator.

    Attributes:
        embedding: how foods become vectors; its width is the transformer's.
        transformer: the stack that reads the chosen foods.
        positions: none by default: a recipe is a set.  The start is at 0.
        pairs: whether logits also add up what each pair of foods is remembered by; see
            `pair_memory`.
        max_foods: most foods that a recipe may hold.
    """

    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig
    positions: NoPositions = _NO_POSITIONS
    pairs: bool = False
    max_foods: int = 25

    def __post_init__(self) -> None:
        if self.pairs and "learned" not in self.embedding.sources:
            raise ValueError(f"pairs=True needs 'learned' in sources={self.embedding.sources}")
        if self.embedding.embed_dim != self.transformer.embed_dim:
            raise ValueError(
                f"embedding.embed_dim={self.embedding.embed_dim} must equal "
                f"transformer.embed_dim={self.transformer.embed_dim}"
            )
        if self.max_foods < 1:
            raise ValueError(f"max_foods={self.max_foods} must be at least 1")
        rows = self.positions.num_embeddings
        if 0 < rows <= self.max_foods:
            raise ValueError(
                f"positions={self.positions} must have max_foods + 1 = {self.max_foods + 1} rows: "
                "one for the start"
            )


class GeneratorCache(NamedTuple):
    """What a generator keeps while decoding.

    Attributes:
        blocks: of the stack.
        pairs: what the foods read so far add to the logits; the first axis has one entry, since
            decoding loops take caches of `layers b …`.
    """

    blocks: BlockCache
    pairs: Float32[Array, "1 b v_plus_one"] | None


class IngredientGenerator(nnx.Module):
    """Logits of the next food after every prefix of a sequence of foods.

    The output layer compares the transformer's state with the food vectors themselves, so that a
    food's molecules matter where it is chosen as much as where it is read.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: GeneratorConfig,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        e = cfg.transformer.embed_dim
        make_embedding = FoodEmbeddingWithPairs if cfg.pairs else FoodEmbedding
        self.embedding = make_embedding(cfg.embedding, rngs=rngs)
        self.start = parameter(rngs.params(), (e,), ("embed",), normal(1.0))
        self.end = parameter(rngs.params(), (e,), ("embed",), normal(1.0))
        rows = cfg.positions.num_embeddings
        self.position_table = (
            parameter(rngs.params(), (rows, e), (None, "embed"), normal(1.0)) if rows else None
        )
        self.stack = Stack(
            cfg.transformer,
            positions=cfg.positions,
            attend=attend,
            unroll=cfg.transformer.num_layers,
            rngs=rngs,
        )
        self.output = parameter(rngs.params(), (e, e), ("embed", None), lecun_normal("e -> f"))
        if "learned" in cfg.embedding.sources:
            self.bias = parameter(rngs.params(), (cfg.embedding.num_foods + 1,), ("vocab",), zeros)

    def __call__(
        self, molecules: Molecules, foods: Int[Array, "b m"], *, key: jax.Array | None = None
    ) -> Float32[Array, "b prefixes v_plus_one"]:
        """Logits after 0, 1, … `m` foods; the last entry is the end.

        Args:
            molecules: of the `v` foods.
            foods: in the order in which they are read; index `v` is padding, which no real prefix
                sees.
            key: random key for dropout; None in evaluation.
        """
        table = self.embedding(molecules)
        states = self.stack(self.embed(table, foods), mask=Mask(causal=True), key=key)
        logits = self.logits(table, states)
        if not self.cfg.pairs:
            return logits
        start = jnp.full_like(foods[:, :1], -1)
        read = jnp.concatenate([start, foods], axis=1)
        return logits + pair_logits(table, read, before=jnp.zeros_like(logits[:, 0]))

    def embed(
        self, table: Float[Array, "v w"], foods: Int[Array, "b m"]
    ) -> Float[Array, "b m_plus_one e"]:
        """What the stack reads: the start, then the foods' vectors, with their positions."""
        x = gather_foods(self._vectors(table), self.end.get_value(), foods)
        start = jnp.broadcast_to(self.start.get_value(), (foods.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([start, x], axis=1)
        return self._with_positions(x, jnp.arange(x.shape[1])[None])

    def logits(
        self, table: Float[Array, "v w"], states: Float[Array, "b t e"]
    ) -> Float32[Array, "b t v_plus_one"]:
        """Compare states with the vectors of all foods and of the end."""
        targets = jnp.concatenate([self._vectors(table), self.end.get_value()[None]])
        queries = states @ self.output.get_value()
        logits = jnp.einsum("bte,ve->btv", queries, targets, preferred_element_type=jnp.float32)
        logits = logits * targets.shape[-1] ** -0.5
        return (
            logits + self.bias.get_value()[None, None]
            if "learned" in self.cfg.embedding.sources
            else logits
        )

    def empty_cache(self, batch_size: int) -> GeneratorCache:
        """A cache that has room for the start and `max_foods` foods."""
        tokens = self.stack.empty_cache(batch_size, self.cfg.max_foods + 1)
        v = self.cfg.embedding.num_foods
        return GeneratorCache(tokens, jnp.zeros((1, batch_size, v + 1)) if self.cfg.pairs else None)

    def decode(
        self,
        table: Float[Array, "v w"],
        foods: Int[Array, "b t"],
        lengths: Int[Array, "b"],
        cache: GeneratorCache,
    ) -> tuple[Float32[Array, "b t v_plus_one"], GeneratorCache]:
        """Read more foods and give the logits after each of them.

        Args:
            table: `self.embedding(molecules)`, computed once for a whole decoding loop.
            foods: the next foods of every row; -1 is the start, index `v` padding.
            lengths: how many of them are no padding.
            cache: of what was read before.
        """
        ends = jnp.stack([self.end.get_value(), self.start.get_value()])
        rows = jnp.concatenate([self._vectors(table), ends])
        mask = Mask(causal=True, query_lengths=lengths)
        indices = cache.blocks.tokens.lengths[0][:, None] + jnp.arange(foods.shape[1])[None]
        x = self._with_positions(rows[foods], indices)
        states, blocks = self.stack.decode(x, cache.blocks, mask=mask)
        logits, pairs = self.logits(table, states), cache.pairs
        if pairs is not None:
            added = pair_logits(table, foods, lengths, before=pairs[0])
            logits, pairs = logits + added, added[None, :, -1]
        return logits, GeneratorCache(blocks, pairs)

    def _vectors(self, table: Float[Array, "v w"]) -> Float[Array, "v e"]:
        return table[:, : self.cfg.embedding.embed_dim]

    def _with_positions(
        self, x: Float[Array, "b t e"], indices: Int[Array, "#b t"]
    ) -> Float[Array, "b t e"]:
        table = None if self.position_table is None else self.position_table.get_value()
        return self.cfg.positions.encode(x, indices, table)


class GeneratorTerms(NamedTuple):
    """Per-recipe loss terms in nats; divide sums by `choices` for nats per choice.

    Attributes:
        total: summed over the recipe's choices.
        choices: foods of the recipe plus one for its end.
        end: the part of `total` that the end costs.
    """

    total: Float32[Array, "b"]
    choices: Float32[Array, "b"]
    end: Float32[Array, "b"]


def chosen_before(foods: Int[Array, "b m"], num_foods: int) -> Bool[Array, "b prefixes v_plus_one"]:
    """Which foods each prefix of a sequence already holds; never the end.

    A prefix holds the foods whose turn was before its end: comparing turns costs nothing beside the
    logits, where counting would build three arrays of their size.
    """
    b, m = foods.shape
    turns = (
        jnp.full((b, num_foods + 1), m).at[jnp.arange(b)[:, None], foods].set(jnp.arange(m)[None])
    )
    turns = turns.at[:, num_foods].set(m)  # padding, and the end, are never chosen
    return turns[:, None] < jnp.arange(m + 1)[None, :, None]


def remaining_set_loss(
    logits: Float[Array, "b prefixes v_plus_one"], batch: RecipeBatch
) -> GeneratorTerms:
    """Cross-entropy with the whole remaining set, each of its foods alike.

    After `j` foods the target is uniform over the `n - j` that remain: the expectation of the
    next-food loss over all orders that share this prefix, so it has the same minimum at a lower
    variance (the order-agnostic objective of Uria et al. 2014, arXiv:1310.1757, eq. 8).
    """
    num_foods = logits.shape[-1] - 1
    chosen = chosen_before(batch.foods, num_foods)
    members = chosen[:, -1:]
    remaining = (members & ~chosen).astype(jnp.float32)
    return _cross_entropy(logits, chosen, remaining, batch.lengths)


def next_food_loss(
    logits: Float[Array, "b prefixes v_plus_one"], batch: RecipeBatch
) -> GeneratorTerms:
    """Cross-entropy with the next food of this one order: the plain autoregressive loss."""
    num_foods = logits.shape[-1] - 1
    hot = (batch.foods[..., None] == jnp.arange(num_foods + 1)[None, None]).astype(jnp.float32)
    following = jnp.pad(hot, ((0, 0), (0, 1), (0, 0)))
    return _cross_entropy(logits, chosen_before(batch.foods, num_foods), following, batch.lengths)


def _cross_entropy(
    logits: Float[Array, "b prefixes v_plus_one"],
    chosen: Bool[Array, "b prefixes v_plus_one"],
    targets: Float[Array, "b prefixes v_plus_one"],
    lengths: Int[Array, "b"],
) -> GeneratorTerms:
    """Cross-entropy over real prefixes only; the target of the whole recipe is the end."""
    prefix = jnp.arange(logits.shape[1])[None]
    is_end = (prefix == lengths[:, None]).astype(jnp.float32)
    targets = targets.at[..., -1].set(is_end)
    targets /= jnp.maximum(targets.sum(axis=-1, keepdims=True), 1.0)
    allowed = jnp.where(chosen, jnp.finfo(jnp.float32).min, logits.astype(jnp.float32))
    picked = jnp.sum(targets * jnp.where(targets > 0, allowed, 0.0), axis=-1)
    nats = jax.nn.logsumexp(allowed, axis=-1) - picked
    nats = jnp.where(prefix <= lengths[:, None], nats, 0.0)
    return GeneratorTerms(
        total=nats.sum(axis=-1),
        choices=lengths.astype(jnp.float32) + 1.0,
        end=jnp.sum(nats * is_end, axis=-1),
    )
