"""Normalization over the last axis, computed in float32 whatever the input's dtype."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from recipe_jax.layers import initializers
from recipe_jax.layers.parameters import parameter

NormName: TypeAlias = Literal["rms", "layer"]


def rms_norm(
    x: Float[Array, "... e"], scale: Float[Array, "e"], *, eps: float = 1e-6
) -> Float[Array, "... e"]:
    """Divide by the root mean square (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).

    Args:
        x: what to normalize; the result has its dtype.
        scale: multiplies the normalized values.
        eps: added to the mean square.
    """
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * inverse * _along_last(scale, x.ndim)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "... e"],
    scale: Float[Array, "e"],
    bias: Float[Array, "e"],
    *,
    eps: float = 1e-6,
) -> Float[Array, "... e"]:
    """Subtract mean, divide by standard deviation (Ba et al. 2016, arXiv:1607.06450, eq. 4).

    Args:
        x: what to normalize; the result has its dtype.
        scale: multiplies the normalized values.
        bias: added last.
        eps: added to the variance.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    normalized = centred * inverse * _along_last(scale, x.ndim) + _along_last(bias, x.ndim)
    return normalized.astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned scale that starts at one."""

    def __init__(self, dim: int, *, eps: float = 1e-6, axis: str = "embed", rngs: nnx.Rngs):
        self.eps = eps
        self.scale = parameter(rngs.params(), (dim,), (axis,), initializers.ones)

    def __call__(self, x: Float[Array, "... e"]) -> Float[Array, "... e"]:
        """Normalize the last axis."""
        return rms_norm(x, self.scale[...], eps=self.eps)


class LayerNorm(nnx.Module):
    """`layer_norm` with a learned scale that starts at one and a bias that starts at zero."""

    def __init__(self, dim: int, *, eps: float = 1e-6, axis: str = "embed", rngs: nnx.Rngs):
        self.eps = eps
        self.scale = parameter(rngs.params(), (dim,), (axis,), initializers.ones)
        self.bias = parameter(rngs.params(), (dim,), (axis,), initializers.zeros)

    def __call__(self, x: Float[Array, "... e"]) -> Float[Array, "... e"]:
        """Normalize the last axis."""
        return layer_norm(x, self.scale[...], self.bias[...], eps=self.eps)


Norm: TypeAlias = RMSNorm | LayerNorm


def make_norm(name: NormName, dim: int, *, eps: float = 1e-6, rngs: nnx.Rngs) -> Norm:
    """The norm of this name over `dim` features."""
    return (RMSNorm if name == "rms" else LayerNorm)(dim, eps=eps, rngs=rngs)


def _along_last(vector: Float[Array, "e"], ndim: int) -> Float[Array, "... e"]:
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))
