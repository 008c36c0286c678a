"""Ingredient sets without an order of generation: all hidden foods are predicted at once.

A bidirectional transformer without positions reads the visible foods of a recipe.  Mask tokens of
one set have one and the same state, since nothing tells them apart; one token therefore stands for
all of them and carries their number.  It gives one distribution, shared by all hidden foods; a
second token, which does not know the number, predicts it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.initializers import lecun_normal, normal, zeros
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.transformer import Stack, TransformerConfig
from recipe_jax.models.encoder_decoder_generator import compare_with_foods
from recipe_jax.models.food_embedding import FoodEmbedding, FoodEmbeddingConfig

_NEVER = jnp.finfo(jnp.float32).min


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSetConfig:
    """Shape of a masked-set generator.

    Attributes:
        embedding: how foods become vectors; its width is the transformer's.
        transformer: the stack that reads the visible foods.
        max_foods: most foods that a recipe may hold, visible and hidden.
    """

    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig
    max_foods: int = 25

    def __post_init__(self) -> None:
        if self.embedding.embed_dim != self.transformer.embed_dim:
            raise ValueError(
                f"embedding.embed_dim={self.embedding.embed_dim} must equal "
                f"transformer.embed_dim={self.transformer.embed_dim}"
            )
        if self.max_foods < 1:
            raise ValueError(f"max_foods={self.max_foods} must be at least 1")


class MaskedLogits(NamedTuple):
    """What is hidden, given what is visible.

    Attributes:
        foods: of any one hidden food; visible foods are not masked here.
        sizes: of the number of hidden foods, 0 to `max_foods`; the lowest finite number where
            visible and hidden foods together would be too many.
    """

    foods: Float32[Array, "b v"]
    sizes: Float32[Array, "b sizes"]


class MaskedSetGenerator(nnx.Module):
    """Logits of the hidden foods of a set and of their number.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self, cfg: MaskedSetConfig, *, attend: Attend = dot_product_attention, rngs: nnx.Rngs
    ):
        self.cfg = cfg
        e, v, sizes = cfg.embedding.embed_dim, cfg.embedding.num_foods, cfg.max_foods + 1
        self.embedding = FoodEmbedding(cfg.embedding, rngs=rngs)
        self.mask = parameter(rngs.params(), (sizes, e), (None, "embed"), normal(1.0))
        self.size = parameter(rngs.params(), (e,), ("embed",), normal(1.0))
        self.stack = Stack(
            cfg.transformer, attend=attend, unroll=cfg.transformer.num_layers, rngs=rngs
        )
        self.output = parameter(rngs.params(), (e, e), ("embed", None), lecun_normal("e -> f"))
        self.size_output = parameter(rngs.params(), (e, sizes), ("embed", None), zeros)
        learned = "learned" in cfg.embedding.sources
        self.bias = parameter(rngs.params(), (v,), ("vocab",), zeros) if learned else None

    def __call__(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        visible: Bool[Array, "b m"],
        hidden: Int[Array, "b"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> MaskedLogits:
        """Read the visible foods.

        Args:
            molecules: of the `v` foods.
            foods: members of each set in any order; what is not visible is never read.
            visible: which of them are.
            hidden: how many more there are; `sizes` does not depend on it.
            key: random key for dropout; None in evaluation.
        """
        return self.predict(self.embedding(molecules), foods, visible, hidden, key=key)

    def predict(
        self,
        table: Float[Array, "v e"],
        foods: Int[Array, "b m"],
        visible: Bool[Array, "b m"],
        hidden: Int[Array, "b"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> MaskedLogits:
        """`__call__` with `table`, the food vectors, computed once for several passes."""
        b, m = foods.shape
        x = table[jnp.where(visible, foods, 0)]
        size = jnp.broadcast_to(self.size.get_value(), (b, 1, x.shape[-1]))
        x = jnp.concatenate([size, self.mask.get_value()[hidden][:, None], x], axis=1)
        # Every token reads the visible foods and itself.
        readable = jnp.pad(visible, ((0, 0), (2, 0)))[:, None, None]
        states = self.stack(
            x, mask=Mask(dense=readable | jnp.eye(m + 2, dtype=bool)[None, None]), key=key
        )
        bias = None if self.bias is None else self.bias.get_value()
        logits = compare_with_foods(states[:, 1:2] @ self.output.get_value(), table, bias)
        sizes = states[:, 0] @ self.size_output.get_value()
        room = self.cfg.max_foods - visible.sum(axis=1)
        possible = jnp.arange(sizes.shape[1])[None] <= room[:, None]
        return MaskedLogits(logits[:, 0], jnp.where(possible, sizes, _NEVER))

    def completion_logits(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        lengths: Int[Array, "b"],
        *,
        missing: int = 1,
    ) -> Float32[Array, "b v"]:
        """Logits of a food that completes each set; given foods have the lowest finite number.

        Args:
            molecules: of the `v` foods.
            foods: the given foods, padded with `v`.
            lengths: how many there are.
            missing: how many foods are hidden: what a completion protocol says of its queries.
        """
        visible = jnp.arange(foods.shape[1])[None] < lengths[:, None]
        logits = self(molecules, foods, visible, jnp.full_like(lengths, missing)).foods
        return jnp.where(members_of(foods, visible, logits.shape[1]), _NEVER, logits)


class MaskedSetTerms(NamedTuple):
    """Per-recipe loss terms in nats; divide sums by `choices` for nats per choice.

    Attributes:
        total: an estimate, from one set of hidden foods, of the recipe's cost.
        choices: foods of the recipe plus one for its size.
        size: the part of `total` that the number of hidden foods costs.
    """

    total: Float32[Array, "b"]
    choices: Float32[Array, "b"]
    size: Float32[Array, "b"]


def members_of(
    foods: Int[Array, "b m"], counted: Bool[Array, "b m"], num_foods: int
) -> Bool[Array, "b v"]:
    """Which foods each row holds at places that count."""
    hot = foods[..., None] == jnp.arange(num_foods)[None, None]
    return jnp.any(hot & counted[..., None], axis=1)


def visible_counts(key: PRNGKeyArray, lengths: Int[Array, "b"]) -> Int[Array, "b"]:
    """How many foods of each recipe are visible: uniform from none to all."""
    return jax.random.randint(key, lengths.shape, 0, lengths + 1)


def masked_set_loss(
    found: MaskedLogits, batch: RecipeBatch, given: Int[Array, "b"]
) -> MaskedSetTerms:
    """Cross-entropy with all hidden foods alike, and with their number.

    With `k` of `n` foods hidden, any of them is the target with `1 / k`.  The cost of a recipe in
    a random order is the sum of this cross-entropy over `k = 1 … n` (Hoogeboom et al. 2022,
    arXiv:2110.02037, eqs. 3 to 5).  `k` is uniform from 0 to `n`, the complete recipe included, so
    that weight `n + 1` makes one draw an unbiased estimate of the sum; the number of hidden foods
    is learned at every `k` with weight 1.

    Args:
        found: what the model made of the first `given` foods, with `lengths - given` hidden.
        batch: whose recipes lie in a random order.
        given: from `visible_counts`.
    """
    v, m = found.foods.shape[1], batch.foods.shape[1]
    place = jnp.arange(m)[None]
    visible = members_of(batch.foods, place < given[:, None], v)
    hidden = members_of(batch.foods, place >= given[:, None], v).astype(jnp.float32)
    logits = jnp.where(visible, _NEVER, found.foods)
    count = hidden.sum(axis=1)
    picked = jnp.sum(hidden * jnp.where(hidden > 0, logits, 0.0), axis=1) / jnp.maximum(count, 1.0)
    foods = jnp.where(count > 0, jax.nn.logsumexp(logits, axis=1) - picked, 0.0)
    size = -jnp.take_along_axis(
        jax.nn.log_softmax(found.sizes, axis=1), (batch.lengths - given)[:, None], axis=1
    )
    choices = batch.lengths.astype(jnp.float32) + 1.0
    return MaskedSetTerms(total=choices * foods + size[:, 0], choices=choices, size=size[:, 0])
