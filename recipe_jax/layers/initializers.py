"""Initial values of parameters.

A weight's fans come from an einsum-like spec: in `"e -> h d"` the axis `e` is summed over and `h`
and `d` are produced, so `fan_in = e` and `fan_out = h d`; in `"h d -> e"` it is the other way
round.  Letters on both sides (`"n e -> n f"`) are independent copies and count in neither fan.
The weight's axes are the letters in the order in which they first appear.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PRNGKeyArray

from recipe_jax.layers.parameters import Initializer

FanInitializer: TypeAlias = Callable[[str], Initializer]
"""From a spec such as `"e -> h d"` to an initializer: what a layer takes as an argument."""

Distribution: TypeAlias = Literal["uniform", "normal", "truncated_normal"]

_TRUNCATED_STDDEV = 0.87962566103423978
"""Standard deviation of the unit normal distribution cut at two standard deviations."""


def fans(spec: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs per output and outputs per input of a weight of this shape.

    Args:
        spec: input letters, `->`, output letters, separated by spaces.
        shape: one size per distinct letter.

    Raises:
        ValueError: if the spec has no `->` or does not name each axis of the shape.
    """
    inputs, arrow, outputs = spec.partition("->")
    if not arrow:
        raise ValueError(f'spec={spec!r} must have the form "e -> h d"')
    letters = list(dict.fromkeys(inputs.split() + outputs.split()))
    if len(letters) != len(shape):
        raise ValueError(f"spec={spec!r} names {len(letters)} axes, the shape {shape} has another")
    sizes = dict(zip(letters, shape, strict=True))
    shared = set(inputs.split()) & set(outputs.split())
    fan_in = math.prod(sizes[letter] for letter in inputs.split() if letter not in shared)
    fan_out = math.prod(sizes[letter] for letter in outputs.split() if letter not in shared)
    return fan_in, fan_out


def lecun_normal(spec: str) -> Initializer:
    """Normal with variance `1 / fan_in` (LeCun et al. 1998, "Efficient BackProp", section 4.6)."""
    return _scaled(spec, 1.0, "in", "normal")


def lecun_uniform(spec: str) -> Initializer:
    """Uniform with variance `1 / fan_in` (LeCun et al. 1998, "Efficient BackProp", section 4.6)."""
    return _scaled(spec, 1.0, "in", "uniform")


def xavier_normal(spec: str) -> Initializer:
    """Normal with variance `2 / (fan_in + fan_out)` (Glorot and Bengio 2010, eq. 12)."""
    return _scaled(spec, 1.0, "average", "normal")


def xavier_uniform(spec: str) -> Initializer:
    """Uniform with variance `2 / (fan_in + fan_out)` (Glorot and Bengio 2010, eq. 16)."""
    return _scaled(spec, 1.0, "average", "uniform")


def kaiming_normal(spec: str) -> Initializer:
    """Normal with variance `2 / fan_in`, for ReLU (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    return _scaled(spec, 2.0, "in", "normal")


def kaiming_uniform(spec: str) -> Initializer:
    """Uniform with variance `2 / fan_in`, for ReLU (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    return _scaled(spec, 2.0, "in", "uniform")


def lecun_truncated_normal(spec: str) -> Initializer:
    """Variance `1 / fan_in`, and no value beyond two deviations of the uncut distribution."""
    return _scaled(spec, 1.0, "in", "truncated_normal")


def normal(stddev: float) -> Initializer:
    """Normal with mean 0 and this standard deviation."""
    return lambda key, shape: _draw(key, shape, stddev, "normal")


def truncated_normal(stddev: float) -> Initializer:
    """Normal cut at two standard deviations and widened again to this standard deviation."""
    return lambda key, shape: _draw(key, shape, stddev, "truncated_normal")


def zeros(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """All zeros, whatever the key."""
    del key
    return jnp.zeros(shape, jnp.float32)


def ones(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """All ones, whatever the key."""
    del key
    return jnp.ones(shape, jnp.float32)


def _scaled(
    spec: str, gain: float, fan: Literal["in", "average"], distribution: Distribution
) -> Initializer:
    def initialize(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float32[Array, "..."]:
        fan_in, fan_out = fans(spec, shape)
        denominator = fan_in if fan == "in" else (fan_in + fan_out) / 2
        return _draw(key, shape, math.sqrt(gain / denominator), distribution)

    return initialize


def _draw(
    key: PRNGKeyArray, shape: tuple[int, ...], stddev: float, distribution: Distribution
) -> Float32[Array, "..."]:
    if distribution == "normal":
        return stddev * jax.random.normal(key, shape)
    if distribution == "truncated_normal":
        unit = jax.random.truncated_normal(key, -2.0, 2.0, shape)
        return stddev / _TRUNCATED_STDDEV * unit
    limit = math.sqrt(3.0) * stddev
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)
