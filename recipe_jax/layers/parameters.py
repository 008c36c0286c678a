"""Parameters with logical axes: one word per dimension, which sharding maps to a mesh."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, PRNGKeyArray

Initializer: TypeAlias = Callable[[PRNGKeyArray, tuple[int, ...]], Float32[Array, "..."]]
"""Draws a float32 array of a shape from a random key."""


def parameter(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    initializer: Initializer,
) -> nnx.Param[jax.Array]:
    """A float32 parameter that carries the logical name of each of its axes.

    The names are our own metadata: `nnx.Param(out_sharding=…)` needs a mesh even on one device.

    Args:
        key: what the initial value is drawn from, for instance `rngs.params()`.
        shape: one size per dimension.
        axes: one logical name per dimension, such as `("embed", "heads", "head_dim")`; None for a
            dimension that is never sharded.
        initializer: draws the initial value.

    Raises:
        ValueError: if there is not one name per dimension, or the initializer breaks its contract.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes={axes} must name each dimension of shape={shape}")
    value = initializer(key, shape)
    if value.shape != shape or value.dtype != jnp.float32:
        raise ValueError(
            f"initializer gave {value.dtype}{list(value.shape)}, expected float32{list(shape)}"
        )
    return nnx.Param(value, axes=axes)
