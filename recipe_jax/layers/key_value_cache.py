"""Keys and values of the tokens read so far, in arrays of a fixed size."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NUM_PARTS = 4
"""Of a cache, that can be read without the rest."""


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens read so far, of one layer or of all layers of a stack.

    They lie as the two products of attention read them, a matrix for each head: keys with tokens
    last, values with features last.

    Attributes:
        keys: heads as they are compared with queries: normalized and rotated.
        values: heads as they are averaged.
        lengths: how many tokens of each row there are.
    """

    keys: Float[Array, "*layers b k d s"]
    values: Float[Array, "*layers b k s d"]
    lengths: Int[Array, "*layers b"]

    @property
    def capacity(self) -> int:
        """For how many tokens there is room."""
        return self.values.shape[-2]


def empty_key_value_cache(
    batch_size: int, capacity: int, num_heads: int, head_dim: int, dtype: jnp.dtype
) -> KeyValueCache:
    """The cache of one layer, without a token."""
    return KeyValueCache(
        keys=jnp.zeros((batch_size, num_heads, head_dim, capacity), dtype),
        values=jnp.zeros((batch_size, num_heads, capacity, head_dim), dtype),
        lengths=jnp.zeros(batch_size, jnp.int32),
    )


def fill(keys: Float[Array, "b s k d"], values: Float[Array, "b s k d"]) -> KeyValueCache:
    """The cache of one layer that holds these tokens and has no room for more."""
    b, s = keys.shape[:2]
    lengths = jnp.full(b, s, jnp.int32)
    return KeyValueCache(keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2), lengths)


def append(
    cache: KeyValueCache,
    keys: Float[Array, "b t k d"],
    values: Float[Array, "b t k d"],
    added: Int[Array, "b"],
    layer: Int[Array, ""] | None = None,
) -> KeyValueCache:
    """Write new tokens behind those of each row.

    Only the new tokens are written, whatever the size of the cache: where the caller does not use
    the old cache again, the compiler writes in place.

    Args:
        cache: of one layer; or keys and values of all and the `lengths` of one, where `layer` is
            given.  The caller sees to it that the tokens fit: under jit, those beyond the capacity
            are lost or overwrite the last ones.
        keys: of the new tokens.
        values: of the new tokens.
        added: how many of them are real; later tokens overwrite the rest.
        layer: which one of the stack.
    """
    new = fill(keys, values)
    here = () if layer is None else (layer,)
    keys, values = jax.lax.platform_dependent(
        (cache.keys, cache.values),
        (new.keys.astype(cache.keys.dtype), new.values.astype(cache.values.dtype)),
        cache.lengths,
        here,
        cpu=_write_in_turn,
        default=_write_at_once,
    )
    return KeyValueCache(keys, values, cache.lengths + added)


def heads_of(
    cache: KeyValueCache, layer: Int[Array, ""] | None = None, size: int | None = None
) -> tuple[Float[Array, "b s k d"], Float[Array, "b s k d"]]:
    """Keys and values of one layer, as attention takes them; of the first `size` tokens."""
    keys, values = cache.keys, cache.values
    if layer is not None:
        keys, values = keys[layer], values[layer]
    keys, values = keys[..., :size], values[..., :size, :]
    return keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)


def read_filled(
    cache: KeyValueCache, read: Callable[[int], Float[Array, "..."]]
) -> Float[Array, "..."]:
    """Read a part of the cache that holds the tokens of every row, not the room behind them.

    On CPU, where a step of decoding takes as long as what it reads, the part is the smallest that
    suffices of a few; elsewhere a branch would wait for the device, and the part is all.

    Args:
        cache: of one layer, the new tokens written.
        read: what is done with the first tokens, given how many.
    """
    sizes = sorted({-(-cache.capacity * part // NUM_PARTS) for part in range(1, NUM_PARTS + 1)})
    needed = jnp.searchsorted(jnp.array(sizes), cache.lengths.max())

    def smallest(needed: Array) -> Array:
        return jax.lax.switch(needed, [functools.partial(read, size) for size in sizes])

    def all_of_it(needed: Array) -> Array:
        del needed
        return read(cache.capacity)

    return jax.lax.platform_dependent(needed, cpu=smallest, default=all_of_it)


_Pair: TypeAlias = tuple[Array, Array]
"""Keys and values."""


def _write_in_turn(cached: _Pair, new: _Pair, starts: Array, layer: tuple[Array, ...]) -> _Pair:
    """Row after row, each a block in place: on CPU a scatter takes longer."""

    def put(old: Array, block: Array, start: tuple[int | Array, ...]) -> Array:
        block = block.reshape((1,) * (old.ndim - block.ndim) + block.shape)
        return jax.lax.dynamic_update_slice(old, block, start)

    def write_row(row: Array, cached: _Pair) -> _Pair:
        keys, values = cached
        return (
            put(keys, new[0][row], (*layer, row, 0, 0, starts[row])),
            put(values, new[1][row], (*layer, row, 0, starts[row], 0)),
        )

    return jax.lax.fori_loop(0, starts.shape[0], write_row, cached)


def _write_at_once(cached: _Pair, new: _Pair, starts: Array, layer: tuple[Array, ...]) -> _Pair:
    """All rows in one scatter."""
    rows = jnp.arange(starts.shape[0])[:, None]
    places = starts[:, None] + jnp.arange(new[1].shape[2])[None]
    keys, values = cached
    return (
        keys.at[*layer, rows, :, :, places].set(new[0].transpose(0, 3, 1, 2), mode="drop"),
        values.at[*layer, rows, :, places].set(new[1].swapaxes(1, 2), mode="drop"),
    )
