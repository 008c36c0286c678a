"""Several models of amounts that were trained apart, as one mixture.

Each was drawn and shuffled by a seed of its own, so they err differently, and the mean of what they
predict errs less (deep ensembles; Lakshminarayanan et al. 2017, arXiv:1612.01474).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules
from recipe_jax.functional import Params, abstract, purify, stack
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

    The models' parameters are stacked along a leading axis "models", and one is compiled for all.

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
        self.cfg, self.attend = cfg, attend
        keys = jax.random.split(rngs.params(), cfg.num_models)
        self.models = stack(self._make_model, keys, axis="models")

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
        _, params = purify(self.models)
        fn, _ = abstract(lambda: self._make_model(jax.random.key(0)))

        def one(model: tuple[Params, jax.Array | None]) -> Mixture:
            params, key = model
            return fn.bind(params)(molecules, foods, lengths, key=key)

        keys = None if key is None else jax.random.split(key, self.cfg.num_models)
        found = jax.lax.map(one, (params, keys))
        together = jax.tree.map(_join_components, found)
        count = float(self.cfg.num_models)
        return together._replace(log_weights=together.log_weights - jnp.log(count))

    def _make_model(self, key: jax.Array) -> AmountsModel:
        return AmountsModel(self.cfg.model, attend=self.attend, rngs=nnx.Rngs(key))


def _join_components(parts: Float32[Array, "j b n ..."]) -> Float32[Array, "b j_times_n ..."]:
    """The components of all models, those of the first before those of the second."""
    models, sets, components, *rest = parts.shape
    return jnp.moveaxis(parts, 0, 1).reshape(sets, models * components, *rest)
