"""Amounts of a known set of foods, one after the other: each given the set and earlier amounts.

An encoder reads the foods as a set.  Its members are visited in a random order; the histogram of a
member's grams is conditioned on the encoded set and on the grams of the members visited before.
Members that depend on each other (twice the flour, twice the butter) are drawn together, which no
product of independent marginals can do; proportions are grams over their sum.

Two streams as in XLNet (Yang et al. 2019, arXiv:1906.08237, section 2.3) keep a member from seeing
its own amount: queries know the foods, what they attend to also knows grams.  Queries attend to no
other query and visited members to nothing, so that what was visited before counts as a set: the
order in which it was visited changes no prediction.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.dropout import split_key
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.transformer import BlockCache, Stack, TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbedding, FoodEmbeddingConfig, gather_foods
from recipe_jax.models.gram_bins import (
    GramBins,
    GramEmbedding,
    GramHead,
    draw_grams,
    gram_log_density,
)
from recipe_jax.models.simplex import centred_log_ratio, member_mask, shares

_BINS = GramBins()

SAMPLES_AT_ONCE = 16
"""Samples that are drawn side by side; more of them take turns, in the memory of these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveAmountsConfig:
    """Shape of an autoregressive model of amounts.

    Attributes:
        embedding: how foods become vectors; its width is the transformer's.
        transformer: the encoder of the set; the decoder differs from it in depth alone.
        num_decoder_layers: depth of the decoder, which reads earlier amounts.
        bins: of the histogram of grams.
        max_foods: most foods that a recipe may hold.
    """

    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig
    num_decoder_layers: int = 2
    bins: GramBins = _BINS
    max_foods: int = 25

    def __post_init__(self) -> None:
        if self.embedding.embed_dim != self.transformer.embed_dim:
            raise ValueError(
                f"embedding.embed_dim={self.embedding.embed_dim} must equal "
                f"transformer.embed_dim={self.transformer.embed_dim}"
            )
        if self.num_decoder_layers < 1:
            raise ValueError(f"num_decoder_layers={self.num_decoder_layers} must be at least 1")


