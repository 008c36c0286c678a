"""Dropout as a function of a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zero each element with probability `rate`, scale the rest (Srivastava et al. 2014, sec. 10).

    The expected value is `x`.  Without a key nothing is dropped: that is evaluation.

    Args:
        x: what to drop from.
        rate: probability of a zero, in [0, 1).
        key: one key per call; None for evaluation.

    Raises:
        ValueError: if the rate is outside [0, 1).
    """
    check_rate(rate)
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))


def split_key(key: PRNGKeyArray | None, count: int) -> tuple[PRNGKeyArray | None, ...]:
    """As many keys as there are places that drop something; all None without a key."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


def check_rate(rate: float, name: str = "dropout_rate") -> None:
    """Refuse a probability of dropping that is outside [0, 1)."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name}={rate} must be at least 0 and below 1")
