"""Recipes in one piece: a food, its grams, the next food, its grams, and at some point the end.

A decoder without positions reads pairs of food and grams in a random order, new in every epoch.
After `j` pairs it predicts what else the recipe holds, as `IngredientGenerator` does, and, once the
next food is given, a histogram of that food's grams.  Where amounts are unknown the pair carries a
learned vector for "unknown" and only foods are predicted, so that every recipe teaches the foods.
With all amounts unknown the model is a `SetDecoder`, to be completed and decoded like any other.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.dropout import check_rate, split_key
from recipe_jax.layers.initializers import lecun_normal, normal
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.transformer import BlockCache, TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbeddingConfig, gather_foods
from recipe_jax.models.gram_bins import GramBins, GramEmbedding, GramHead, gram_log_density
from recipe_jax.models.ingredient_generator import (
    GeneratorConfig,
    IngredientGenerator,
    remaining_set_loss,
)
from recipe_jax.models.simplex import member_mask

_BINS = GramBins()


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointRecipesConfig:
    """Shape of a joint model of foods and amounts.

    Attributes:
        embedding: how foods become vectors; its width is the transformer's.
        transformer: the stack that reads pairs.
        bins: of the histogram of grams.
        hidden_rate: how often, in training, a weighed recipe is read as if its amounts were
            unknown; a model that never saw that could not complete a pantry without amounts.
        max_foods: most foods that a recipe may hold.
    """

    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig
    bins: GramBins = _BINS
    hidden_rate: float = 0.25
    max_foods: int = 25

    def __post_init__(self) -> None:
        check_rate(self.hidden_rate, "hidden_rate")
        _ = self.generator  # which checks the rest

    @property
    def generator(self) -> GeneratorConfig:
        """Shape of the part that predicts foods."""
        return GeneratorConfig(
            embedding=self.embedding,
            transformer=self.transformer,
            max_foods=self.max_foods,
        )


class JointLogits(NamedTuple):
    """Predictions after every prefix of a sequence of pairs.

    Attributes:
        foods: of the next food, after 0, 1, … `m` pairs; the last entry is the end.
        grams: of the bins of each food's grams, given that food and the pairs before it.
    """

    foods: Float32[Array, "b prefixes v_plus_one"]
    grams: Float32[Array, "b m bins"]


class JointRecipes(nnx.Module):
    """Logits of the next food and of its grams.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self, cfg: JointRecipesConfig, *, attend: Attend = dot_product_attention, rngs: nnx.Rngs
    ):
        self.cfg = cfg
        e = cfg.transformer.embed_dim
        self.generator = IngredientGenerator(cfg.generator, attend=attend, rngs=rngs)
        self.amounts = GramEmbedding(cfg.bins, e, rngs=rngs)
        self.unknown = parameter(rngs.params(), (e,), ("embed",), normal(1.0))
        self.mix = parameter(rngs.params(), (2 * e, e), ("embed", None), lecun_normal("e -> f"))
        learned = "learned" in cfg.embedding.sources
        self.head = GramHead(cfg.bins, e, cfg.embedding.num_foods if learned else None, rngs=rngs)

    def __call__(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        grams: Float[Array, "b m"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> JointLogits:
        """Predictions from the true pairs before each: teacher forcing.

        Args:
            molecules: of the `v` foods.
            foods: in the order in which they are read; index `v` is padding, which no real prefix
                sees.
            grams: of the foods; zero where unknown.
            key: random key for dropout and for hiding amounts; None in evaluation.
        """
        hide_key, key = split_key(key, 2)
        if hide_key is not None:
            shown = jax.random.bernoulli(hide_key, 1.0 - self.cfg.hidden_rate, (foods.shape[0], 1))
            grams = jnp.where(shown, grams, 0.0)
        table = self.embedding(molecules)
        start = jnp.broadcast_to(
            self.generator.start.get_value(), (foods.shape[0], 1, table.shape[1])
        )
        x = jnp.concatenate([start, self._pairs(table, foods, grams)], axis=1)
        states = self.generator.stack(x, mask=Mask(causal=True), key=key)
        return JointLogits(
            foods=self.generator.logits(table, states),
            grams=self.gram_logits(table, states[:, :-1], foods),
        )

    def food_logits(
        self, molecules: Molecules, foods: Int[Array, "b m"]
    ) -> Float32[Array, "b prefixes v_plus_one"]:
        """Logits of the next food where no amount is known, as `IngredientGenerator` gives them."""
        return self(molecules, foods, jnp.zeros(foods.shape)).foods

    def embedding(self, molecules: Molecules) -> Float[Array, "v e"]:
        """The vectors of all foods, computed once for a whole decoding loop."""
        return self.generator.embedding(molecules)

    def empty_cache(self, batch_size: int) -> BlockCache:
        """A cache that has room for the start and `max_foods` pairs."""
        return self.generator.stack.empty_cache(batch_size, self.cfg.max_foods + 1)

    def decode(
        self,
        table: Float[Array, "v e"],
        foods: Int[Array, "b t"],
        lengths: Int[Array, "b"],
        cache: BlockCache,
    ) -> tuple[Float32[Array, "b t v_plus_one"], BlockCache]:
        """Read more foods of unknown amounts and give the logits of the next food after each.

        Args:
            table: vectors of all foods.
            foods: the next foods of every row; -1 is the start, index `v` padding.
            lengths: how many of them are no padding.
            cache: of what was read before.
        """
        pairs = self._pairs(table, foods, jnp.zeros(foods.shape))
        start = self.generator.start.get_value()[None, None]
        x = jnp.where((foods < 0)[..., None], start, pairs)
        mask = Mask(causal=True, query_lengths=lengths)
        states, cache = self.generator.stack.decode(x, cache, mask=mask)
        return self.generator.logits(table, states), cache

    def gram_logits(
        self, table: Float[Array, "v e"], states: Float[Array, "*n e"], foods: Int[Array, "*n"]
    ) -> Float32[Array, "*n bins"]:
        """Logits of the bins of the next food's grams.

        Args:
            table: vectors of all foods.
            states: after the pairs before it.
            foods: the next food; index `v` where there is none.
        """
        rows = jnp.concatenate([table, self.generator.end.get_value()[None]])
        mixed = jnp.concatenate([states, rows[foods]], axis=-1) @ self.mix.get_value()
        return self.head(jax.nn.gelu(mixed), foods)

    def start(
        self, table: Float[Array, "v e"], batch_size: int, capacity: int
    ) -> tuple[Float[Array, "b e"], BlockCache]:
        """The state before the first pair, and a cache with room for `capacity` pairs."""
        x = jnp.broadcast_to(self.generator.start.get_value(), (batch_size, 1, table.shape[1]))
        cache = self.generator.stack.empty_cache(batch_size, capacity + 1)
        states, cache = self.generator.stack.decode(x, cache, mask=Mask(causal=True))
        return states[:, 0], cache

    def read_pair(
        self,
        table: Float[Array, "v e"],
        foods: Int[Array, "b"],
        grams: Float[Array, "b"],
        reads: Bool[Array, "b"],
        cache: BlockCache,
    ) -> tuple[Float[Array, "b e"], BlockCache]:
        """The state after one more pair.

        Args:
            table: vectors of all foods.
            foods: one a row.
            grams: theirs; zero where unknown.
            reads: rows that read their pair; the state of others means nothing.
            cache: of what was read before.
        """
        x = self._pairs(table, foods[:, None], grams[:, None])
        mask = Mask(causal=True, query_lengths=reads.astype(jnp.int32))
        states, cache = self.generator.stack.decode(x, cache, mask=mask)
        return states[:, 0], cache

    def _pairs(
        self, table: Float[Array, "v e"], foods: Int[Array, "b m"], grams: Float[Array, "b m"]
    ) -> Float[Array, "b m e"]:
        known = (grams > 0)[..., None]
        amounts = self.amounts(jnp.where(grams > 0, grams, 1.0))
        unknown = self.unknown.get_value()[None, None]
        vectors = gather_foods(table, self.generator.end.get_value(), foods)
        return vectors + jnp.where(known, amounts, unknown)


class JointTerms(NamedTuple):
    """Per-recipe loss terms in nats, under teacher forcing; divide sums by `choices` or `weighed`.

    Attributes:
        total: of foods and amounts, summed over the recipe.
        foods: the part of `total` that foods and the end cost.
        grams: the part of `total` that amounts cost: negative log density of log grams.
        choices: foods of the recipe plus one for its end.
        weighed: members whose amount is known.
    """

    total: Float32[Array, "b"]
    foods: Float32[Array, "b"]
    grams: Float32[Array, "b"]
    choices: Float32[Array, "b"]
    weighed: Float32[Array, "b"]


def joint_loss(logits: JointLogits, batch: RecipeBatch, *, bins: GramBins) -> JointTerms:
    """Cross-entropy with the remaining set, and the likelihood of each food's grams."""
    foods = remaining_set_loss(logits.foods, batch)
    known = member_mask(batch.lengths, batch.foods.shape[1]) & (batch.grams > 0)
    densities = gram_log_density(logits.grams, jnp.where(known, batch.grams, 1.0), bins)
    grams = -jnp.sum(jnp.where(known, densities, 0.0), axis=-1)
    return JointTerms(
        total=foods.total + grams,
        foods=foods.total,
        grams=grams,
        choices=foods.choices,
        weighed=known.sum(axis=-1).astype(jnp.float32),
    )
