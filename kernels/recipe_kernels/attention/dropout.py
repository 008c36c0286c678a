"""Which weights are dropped: a hash of seed, query and key, the same in every kernel and direction.

Nothing is stored between forward and backward, and a tile needs no other tile.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32


def kept(
    seeds: UInt32[Array, "... h"], i: Int[Array, "t"], j: Int[Array, "s"], rate: float
) -> Bool[Array, "... h t s"]:
    """True where a weight is kept, with probability `1 - rate`.

    The hash is the finalizer of MurmurHash3 (Appleby 2011), once over seed and query, once more
    over that and the key.

    Args:
        seeds: one for each row of the batch and head.
        i: queries.
        j: keys.
        rate: probability of dropping a weight.
    """
    outer = (1,) * seeds.ndim
    of_queries, of_keys = i.reshape(*outer, -1, 1), j.reshape(*outer, 1, -1)
    return kept_pairs(seeds[..., None, None], of_queries, of_keys, rate)


def kept_pairs(
    seeds: UInt32[Array, "*#x"], i: Int[Array, "*#x"], j: Int[Array, "*#x"], rate: float
) -> Bool[Array, "*#x"]:
    """`kept`, of arrays that broadcast against each other."""
    of_query = _mixed(seeds ^ (i.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)))
    of_pair = of_query ^ (j.astype(jnp.uint32) * jnp.uint32(0x85EBCA77))
    # As signed integers: what compares unsigned ones wrongly is the TPU (jax-ml/jax issue 23972).
    ordered = (_mixed(of_pair) ^ jnp.uint32(2**31)).astype(jnp.int32)
    return ordered >= jnp.int32(threshold(rate) - 2**31)


def threshold(rate: float) -> int:
    """The hash from which on a weight is kept; at most the highest."""
    return min(round(rate * 2**32), 2**32 - 1)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
