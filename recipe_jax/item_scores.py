"""The log-probability of every item of a small catalogue: what a beam search is measured by."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from recipe_jax.token_decoding import check_prompts, prefill


def score_items(
    fn: Any,
    params: Any,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    *,
    codes: Int[Array, "n q"] | Int[np.ndarray, "n q"],
    level_tokens: tuple[int, ...],
    context: Any = None,
    items_at_a_time: int = 256,
) -> Float32[Array, "b n"]:
    """Log-probability of each item's ID after each prompt, in nats, among all tokens of the model.

    Every ID is read whole, `n q` tokens for each prompt, so this is for catalogues of thousands.
    `search_items` finds the best of the same numbers.

    Args:
        fn: a pure `TokenDecoder`.
        params: its parameters.
        prompt: tokens, padded on the right with any token.
        prompt_lengths: tokens of each prompt, at least one.
        codes: IDs of the items.
        level_tokens: the token of code 0 of each level.
        context: given to the model's `empty_cache`.
        items_at_a_time: caches that exist at a time, for each prompt.

    Raises:
        ValueError: an empty prompt, or codes that have not one column a level.
    """
    check_prompts(prompt, prompt_lengths, max_new_tokens=len(level_tokens))
    if codes.ndim != 2 or codes.shape[1] != len(level_tokens):
        raise ValueError(
            f"codes have shape {codes.shape}, must have a column for each of "
            f"{len(level_tokens)} level_tokens"
        )
    capacity = prompt.shape[1] + len(level_tokens) - 1
    logits, cache = prefill(fn, params, prompt, prompt_lengths, capacity=capacity, context=context)
    tokens = jnp.asarray(codes, jnp.int32) + jnp.array(level_tokens, jnp.int32)[None]
    return _score(fn, params, logits, cache, tokens, items_at_a_time)


@functools.partial(jax.jit, static_argnames=("fn", "items_at_a_time"))
def _score(
    fn: Any,
    params: Any,
    logits: Float32[Array, "b v"],
    cache: Any,
    tokens: Int[Array, "n q"],
    items_at_a_time: int,
) -> Float32[Array, "b n"]:
    model, b, (n, q) = fn.bind(params), logits.shape[0], tokens.shape
    count = min(items_at_a_time, n)
    start = jax.nn.log_softmax(logits, axis=1)[:, tokens[:, 0]]
    if q == 1:
        return start
    caches = model.choose_rows(cache, jnp.repeat(jnp.arange(b), count))

    def rest(tokens: Int[Array, "i q"]) -> Float32[Array, "b i"]:
        rows = jnp.tile(tokens, (b, 1))
        read = jnp.full(len(rows), q - 1, jnp.int32)
        states, _ = model.decode(rows[:, :-1], read, caches)
        found = jax.nn.log_softmax(model.logits(states), axis=2)
        found = jnp.take_along_axis(found, rows[:, 1:, None], axis=2)
        return found.sum(axis=(1, 2)).reshape(b, -1)

    parts = jnp.pad(tokens, ((0, -n % count), (0, 0))).reshape(-1, count, q)
    return start + jax.lax.map(rest, parts).swapaxes(0, 1).reshape(b, -1)[:, :n]
