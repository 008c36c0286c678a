"""Modules with parameters from numpy: compiling JAX's initializers takes longer than most tests."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from recipe_jax.functional import Params, PureModule, abstract


def draw_parameters(
    make_module: Callable[[nnx.Rngs], nnx.Module], *, seed: int = 0, deviation: float = 0.5
) -> tuple[PureModule[Any], Params]:
    """What `purify(make_module(rngs))` gives, all parameters drawn from one distribution."""
    fn, shapes = abstract(lambda: make_module(nnx.Rngs(0)))
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(deviation * rng.normal(size=leaf.shape), jnp.float32)

    return fn, jax.tree.map(draw, shapes)
