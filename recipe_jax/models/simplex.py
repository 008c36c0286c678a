"""Proportions that sum to one, seen as centred log-ratios (Aitchison 1982).

The members of a composition are the first `lengths` columns of a row.  Its centred log-ratio
`y_i = log p_i - mean_j log p_j` lies in the hyperplane of vectors that sum to zero, where distances
mean the same for every member; `p = softmax(y)` leads back.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int


def member_mask(lengths: Int[Array, "b"], size: int) -> Bool[Array, "b m"]:
    """True for members, false for padding."""
    return jnp.arange(size)[None] < lengths[:, None]


def centre(values: Float[Array, "*n m"], members: Bool[Array, "*#n m"]) -> Float[Array, "*n m"]:
    """Subtract the members' mean; zero at padding."""
    kept = jnp.where(members, values, 0.0)
    count = jnp.maximum(members.sum(axis=-1, keepdims=True), 1)
    return jnp.where(members, kept - kept.sum(axis=-1, keepdims=True) / count, 0.0)


def centred_log_ratio(
    grams: Float[Array, "b m"], members: Bool[Array, "b m"]
) -> Float32[Array, "b m"]:
    """Centred log-ratios of positive amounts; zero at padding and for a row without amounts."""
    known = members & (grams > 0)
    return centre(jnp.log(jnp.where(known, grams, 1.0)), members)


def proportions(
    log_ratios: Float[Array, "*n m"], members: Bool[Array, "*#n m"]
) -> Float32[Array, "*n m"]:
    """The composition with these log-ratios: members sum to one, padding is zero."""
    logits = jnp.where(members, log_ratios, jnp.finfo(jnp.float32).min)
    return jnp.where(members, jax.nn.softmax(logits, axis=-1), 0.0)


def shares(grams: Float[Array, "*n m"]) -> Float32[Array, "*n m"]:
    """Amounts, zero at padding, as parts of their sum; a row of zeros stays so."""
    total = grams.sum(axis=-1, keepdims=True)
    return grams / jnp.where(total > 0, total, 1.0)


def geometric_mean(
    samples: Float[Array, "samples b m"], members: Bool[Array, "b m"]
) -> Float32[Array, "b m"]:
    """The composition whose log-ratios are the samples' mean: their centre (Aitchison 1989).

    Of all point estimates it has the least squared error in centred log-ratios.
    """
    known = jnp.where(members, samples, 1.0)
    return proportions(centre(jnp.log(known).mean(axis=0), members), members)


def root_mean_square(values: Float[Array, "*n m"], members: Bool[Array, "*#n m"]) -> jax.Array:
    """Over the members of each row; its gradient is zero, not NaN, where all are zero."""
    count = jnp.maximum(members.sum(axis=-1), 1)
    mean = jnp.sum(jnp.where(members, values, 0.0) ** 2, axis=-1) / count
    return jnp.sqrt(jnp.maximum(mean, 1e-12))


def logistic_normal_log_density(
    log_ratios: Float[Array, "*n m"],
    mean: Float[Array, "*n m"],
    scale: Float[Array, "*n m"],
    members: Bool[Array, "*#n m"],
) -> Float32[Array, "*n"]:
    """Log density of centred log-ratios `z - mean(z)` of independent `z_i ~ N(mean_i, scale_i²)`.

    The diagonal normal is integrated along the direction that centring removes.  With weights
    `w_i = 1 / scale_i²` and residuals `r_i`, the integral over shifts `c` of
    `∏ N(r_i + c; 0, 1/w_i)` is closed, and the density with respect to volume in the hyperplane is
    `sqrt(m)` times it (Aitchison and Shen 1980, doi:10.1093/biomet/67.2.261, in isotropic form).

    Args:
        log_ratios: centred over the members.
        mean: of `z`; only differences between members matter.
        scale: standard deviations of `z`, positive.
        members: which entries count; others are ignored whatever they hold.  The density of one
            member is 1: there is nothing to say.
    """
    weight = jnp.where(members, 1.0 / jnp.where(members, scale, 1.0) ** 2, 0.0)
    residual = jnp.where(members, log_ratios - mean, 0.0)
    count = jnp.maximum(members.sum(axis=-1), 1)
    total = jnp.maximum(weight.sum(axis=-1), jnp.finfo(jnp.float32).tiny)
    shift = jnp.sum(weight * residual, axis=-1) / total
    squares = jnp.sum(weight * (residual - shift[..., None] * members) ** 2, axis=-1)
    log_weights = jnp.sum(
        jnp.where(members, jnp.log(jnp.where(members, weight, 1.0)), 0.0), axis=-1
    )
    log_two_pi = jnp.log(2.0 * jnp.pi)
    return 0.5 * (
        log_weights - squares - jnp.log(total) - (count - 1) * log_two_pi + jnp.log(count)
    )
