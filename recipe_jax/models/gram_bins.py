"""Grams of one food as a histogram over log grams: what is read, what is predicted, what is drawn.

Most weights are a few household measures times a food's own weight, so that log grams pile up on
points.  On points the likelihood of a mixture of normals has no bound; a histogram's is bounded by
the width of its bins, and it can hold any number of modes (the softmax over values of van den Oord
et al. 2016, arXiv:1601.06759, section 3.1).  Inside a bin the density of log grams is uniform.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from recipe_jax.layers.initializers import lecun_normal, normal, zeros
from recipe_jax.layers.parameters import parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class GramBins:
    """Bins of equal width in log grams.

    Attributes:
        num_bins: how many.
        min_grams: lower edge of the first; what is lighter counts as this.
        max_grams: upper edge of the last; what is heavier counts as this.
    """

    num_bins: int = 64
    min_grams: float = 0.02
    max_grams: float = 20_000.0

    def __post_init__(self) -> None:
        if self.num_bins < 2:
            raise ValueError(f"num_bins={self.num_bins} must be at least 2")
        if not 0 < self.min_grams < self.max_grams < math.inf:
            raise ValueError(
                f"min_grams={self.min_grams} must be positive and below max_grams={self.max_grams}"
            )

    @property
    def width(self) -> float:
        """Of one bin, in log grams."""
        return math.log(self.max_grams / self.min_grams) / self.num_bins

    def place(self, grams: Float[Array, "*n"]) -> Float32[Array, "*n"]:
        """Where positive amounts lie, in bins from the lower edge: 0 to `num_bins`."""
        places = (jnp.log(grams) - math.log(self.min_grams)) / self.width
        return jnp.clip(places, 0.0, self.num_bins)

    def grams(self, places: Float[Array, "*n"]) -> Float32[Array, "*n"]:
        """The inverse of `place`."""
        return jnp.exp(math.log(self.min_grams) + self.width * places)


def gram_log_density(
    logits: Float[Array, "*n bins"], grams: Float[Array, "*n"], bins: GramBins
) -> Float32[Array, "*n"]:
    """Log density of log grams: it integrates to one between the edges of the bins.

    Args:
        logits: of the bins.
        grams: positive.
        bins: where they lie.
    """
    index = jnp.minimum(bins.place(grams).astype(jnp.int32), bins.num_bins - 1)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probabilities, index[..., None], axis=-1)[..., 0]
    return picked - math.log(bins.width)


def draw_grams(
    logits: Float[Array, "*n bins"], key: PRNGKeyArray, bins: GramBins
) -> Float32[Array, "*n"]:
    """Draw amounts: a bin, then a place in it."""
    bin_key, place_key = jax.random.split(key)
    index = jax.random.categorical(bin_key, logits, axis=-1)
    return bins.grams(index + jax.random.uniform(place_key, index.shape))


class GramEmbedding(nnx.Module):
    """Amounts as vectors of unit scale, continuous in log grams.

    Each bin's centre has a learned vector; an amount's is interpolated between the two nearest,
    plus a vector times its log grams, which is all that rarely seen amounts have learned.

    Args:
        bins: whose centres are the knots.
        embed_dim: width of a vector.
        rngs: what the initial values are drawn from.
    """

    def __init__(self, bins: GramBins, embed_dim: int, *, rngs: nnx.Rngs):
        self.bins = bins
        # The scale of rows, 1 / sqrt(e), is that of FoodEmbedding, for the same reason.
        shape = (bins.num_bins + 1, embed_dim)
        self.knots = parameter(rngs.params(), shape, (None, "embed"), normal(embed_dim**-0.5))

    def __call__(self, grams: Float[Array, "*n"]) -> Float32[Array, "*n e"]:
        """Vectors of amounts.

        Args:
            grams: positive.
        """
        knots = self.knots.get_value()
        place = self.bins.place(grams)[..., None]
        centres = (jnp.arange(self.bins.num_bins) + 0.5).reshape((1,) * grams.ndim + (-1,))
        inside = jnp.clip(place, 0.5, self.bins.num_bins - 0.5)
        near = jnp.maximum(1.0 - jnp.abs(inside - centres), 0.0)
        slope = 2.0 * place / self.bins.num_bins - 1.0
        return jnp.concatenate([near, slope], axis=-1) @ knots * knots.shape[-1] ** 0.5


class GramHead(nnx.Module):
    """Logits of the bins from a state, plus a learned histogram of the food itself.

    Args:
        bins: what is predicted.
        embed_dim: width of a state.
        num_foods: size of the vocabulary, `v`; None for one histogram of all foods, where a food
            must be known by its molecules alone.
        rngs: what the initial values are drawn from.
    """

    def __init__(self, bins: GramBins, embed_dim: int, num_foods: int | None, *, rngs: nnx.Rngs):
        rows = 1 if num_foods is None else num_foods + 1
        self.weight = parameter(
            rngs.params(), (embed_dim, bins.num_bins), ("embed", None), lecun_normal("e -> n")
        )
        self.histograms = parameter(rngs.params(), (rows, bins.num_bins), ("vocab", None), zeros)

    def __call__(
        self, states: Float[Array, "*n e"], foods: Int[Array, "*n"]
    ) -> Float32[Array, "*n bins"]:
        """Logits of each food's amount.

        Args:
            states: what is known of it.
            foods: index into the vocabulary; `v` is padding.
        """
        histograms = self.histograms.get_value()
        rows = foods if histograms.shape[0] > 1 else jnp.zeros_like(foods)
        logits = jnp.matmul(states, self.weight.get_value(), preferred_element_type=jnp.float32)
        return logits + histograms[rows]
