"""Products of activations with weights: float32 sums, the activations' dtype."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def project(
    x: Float[Array, "..."], weight: Float[Array, "..."], *, num_summed: int = 1
) -> Float32[Array, "..."]:
    """Sum over the last axes of `x` and the first axes of the weight; float32, not yet cast back.

    The product is that of two matrices, with all other axes laid together.  Its gradients are then
    such products too, which on CPU saves the copies that transposing more axes takes: a quarter of
    a feed-forward layer's training time.

    Args:
        x: leading axes, then those that are summed over.
        weight: those that are summed over, then the new ones; cast to the dtype of `x`.
        num_summed: how many axes are summed over.
    """
    leading, summed = x.shape[: x.ndim - num_summed], x.shape[x.ndim - num_summed :]
    new = weight.shape[num_summed:]
    width = math.prod(summed)
    flat = jnp.matmul(
        x.reshape(-1, width) if leading else x.reshape(1, width),
        weight.astype(x.dtype).reshape(width, -1),
        preferred_element_type=jnp.float32,
    )
    return flat.reshape(*leading, *new)
