"""Amounts of a known set of foods, all at once: a mixture of logistic-normals on the simplex.

A set encoder reads the foods; each member's state gives the mean and scale of its log-ratio in
every component, and the whole set gives the components' weights.  With several components a set can
be two kinds of dish at once (a pound cake or a sponge); with one component and one scale for all
members it is the plain mean model, trained on squared error: the baseline.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.initializers import lecun_normal, zeros
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.transformer import Stack, TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbedding, FoodEmbeddingConfig, gather_foods
from recipe_jax.models.simplex import (
    centre,
    centred_log_ratio,
    logistic_normal_log_density,
    member_mask,
    proportions,
    root_mean_square,
)

MIN_LOG_SCALE, MAX_LOG_SCALE = -3.0, 2.0
"""Bounds of a log-ratio's log standard deviation: between 5 % and a factor of 1,600."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmountsConfig:
    """Shape of a non-autoregressive model of amounts.

    Attributes:
        embedding: how foods become vectors; its width is the transformer's.
        transformer: the encoder of the set.
        num_components: of the mixture.
        shared_scale: one scale for all members and recipes instead of a predicted one each.
        mean_weight: weight of the error of the mixture's mean beside the likelihood.
        max_foods: most foods that a recipe may hold.
    """

    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig
    num_components: int = 8
    shared_scale: bool = False
    mean_weight: float = 1.0
    max_foods: int = 25

    def __post_init__(self) -> None:
        if self.embedding.embed_dim != self.transformer.embed_dim:
            raise ValueError(
                f"embedding.embed_dim={self.embedding.embed_dim} must equal "
                f"transformer.embed_dim={self.transformer.embed_dim}"
            )
        if self.num_components < 1:
            raise ValueError(f"num_components={self.num_components} must be at least 1")


class Mixture(NamedTuple):
    """A mixture of logistic-normals for each set; `n` is a component.

    Attributes:
        log_weights: of the components; they sum to one in probability.
        means: of each member's log-ratio, centred over the members.
        scales: standard deviation of each member's log-ratio before centring.
    """

    log_weights: Float32[Array, "b n"]
    means: Float32[Array, "b n m"]
    scales: Float32[Array, "b n m"]