class AutoregressiveAmounts(nnx.Module):
    """Logits of each member's grams, given the set of foods and the grams of earlier members.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: AutoregressiveAmountsConfig,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        e, depth = cfg.transformer.embed_dim, cfg.num_decoder_layers
        self.embedding = FoodEmbedding(cfg.embedding, rngs=rngs)
        self.encoder = Stack(
            cfg.transformer, attend=attend, unroll=cfg.transformer.num_layers, rngs=rngs
        )
        self.amounts = GramEmbedding(cfg.bins, e, rngs=rngs)
        self.decoder = Stack(
            dataclasses.replace(cfg.transformer, num_layers=depth),
            attend=attend,
            cross_attention=True,
            unroll=depth,
            rngs=rngs,
        )
        learned = "learned" in cfg.embedding.sources
        self.head = GramHead(cfg.bins, e, cfg.embedding.num_foods if learned else None, rngs=rngs)

    def __call__(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        lengths: Int[Array, "b"],
        grams: Float[Array, "b m"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, "b m bins"]:
        """Logits of every member's bins given the true grams of those before it: teacher forcing.

        Args:
            molecules: of the `v` foods.
            foods: members in the order in which they are visited, then padding (index `v`).
            lengths: members per set.
            grams: of the members; what stands at padding is not read.
            key: random key for dropout; None in evaluation.
        """
        encoder_key, decoder_key = split_key(key, 2)
        states = self.encode(molecules, foods, lengths, key=encoder_key)
        return self.given_earlier(states, foods, lengths, grams, key=decoder_key)

    def encode(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        lengths: Int[Array, "b"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b m e"]:
        """Each member's state, knowing all foods and no amount; arguments as for `__call__`."""
        table = self.embedding(molecules)
        x = gather_foods(table, jnp.zeros(table.shape[1]), foods)
        with jax.named_scope("encoder"):
            return self.encoder(x, mask=Mask(key_lengths=lengths, query_lengths=lengths), key=key)

    def given_earlier(
        self,
        states: Float[Array, "b m e"],
        foods: Int[Array, "b m"],
        lengths: Int[Array, "b"],
        grams: Float[Array, "b m"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, "b m bins"]:
        """`__call__` from what `encode` gave."""
        m = foods.shape[1]
        known = member_mask(lengths, m) & (grams > 0)
        visited = states + self.amounts(jnp.where(known, grams, 1.0))
        earlier = jnp.tril(jnp.ones((m, m), bool), -1)[None, None]
        alone = Mask(window=1, query_lengths=lengths)
        before = Mask(dense=earlier, query_lengths=lengths)
        with jax.named_scope("decoder"):
            queries = self.decoder(states, visited, mask=alone, context_mask=before, key=key)
        return self.head(queries, foods)

    def empty_cache(self, batch_size: int, capacity: int) -> BlockCache:
        """A cache of visited members that has room for `capacity` and holds none yet."""
        room = jnp.zeros((batch_size, capacity, self.cfg.transformer.embed_dim))
        return self.decoder.empty_cache(batch_size, 1, room)

    def next_logits(
        self,
        state: Float[Array, "b e"],
        foods: Int[Array, "b"],
        place: jax.Array,
        cache: BlockCache,
    ) -> Float32[Array, "b bins"]:
        """Logits of one more member's bins.

        Args:
            state: of the member, from `encode`.
            foods: the member.
            place: how many members the cache holds, the same in every row.
            cache: of these.
        """
        before = Mask(key_lengths=jnp.full(foods.shape, place))
        with jax.named_scope("decoder"):
            query, _ = self.decoder.decode(state[:, None], cache, context_mask=before)
        return self.head(query[:, 0], foods)

    def visit(
        self,
        state: Float[Array, "b e"],
        grams: Float[Array, "b"],
        place: jax.Array,
        cache: BlockCache,
    ) -> BlockCache:
        """The cache with one more member and its amount; arguments as for `next_logits`."""
        visited = state + self.amounts(grams)
        with jax.named_scope("decoder"):
            new = self.decoder.empty_cache(state.shape[0], 1, visited[:, None]).context
        kept = cache.context
        if new is None or kept is None:
            raise ValueError("the cache is none of empty_cache: it has no context")
        keys = kept.keys.at[..., place].set(new.keys[..., 0])
        values = kept.values.at[..., place, :].set(new.values[..., 0, :])
        return cache._replace(context=kept._replace(keys=keys, values=values))


class AutoregressiveTerms(NamedTuple):
    """Per-recipe loss terms under teacher forcing; all zero for a recipe that is not fully weighed.

    They say how likely the true amounts are, step by step from the true ones before.  How good
    generated amounts are is another question, which only `sample_proportions` answers.

    Attributes:
        total: what is minimised: `nats` per member.
        nats: negative log density of the members' log grams, summed over the members.
        members: members that count.
        weighed: one where the recipe counts, else zero.
    """

    total: Float32[Array, "b"]
    nats: Float32[Array, "b"]
    members: Float32[Array, "b"]
    weighed: Float32[Array, "b"]


def next_amount_loss(
    logits: Float[Array, "b m bins"], batch: RecipeBatch, *, bins: GramBins
) -> AutoregressiveTerms:
    """Negative log-likelihood of each member's grams given those before it.

    In one random order per recipe and step, it is an unbiased estimate of the mean over all orders
    (Uria et al. 2014, arXiv:1310.1757, eq. 8).
    """
    known = member_mask(batch.lengths, batch.foods.shape[1]) & (batch.grams > 0)
    densities = gram_log_density(logits, jnp.where(known, batch.grams, 1.0), bins)
    nats = -jnp.sum(jnp.where(known, densities, 0.0), axis=-1)
    members = known.sum(axis=-1).astype(jnp.float32)
    return AutoregressiveTerms(
        total=nats / jnp.maximum(members, 1.0),
        nats=nats,
        members=members,
        weighed=(members > 0).astype(jnp.float32),
    )


@functools.partial(jax.jit, static_argnames=("fn", "num_samples"))
def sample_grams(
    fn: Any,
    params: Any,
    molecules: Molecules,
    foods: Int[Array, "b m"],
    lengths: Int[Array, "b"],
    key: PRNGKeyArray,
    *,
    num_samples: int,
) -> Float32[Array, "samples b m"]:
    """Draw the amounts of all members, each sample in an order of its own; padding is zero.

    Args:
        fn: a pure `AutoregressiveAmounts`.
        params: its parameters.
        molecules: of the `v` foods.
        foods: members first, then padding (index `v`).
        lengths: members per set.
        key: random key.
        num_samples: draws per set.
    """
    model = fn.bind(params)
    states = model.encode(molecules, foods, lengths)
    members = member_mask(lengths, foods.shape[1])

    def draw(key: PRNGKeyArray) -> jax.Array:
        order_key, key = jax.random.split(key)
        order = random_order(members, order_key)
        drawn = _visit_all(
            model,
            jnp.take_along_axis(states, order[..., None], axis=1),
            jnp.take_along_axis(foods, order, axis=1),
            key,
        )
        back = jnp.argsort(order, axis=1)
        return jnp.where(members, jnp.take_along_axis(drawn, back, axis=1), 0.0)

    keys = jax.random.split(key, num_samples)
    return jax.lax.map(draw, keys, batch_size=min(SAMPLES_AT_ONCE, num_samples))


def sample_proportions(
    fn: Any,
    params: Any,
    molecules: Molecules,
    foods: Int[Array, "b m"],
    lengths: Int[Array, "b"],
    key: PRNGKeyArray,
    *,
    num_samples: int,
) -> Float32[Array, "samples b m"]:
    """Draw compositions: `sample_grams` over its sum; their centre is `simplex.geometric_mean`."""
    return shares(sample_grams(fn, params, molecules, foods, lengths, key, num_samples=num_samples))


def random_order(members: jax.Array, key: PRNGKeyArray) -> Int[Array, "b m"]:
    """A random order of each row's members; padding stays behind them."""
    rank = jax.random.uniform(key, members.shape)
    return jnp.argsort(jnp.where(members, rank, 2.0), axis=1)


def _visit_all(
    model: AutoregressiveAmounts,
    states: Float[Array, "b m e"],
    foods: Int[Array, "b m"],
    key: PRNGKeyArray,
) -> Float32[Array, "b m"]:
    b, m = foods.shape

    def step(
        carry: tuple[BlockCache, PRNGKeyArray], place: jax.Array
    ) -> tuple[tuple[BlockCache, PRNGKeyArray], jax.Array]:
        cache, key = carry
        key, here = jax.random.split(key)
        state = states[:, place]
        logits = model.next_logits(state, foods[:, place], place, cache)
        grams = draw_grams(logits, here, model.cfg.bins)
        return (model.visit(state, grams, place, cache), key), grams

    _, grams = jax.lax.scan(step, (model.empty_cache(b, m), key), jnp.arange(m))
    return grams.T


@functools.partial(jax.jit, static_argnames=("fn", "num_totals"))
def proportions_log_density(
    fn: Any,
    params: Any,
    molecules: Molecules,
    batch: RecipeBatch,
    *,
    num_totals: int = 128,
) -> Float32[Array, "b"]:
    """Log density of a recipe's proportions in this order, comparable with the mixture's.

    The model's density is over log grams `z`; proportions leave their mean `c` open.  With
    `z = y + c`, where `y` are centred log-ratios, the density with respect to volume in the
    hyperplane of `y` is `sqrt(m)` times the integral over `c`, as in
    `simplex.logistic_normal_log_density`; here it is a sum over midpoints.

    Args:
        fn: a pure `AutoregressiveAmounts`.
        params: its parameters.
        molecules: of the `v` foods.
        batch: fully weighed recipes; only the proportions of their grams matter.
        num_totals: midpoints between the edges of the bins, each a pass of the decoder.
    """
    model, bins = fn.bind(params), fn.bind(params).cfg.bins
    members = member_mask(batch.lengths, batch.foods.shape[1])
    log_ratios = centred_log_ratio(batch.grams, members)
    states = model.encode(molecules, batch.foods, batch.lengths)

    def log_density(mean: jax.Array) -> jax.Array:
        grams = jnp.exp(log_ratios + mean)
        inside = (grams >= bins.min_grams) & (grams <= bins.max_grams)
        logits = model.given_earlier(states, batch.foods, batch.lengths, grams)
        densities = jnp.where(members, gram_log_density(logits, grams, bins), 0.0)
        return jnp.where(jnp.all(inside | ~members, axis=-1), densities.sum(axis=-1), -jnp.inf)

    spacing = bins.num_bins * bins.width / num_totals
    means = math.log(bins.min_grams) + spacing * (jnp.arange(num_totals) + 0.5)
    densities = jax.lax.map(log_density, means)
    count = jnp.maximum(batch.lengths, 1)
    return jax.nn.logsumexp(densities, axis=0) + math.log(spacing) + 0.5 * jnp.log(count)
