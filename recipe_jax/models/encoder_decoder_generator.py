"""Ingredient sets by an encoder and a decoder: read a pantry as a whole, write the rest of the set.

A bidirectional encoder reads a random part of a recipe, the pantry; a causal decoder attends to it
and writes the foods that remain in a random order.  Neither has positions: what the encoder says
does not depend on the pantry's order at all, unlike what a decoder-only model makes of its prompt.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules, RecipeBatch
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.layers.dropout import split_key
from recipe_jax.layers.initializers import lecun_normal, normal, zeros
from recipe_jax.layers.masks import Mask
from recipe_jax.layers.parameters import parameter
from recipe_jax.layers.transformer import BlockCache, Stack, TransformerConfig
from recipe_jax.models.food_embedding import FoodEmbedding, FoodEmbeddingConfig, gather_foods
from recipe_jax.models.ingredient_generator import GeneratorTerms, chosen_before


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """Shape of an encoder-decoder generator.

    Attributes:
        embedding: how foods become vectors; its width is the transformer's.
        transformer: the decoder's stack, and the encoder's but for its number of layers.
        encoder_layers: blocks of the encoder.
        max_foods: most foods that a recipe may hold, those of the pantry included.
    """

    embedding: FoodEmbeddingConfig
    transformer: TransformerConfig
    encoder_layers: int = 2
    max_foods: int = 25

    def __post_init__(self) -> None:
        if self.embedding.embed_dim != self.transformer.embed_dim:
            raise ValueError(
                f"embedding.embed_dim={self.embedding.embed_dim} must equal "
                f"transformer.embed_dim={self.transformer.embed_dim}"
            )
        if self.encoder_layers < 1:
            raise ValueError(f"encoder_layers={self.encoder_layers} must be at least 1")
        if self.max_foods < 1:
            raise ValueError(f"max_foods={self.max_foods} must be at least 1")


class EncoderDecoderGenerator(nnx.Module):
    """Logits of the next food after a pantry and every prefix of the foods that follow it.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self, cfg: EncoderDecoderConfig, *, attend: Attend = dot_product_attention, rngs: nnx.Rngs
    ):
        self.cfg = cfg
        e, v = cfg.embedding.embed_dim, cfg.embedding.num_foods
        self.embedding = FoodEmbedding(cfg.embedding, rngs=rngs)
        self.start = parameter(rngs.params(), (e,), ("embed",), normal(1.0))
        self.end = parameter(rngs.params(), (e,), ("embed",), normal(1.0))

        def make_stack(num_layers: int, cross_attention: bool) -> Stack:
            return Stack(
                dataclasses.replace(cfg.transformer, num_layers=num_layers),
                attend=attend,
                cross_attention=cross_attention,
                unroll=num_layers,
                rngs=rngs,
            )

        self.encoder = make_stack(cfg.encoder_layers, cross_attention=False)
        self.decoder = make_stack(cfg.transformer.num_layers, cross_attention=True)
        self.output = parameter(rngs.params(), (e, e), ("embed", None), lecun_normal("e -> f"))
        learned = "learned" in cfg.embedding.sources
        self.bias = parameter(rngs.params(), (v + 1,), ("vocab",), zeros) if learned else None

    def __call__(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        given: Int[Array, "b"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, "b prefixes v_plus_one"]:
        """Logits after 0, 1, … `m` foods, of which the encoder reads the first `given`.

        The start takes the place of the pantry's last food, so that the decoder reads it and then
        what follows the pantry.  Logits after fewer foods than `given` mean nothing.

        Args:
            molecules: of the `v` foods.
            foods: in the order in which they are read; index `v` is padding, which no real prefix
                sees.
            given: how many of them are the pantry.
            key: random key for dropout; None in evaluation.
        """
        table = self.embedding(molecules)
        encoder_key, decoder_key = split_key(key, 2)
        pantry = self.encode(table, foods, given, key=encoder_key)
        x = gather_foods(table, self.end.get_value(), foods)
        x = jnp.concatenate([jnp.zeros_like(x[:, :1]), x], axis=1)
        place = jnp.arange(x.shape[1])[None]
        is_start = (place == given[:, None])[..., None]
        x = jnp.where(is_start, self.start.get_value()[None, None], x)
        written = (place >= given[:, None]).astype(jnp.int32)
        with jax.named_scope("decoder"):
            states = self.decoder(
                x,
                pantry,
                mask=Mask(causal=True, query_segments=written, key_segments=written),
                context_mask=Mask(key_lengths=given),
                key=decoder_key,
            )
        return self.logits(table, states)

    def encode(
        self,
        table: Float[Array, "v e"],
        foods: Int[Array, "b p"],
        lengths: Int[Array, "b"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b p e"]:
        """States of the pantry's foods; those beyond `lengths` mean nothing."""
        x = gather_foods(table, self.end.get_value(), foods)
        with jax.named_scope("encoder"):
            return self.encoder(x, mask=Mask(key_lengths=lengths), key=key)

    def logits(
        self, table: Float[Array, "v e"], states: Float[Array, "b t e"]
    ) -> Float32[Array, "b t v_plus_one"]:
        """Compare states with the vectors of all foods and of the end."""
        vectors = jnp.concatenate([table, self.end.get_value()[None]])
        bias = None if self.bias is None else self.bias.get_value()
        return compare_with_foods(states @ self.output.get_value(), vectors, bias)

    def encode_prompt(
        self, table: Float[Array, "v e"], foods: Int[Array, "b p"], lengths: Int[Array, "b"]
    ) -> BlockCache:
        """A cache that has read the pantry, with room for the start and `max_foods` foods.

        Args:
            table: `self.embedding(molecules)`, computed once for a whole decoding loop.
            foods: the pantry, padded with `v`.
            lengths: its foods.
        """
        # One more food makes room where p is 0; the mask hides it.
        foods = jnp.pad(foods, ((0, 0), (0, 1)), constant_values=table.shape[0])
        states = self.encode(table, foods, lengths)
        with jax.named_scope("decoder"):
            cache = self.decoder.empty_cache(foods.shape[0], self.cfg.max_foods + 1, states)
        if cache.context is None:
            raise ValueError("the decoder has no cross-attention")
        known = jnp.broadcast_to(lengths, cache.context.lengths.shape)
        return cache._replace(context=cache.context._replace(lengths=known))

    def empty_cache(self, batch_size: int) -> BlockCache:
        """The cache of an empty pantry."""
        table = jnp.zeros((self.cfg.embedding.num_foods, self.cfg.embedding.embed_dim))
        nothing = jnp.zeros((batch_size, 0), jnp.int32)
        return self.encode_prompt(table, nothing, jnp.zeros(batch_size, jnp.int32))

    def decode(
        self,
        table: Float[Array, "v e"],
        foods: Int[Array, "b t"],
        lengths: Int[Array, "b"],
        cache: BlockCache,
    ) -> tuple[Float32[Array, "b t v_plus_one"], BlockCache]:
        """Read more foods after the pantry and give the logits after each of them.

        Args:
            table: as for `encode_prompt`.
            foods: the next foods of every row; -1 is the start, index `v` padding.
            lengths: how many of them are no padding.
            cache: of what was read before.
        """
        if cache.context is None:
            raise ValueError("cache has no pantry: make it by encode_prompt or empty_cache")
        rows = jnp.concatenate([table, self.end.get_value()[None], self.start.get_value()[None]])
        x = rows[foods]
        with jax.named_scope("decoder"):
            states, cache = self.decoder.decode(
                x,
                cache,
                mask=Mask(causal=True, query_lengths=lengths),
                context_mask=Mask(key_lengths=cache.context.lengths[0]),
            )
        return self.logits(table, states), cache


def compare_with_foods(
    queries: Float[Array, "b t e"], vectors: Float[Array, "n e"], bias: Float[Array, "n"] | None
) -> Float32[Array, "b t n"]:
    """Scaled products of queries with vectors: a food's molecules matter where it is chosen."""
    logits = jnp.einsum("bte,ne->btn", queries, vectors, preferred_element_type=jnp.float32)
    logits = logits * vectors.shape[-1] ** -0.5
    return logits if bias is None else logits + bias[None, None]


def pantry_sizes(key: PRNGKeyArray, lengths: Int[Array, "b"]) -> Int[Array, "b"]:
    """How many foods of each recipe the encoder reads: uniform from 0 to one less than all."""
    return jax.random.randint(key, lengths.shape, 0, jnp.maximum(lengths, 1))


def encoder_decoder_loss(
    logits: Float[Array, "b prefixes v_plus_one"], batch: RecipeBatch, given: Int[Array, "b"]
) -> GeneratorTerms:
    """`remaining_set_loss` of the choices that the decoder makes: those after the pantry.

    Args:
        logits: of the model.
        batch: whose recipes were read in the order in which they lie there.
        given: foods of the pantry, which are no choices.

    Returns:
        Terms in which `choices` counts the foods after the pantry and the end.
    """
    v = logits.shape[-1] - 1
    place, lengths = jnp.arange(logits.shape[1])[None], batch.lengths[:, None]
    chosen = chosen_before(batch.foods, v)
    is_end = (place == lengths).astype(jnp.float32)
    targets = (chosen[:, -1:] & ~chosen).astype(jnp.float32).at[..., -1].set(is_end)
    targets /= jnp.maximum(targets.sum(axis=-1, keepdims=True), 1.0)
    allowed = jnp.where(chosen, jnp.finfo(jnp.float32).min, logits.astype(jnp.float32))
    picked = jnp.sum(targets * jnp.where(targets > 0, allowed, 0.0), axis=-1)
    nats = jax.nn.logsumexp(allowed, axis=-1) - picked
    nats = jnp.where((place >= given[:, None]) & (place <= lengths), nats, 0.0)
    return GeneratorTerms(
        total=nats.sum(axis=-1),
        choices=(batch.lengths - given).astype(jnp.float32) + 1.0,
        end=jnp.sum(nats * is_end, axis=-1),
    )
