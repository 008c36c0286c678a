"""Food vectors with a memory of pairs: what reading a food adds to the logit of every choice.

The wide half of a wide-and-deep model (Cheng et al. 2016, arXiv:1606.07792): one weight for each
ordered pair of foods remembers which go together, so that the transformer need only learn what
pairs do not tell.  A food's pairs lie behind its vector in one row, and the rows of all foods in
one table: whatever moves or replaces a food's row moves both.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from recipe_jax.batches import Molecules
from recipe_jax.layers.initializers import zeros
from recipe_jax.layers.parameters import parameter
from recipe_jax.models.food_embedding import FoodEmbedding, FoodEmbeddingConfig


class FoodEmbeddingWithPairs(FoodEmbedding):
    """Rows of `e` features, as `FoodEmbedding` gives them, and `v + 1` logits that start at zero.

    Args:
        cfg: shape and sources of the features, "learned" among them.
        rngs: what the initial values are drawn from.

    Raises:
        ValueError: if nothing may be learned about a food by its name.
    """

    def __init__(self, cfg: FoodEmbeddingConfig, *, rngs: nnx.Rngs):
        if "learned" not in cfg.sources:
            raise ValueError(f"sources={cfg.sources} must hold 'learned': pairs are learned")
        super().__init__(cfg, rngs=rngs)
        shape = (cfg.num_foods, cfg.num_foods + 1)
        self.pairs = parameter(rngs.params(), shape, (None, "vocab"), zeros)

    def __call__(self, molecules: Molecules) -> Float[Array, "v w"]:
        """The table of all foods, `w = e + v + 1`.

        Args:
            molecules: of the `v` foods.
        """
        return jnp.concatenate([super().__call__(molecules), self.pairs.get_value()], axis=-1)


def pair_logits(
    table: Float[Array, "v w"],
    foods: Int[Array, "b t"],
    lengths: Int[Array, "b"] | None = None,
    *,
    before: Float[Array, "b v_plus_one"],
) -> Float[Array, "b t v_plus_one"]:
    """What the foods up to and including each place add to the logits.

    Args:
        table: of `FoodEmbeddingWithPairs`.
        foods: read one after the other; what is no food (-1 or `v`) adds nothing.
        lengths: foods that count in each row; None for all.
        before: what the foods read before these add.
    """
    v = table.shape[0]
    counts = (foods >= 0) & (foods < v)
    if lengths is not None:
        counts &= jnp.arange(foods.shape[1])[None] < lengths[:, None]
    rows = jnp.where(counts[..., None], table[jnp.where(counts, foods, 0), -(v + 1) :], 0.0)
    return before[:, None] + jnp.cumsum(rows, axis=1)
