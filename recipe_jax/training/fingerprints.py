"""Numbers that change when an array does: Orbax does not verify what it reads back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32


def fingerprints(arrays: Mapping[str, Any]) -> dict[str, int]:
    """One number per array, computed where the arrays are; all processes must call."""
    return {name: int(mark) for name, mark in jax.device_get(_fingerprint_all(arrays)).items()}


def fingerprint(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """The sum of each element's bits times an odd number of its place, modulo 2**32.

    Integers, so that neither the order of summation nor a sharding changes it; odd factors, so that
    every change of a single element changes it.
    """
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return fingerprint(array.real) + 3 * fingerprint(array.imag)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for dimension in range(array.ndim):
        stride = np.uint32(np.prod(array.shape[dimension + 1 :], dtype=np.uint64) % 2**32)
        place = place + stride * jax.lax.broadcasted_iota(jnp.uint32, array.shape, dimension)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


@jax.jit
def _fingerprint_all(arrays: Mapping[str, Any]) -> dict[str, UInt32[Array, ""]]:
    return {name: fingerprint(array) for name, array in arrays.items()}