class AmountsModel(nnx.Module):
    """From a set of foods to a mixture over its proportions; commutes with permutations.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self, cfg: AmountsConfig, *, attend: Attend = dot_product_attention, rngs: nnx.Rngs
    ):
        self.cfg = cfg
        e, n, v = cfg.transformer.embed_dim, cfg.num_components, cfg.embedding.num_foods

        def weight(out: int) -> nnx.Param[jax.Array]:
            return parameter(
                rngs.params(), (e, out), ("embed", "components"), lecun_normal("e -> n")
            )

        self.embedding = FoodEmbedding(cfg.embedding, rngs=rngs)
        self.stack = Stack(
            cfg.transformer, attend=attend, unroll=cfg.transformer.num_layers, rngs=rngs
        )
        self.mean_weight = weight(n)
        self.food_mean = parameter(rngs.params(), (v + 1,), ("vocab",), zeros)
        self.component_weight = weight(n) if n > 1 else None
        self.scale_weight = (
            parameter(rngs.params(), (1, 1), (None, None), zeros)
            if cfg.shared_scale
            else parameter(rngs.params(), (e, n), ("embed", "components"), zeros)
        )
        self.scale_bias = parameter(rngs.params(), (n,), (None,), zeros)

    def __call__(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        lengths: Int[Array, "b"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Mixture:
        """The mixture for each set.

        Args:
            molecules: of the `v` foods.
            foods: members first, then padding (index `v`).
            lengths: members per set.
            key: random key for dropout; None in evaluation.
        """
        members = member_mask(lengths, foods.shape[1])
        table = self.embedding(molecules)
        x = gather_foods(table, jnp.zeros(table.shape[1]), foods)
        states = self.stack(x, mask=Mask(key_lengths=lengths, query_lengths=lengths), key=key)
        means = jnp.einsum("bme,en->bnm", states, self.mean_weight.get_value())
        means += self.food_mean.get_value()[foods][:, None]
        log_scales = self.scale_bias.get_value()[None, :, None] * jnp.ones_like(means)
        if not self.cfg.shared_scale:
            log_scales += jnp.einsum("bme,en->bnm", states, self.scale_weight.get_value())
        pooled = jnp.sum(jnp.where(members[..., None], states, 0.0), axis=1)
        pooled /= jnp.maximum(lengths, 1)[:, None]
        logits = jnp.zeros((foods.shape[0], 1))
        if self.component_weight is not None:
            logits = pooled @ self.component_weight.get_value()
        return Mixture(
            log_weights=jax.nn.log_softmax(logits, axis=-1),
            means=centre(means, members[:, None]),
            scales=jnp.exp(jnp.clip(log_scales, MIN_LOG_SCALE, MAX_LOG_SCALE)),
        )


def drop_members(
    batch: RecipeBatch, rate: float, key: PRNGKeyArray, *, num_foods: int
) -> RecipeBatch:
    """Leave each member of every second recipe out with probability `rate`: more recipes to learn.

    The shares of the members that stay keep their ratios (subcompositional coherence, Aitchison
    1982), so what remains is a recipe in which something else was not written down.

    Args:
        batch: recipes; those of fewer than three members stay whole.
        rate: probability for a member to be left out.
        key: random key.
        num_foods: the padding index.
    """
    which, member = jax.random.split(key)
    members = member_mask(batch.lengths, batch.foods.shape[1])
    chosen = jax.random.bernoulli(which, 0.5, batch.lengths.shape) & (batch.lengths > 2)
    left_out = jax.random.bernoulli(member, rate, members.shape) & chosen[:, None] & members
    keep = members & ~left_out
    # A recipe that would keep fewer than two members stays whole.
    keep = jnp.where(keep.sum(axis=1, keepdims=True) < 2, members, keep)
    order = jnp.argsort(~keep, axis=1, stable=True)
    kept = jnp.take_along_axis(keep, order, axis=1)
    return RecipeBatch(
        foods=jnp.where(kept, jnp.take_along_axis(batch.foods, order, axis=1), num_foods),
        lengths=keep.sum(axis=1).astype(batch.lengths.dtype),
        grams=jnp.where(kept, jnp.take_along_axis(batch.grams, order, axis=1), 0.0),
    )


class AmountsTerms(NamedTuple):
    """Per-recipe loss terms; all zero for a recipe that is not fully weighed.

    Attributes:
        total: what is minimised.
        nats: negative log density per degree of freedom.
        error: root mean square, over members, of the error of the mean log-ratio.
        weighed: one where the recipe counts, else zero.
    """

    total: Float32[Array, "b"]
    nats: Float32[Array, "b"]
    error: Float32[Array, "b"]
    weighed: Float32[Array, "b"]


def amounts_loss(mixture: Mixture, batch: RecipeBatch, *, mean_weight: float) -> AmountsTerms:
    """Negative log-likelihood of the proportions and the error of their mean."""
    members = member_mask(batch.lengths, batch.foods.shape[1])
    target = centred_log_ratio(batch.grams, members)
    known = jnp.where(members, batch.grams, 0.0).sum(axis=-1) > 0
    weighed = (known & (batch.lengths > 1)).astype(jnp.float32)
    densities = logistic_normal_log_density(
        jnp.broadcast_to(target[:, None], mixture.means.shape),
        mixture.means,
        mixture.scales,
        members[:, None],
    )
    density = jax.nn.logsumexp(mixture.log_weights + densities, axis=-1)
    nats = -density / jnp.maximum(batch.lengths - 1, 1)
    error = root_mean_square(mean_log_ratios(mixture) - target, members)
    return AmountsTerms(
        total=weighed * (nats + mean_weight * error),
        nats=weighed * nats,
        error=weighed * error,
        weighed=weighed,
    )


def mean_log_ratios(mixture: Mixture) -> Float32[Array, "b m"]:
    """The mixture's mean: the best point estimate under squared error in log-ratios."""
    return jnp.einsum("bn,bnm->bm", jnp.exp(mixture.log_weights), mixture.means)


def sample_proportions(
    mixture: Mixture, lengths: Int[Array, "b"], key: PRNGKeyArray, *, num_samples: int
) -> Float32[Array, "samples b m"]:
    """Draw compositions: a component a set, then the normal, then softmax; padding is zero."""
    members = member_mask(lengths, mixture.means.shape[-1])

    def draw(key: PRNGKeyArray) -> jax.Array:
        component_key, normal_key = jax.random.split(key)
        component = jax.random.categorical(component_key, mixture.log_weights, axis=-1)
        pick = component[:, None, None]
        mean = jnp.take_along_axis(mixture.means, pick, axis=1)[:, 0]
        scale = jnp.take_along_axis(mixture.scales, pick, axis=1)[:, 0]
        noise = jax.random.normal(normal_key, mean.shape)
        return proportions(mean + scale * noise, members)

    return jax.vmap(draw)(jax.random.split(key, num_samples))
