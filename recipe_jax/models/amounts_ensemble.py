"""Several models of amounts that were trained apart, as one mixture.

Each was drawn and shuffled by a seed of its own, so they err differently, and the mean of what they
predict errs less (deep ensembles; Lakshminarayanan et al. 2017, arXiv:1612.01474).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray

from recipe_jax.batches import Molecules
from recipe_jax.layers.attention import Attend, dot_product_attention
from recipe_jax.models.amounts import AmountsConfig, AmountsModel, Mixture
from recipe_jax.models.food_embedding import FoodEmbeddingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmountsEnsembleConfig:
    """Shape of an ensemble.

    Attributes:
        model: the shape of each model.
        num_models: how many there are.
    """

    model: AmountsConfig
    num_models: int

    def __post_init__(self) -> None:
        if self.num_models < 1:
            raise ValueError(f"num_models={self.num_models} must be at least 1")

    @property
    def embedding(self) -> FoodEmbeddingConfig:
        """How foods become vectors in each model."""
        return self.model.embedding

    @property
    def max_foods(self) -> int:
        """Most foods that a recipe may hold."""
        return self.model.max_foods


class AmountsEnsemble(nnx.Module):
    """From a set of foods to the mixture of all models' mixtures, each with the same weight.

    Args:
        cfg: its shape.
        attend: the reference or a kernel of the same signature.
        rngs: what the initial values are drawn from.
    """

    def __init__(
        self,
        cfg: AmountsEnsembleConfig,
        *,
        attend: Attend = dot_product_attention,
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg
        self.models = nnx.List(
            [AmountsModel(cfg.model, attend=attend, rngs=rngs) for _ in range(cfg.num_models)]
        )

    def __call__(
        self,
        molecules: Molecules,
        foods: Int[Array, "b m"],
        lengths: Int[Array, "b"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Mixture:
        """The mixture for each set, of `num_models * num_components` components.

        Args:
            molecules: of the `v` foods.
            foods: members first, then padding (index `v`).
            lengths: members per set.
            key: random key for dropout; None in evaluation.
        """
        count = self.cfg.num_models
        keys = [None] * count if key is None else list(jax.random.split(key, count))
        found = [
            model(molecules, foods, lengths, key=own)
            for model, own in zip(self.models, keys, strict=True)
        ]
        together = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *found)
        return together._replace(log_weights=together.log_weights - jnp.log(float(count)))
