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

_NO_POSITIONS = NoPositions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of an ingredient generator.

    Attributes:
        embedding: how foods become vectors; its width is the transformer's.
        transformer: the stack that reads the chosen foods.
        positions: none by default: a recipe is a set.
        max_foods: most foods that a recipe may hold.
    """

    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig
    positions: NoPositions = _NO_POSITIONS
    max_foods: int = 25

    def __post_init__(self) -> None:
        if self.embedding.embed_dim != self.transformer.embed_dim:
            raise ValueError(
                f"embedding.embed_dim={self.embedding.embed_dim} must equal "
                f"transformer.embed_dim={self.transformer.embed_dim}"
            )
        if self.max_foods < 1:
            raise ValueError(f"max_foods={self.max_foods} must be at least 1")


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
        self.embedding = FoodEmbedding(cfg.embedding, rngs=rngs)
        self.start = parameter(rngs.params(), (e,), ("embed",), normal(1.0))
        self.end = parameter(rngs.params(), (e,), ("embed",), normal(1.0))
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
        x = gather_foods(table, self.end.get_value(), foods)
        start = jnp.broadcast_to(self.start.get_value(), (foods.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([start, x], axis=1)
        return self.logits(table, self.stack(x, mask=Mask(causal=True), key=key))

    def logits(
        self, table: Float[Array, "v e"], states: Float[Array, "b t e"]
    ) -> Float32[Array, "b t v_plus_one"]:
        """Compare states with the vectors of all foods and of the end."""
        targets = jnp.concatenate([table, self.end.get_value()[None]])
        queries = states @ self.output.get_value()
        logits = jnp.einsum("bte,ve->btv", queries, targets, preferred_element_type=jnp.float32)
        logits = logits * targets.shape[-1] ** -0.5
        return (
            logits + self.bias.get_value()[None, None]
            if "learned" in self.cfg.embedding.sources
            else logits
        )

    def empty_cache(self, batch_size: int) -> BlockCache:
        """A cache that has room for the start and `max_foods` foods."""
        return self.stack.empty_cache(batch_size, self.cfg.max_foods + 1)

    def decode(
        self,
        table: Float[Array, "v e"],
        foods: Int[Array, "b t"],
        lengths: Int[Array, "b"],
        cache: BlockCache,
    ) -> tuple[Float32[Array, "b t v_plus_one"], BlockCache]:
        """Read more foods and give the logits after each of them.

        Args:
            table: `self.embedding(molecules)`, computed once for a whole decoding loop.
            foods: the next foods of every row; -1 is the start, index `v` padding.
            lengths: how many of them are no padding.
            cache: of what was read before.
        """
        rows = jnp.concatenate([table, self.end.get_value()[None], self.start.get_value()[None]])
        mask = Mask(causal=True, query_lengths=lengths)
        states, cache = self.stack.decode(rows[foods], cache, mask=mask)
        return self.logits(table, states), cache


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
    """Which foods each prefix of a sequence already holds; never the end."""
    vocabulary = jnp.arange(num_foods + 1)[None, None]
    hot = ((foods[..., None] == vocabulary) & (vocabulary < num_foods)).astype(jnp.int8)
    counts = jnp.cumsum(hot, axis=1, dtype=jnp.int8)
    return jnp.pad(counts, ((0, 0), (1, 0), (0, 0))) > 0


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
