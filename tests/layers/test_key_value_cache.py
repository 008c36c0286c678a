"""The cache holds what was written, row by row and layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipe_jax.layers import key_value_cache
from recipe_jax.layers.key_value_cache import (
    KeyValueCache,
    append,
    empty_key_value_cache,
    fill,
    read_filled,
)
from recipe_jax.layers.key_value_cache import heads_of as read

B, K, D, CAPACITY, LAYERS = 3, 2, 4, 7, 2
RNG = np.random.default_rng(0)


def draw(tokens: int):
    return jnp.asarray(RNG.normal(size=(B, tokens, K, D)), jnp.float32)


def empty(layers: int | None) -> KeyValueCache:
    one = empty_key_value_cache(B, CAPACITY, K, D, jnp.dtype(jnp.float32))
    if layers is None:
        return one
    keys, values = (jnp.stack([x] * layers) for x in one[:2])
    return KeyValueCache(keys, values, one.lengths)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
def test_rows_grow_from_their_own_lengths(layer, at_once, monkeypatch):
    if at_once:  # what other devices do
        monkeypatch.setattr(key_value_cache, "_write_in_turn", key_value_cache._write_at_once)
    cache = empty(None if layer is None else LAYERS)
    index = None if layer is None else jnp.int32(layer)
    expected = np.zeros((2, B, CAPACITY, K, D), np.float32)
    lengths = np.zeros(B, int)
    write = jax.jit(lambda *given: append(*given))  # traced anew for each test
    for added in ([2, 4, 1], [1, 1, 1], [0, 1, 0]):
        keys, values = draw(max(added)), draw(max(added))
        cache = write(cache, keys, values, jnp.asarray(added, jnp.int32), index)
        for row in range(B):
            place = slice(lengths[row], lengths[row] + max(added))
            expected[0, row, place], expected[1, row, place] = keys[row], values[row]
        lengths += added
    np.testing.assert_array_equal(cache.lengths, lengths)
    np.testing.assert_array_equal(jnp.stack(read(cache, index)), expected)
    if layer is not None:
        assert not jnp.any(cache.keys[0]) and not jnp.any(cache.values[0])


def test_a_filled_cache_gives_back_its_tokens():
    keys, values = draw(5), draw(5)
    cache = fill(keys, values)
    assert cache.capacity == 5 and cache.lengths.tolist() == [5] * B
    np.testing.assert_array_equal(read(cache)[0], keys)
    np.testing.assert_array_equal(read(cache)[1], values)


@pytest.mark.parametrize("capacity", [1, 2, 7, 64])
def test_of_a_cache_the_smallest_part_is_read_that_holds_every_row(capacity):
    cache = empty_key_value_cache(2, capacity, K, D, jnp.dtype(jnp.float32))
    parts = sorted({-(-capacity * quarter // 4) for quarter in (1, 2, 3, 4)})

    @jax.jit
    def size_read(longest):
        rows = cache._replace(lengths=jnp.stack([longest, jnp.int32(0)]))
        return read_filled(rows, lambda size: jnp.float32(size))

    for longest in range(capacity + 1):
        expected = min(part for part in parts if part >= longest)
        assert size_read(jnp.int32(longest)) == expected


def test_the_first_tokens_of_a_filled_cache():
    keys, values = draw(5), draw(5)
    first = read(fill(keys, values), size=3)
    np.testing.assert_array_equal(jnp.stack(first), jnp.stack([keys[:, :3], values[:, :3]]))


def test_writing_takes_memory_for_the_tokens_not_for_the_cache():
    """In a loop, as decoding runs, no step may copy the cache."""
    cache = empty_key_value_cache(1, 4096, K, 64, jnp.dtype(jnp.float32))
    token = jnp.ones((1, 1, K, 64))

    def loop(cache):
        def step(_, cache):
            return append(cache, token, token, jnp.ones(1, jnp.int32))

        return jax.lax.fori_loop(0, 100, step, cache)

    memory = jax.jit(loop, donate_argnums=0).lower(cache).compile().memory_analysis()
    assert memory.temp_size_in_bytes < cache.keys.nbytes / 4
