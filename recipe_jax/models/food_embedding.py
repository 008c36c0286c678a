"""A food's vector: what is known of its molecules, projected, plus what recipes taught about it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from recipe_jax.batches import Molecules
from recipe_jax.layers.initializers import lecun_normal, normal
from recipe_jax.layers.parameters import parameter

SOURCES = ("composition", "flavour", "learned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoodEmbeddingConfig:
    """How foods become vectors.

    Attributes:
        num_foods: size of the vocabulary, `v`.
        num_components: components in `Molecules.composition`, `c`.
        num_compounds: flavour compounds in `Molecules.flavour`, `a`.
        embed_dim: width of a food's vector, `e`.
        sources: which of `SOURCES` are summed.
    """

    num_foods: int
    num_components: int
    num_compounds: int
    embed_dim: int
    sources: tuple[str, ...] = SOURCES

    def __post_init__(self) -> None:
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise ValueError(f"sources={self.sources} must be one or more of {SOURCES}")


class FoodEmbedding(nnx.Module):
    """The vectors of all foods, as a function of their frozen molecules.

    Composition and flavour are inputs, not parameters: attribution differentiates with respect to
    them, and a food that no recipe taught still has a vector.

    Args:
        cfg: its shape and sources.
        rngs: what the initial values are drawn from.
    """

    def __init__(self, cfg: FoodEmbeddingConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        e = cfg.embed_dim
        # Rows are stored at a scale of 1 / sqrt(e) and multiplied by sqrt(e): Adam's steps of one
        # size then move a row as fast as the transformer's matrices move what they produce.
        row = normal(e**-0.5)
        if "composition" in cfg.sources:
            inputs = 2 * cfg.num_components
            self.composition = parameter(
                rngs.params(), (inputs, e), ("components", "embed"), lecun_normal("c -> e")
            )
        if "flavour" in cfg.sources:
            self.flavour = parameter(
                rngs.params(), (cfg.num_compounds, e), ("components", "embed"), row
            )
            self.no_flavour = parameter(rngs.params(), (e,), ("embed",), row)
        if "learned" in cfg.sources:
            self.learned = parameter(rngs.params(), (cfg.num_foods, e), ("vocab", "embed"), row)

    def __call__(self, molecules: Molecules) -> Float[Array, "v e"]:
        """The sum of the sources, of unit scale at initialisation.

        Args:
            molecules: of the `v` foods.
        """
        sources, e = self.cfg.sources, self.cfg.embed_dim
        table = jnp.zeros((self.cfg.num_foods, e))
        if "composition" in sources:
            inputs = jnp.concatenate([molecules.composition, molecules.observed], axis=-1)
            table += inputs @ self.composition.get_value()
        if "flavour" in sources:
            count = jnp.sum(molecules.flavour, axis=-1, keepdims=True)
            known = molecules.has_flavour[:, None]
            share = molecules.flavour * jax.lax.rsqrt(jnp.maximum(count, 1.0))
            table += known * (share @ self.flavour.get_value()) * e**0.5
            table += (1.0 - known) * self.no_flavour.get_value()[None] * e**0.5
        if "learned" in sources:
            table += self.learned.get_value() * e**0.5
        return table * len(sources) ** -0.5


def gather_foods(
    table: Float[Array, "v e"], padding: Float[Array, "e"], foods: Int[Array, "b m"]
) -> Float[Array, "b m e"]:
    """The rows of `table` for `foods`; index `v` gives `padding`."""
    return jnp.concatenate([table, padding[None]])[foods]
