"""Beam search over token sequences: one prefill for each prompt, then one jitted loop."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int

from recipe_jax.token_decoding import (
    Constraint,
    TokensSoFar,
    check_prompts,
    check_vocabulary,
    prefill,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBeamSearch:
    """How widely to search and what to prefer.

    Attributes:
        num_beams: texts that are grown at a time, and that are returned.
        length_power: texts are compared by their log-probability over this power of their number
            of generated tokens, an end token included: 0 for the log-probability itself, which
            favours short texts, 1 for the mean of the tokens (Murray and Chiang 2018,
            arXiv:1808.10006, section 4).  The same as `length_penalty` of the transformers library.
    """

    num_beams: int = 4
    length_power: float = 1.0

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ValueError(f"num_beams={self.num_beams} must be at least 1")
        if not 0.0 <= self.length_power < float("inf"):
            raise ValueError(
                f"length_power={self.length_power} must be finite and not negative: with less, a "
                "text could score higher the longer it grows, and no search could stop early"
            )


class BeamTokens(NamedTuple):
    """Distinct texts as tokens, best first.

    Where fewer exist the rest has `-inf`, length 0 and no token.

    Attributes:
        tokens: generated, an end token last where there is one, then -1.
        lengths: how many, the end token included.
        log_probability: of them under the model with the constraint.
        score: what they are sorted by.
    """

    tokens: Int[Array, "b w n"]
    lengths: Int[Array, "b w"]
    log_probability: Float32[Array, "b w"]
    score: Float32[Array, "b w"]


class _State(NamedTuple):
    """`live` texts may go on; one of log-probability `-inf` is none, whatever its tokens."""

    live: BeamTokens
    finished: BeamTokens
    last: Int[Array, "b w"]
    cache: Any


def beam_search_tokens(
    fn: Any,
    params: Any,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    *,
    max_new_tokens: int,
    ends: Sequence[int] | Int[Array, "#b ends"] = (),
    search: TokenBeamSearch = TokenBeamSearch(),
    constraint: Constraint | None = None,
    context: Any = None,
) -> BeamTokens:
    """Probable texts that continue each prompt (Sutskever et al. 2014, arXiv:1409.3215, 3.2).

    Each step keeps the `num_beams` best continuations of all live texts.  Those that ended are
    finished, and the next best that did not end take their places.  A text ends with an end token,
    at `max_new_tokens`, or where the constraint allows nothing: that end is certain, so that it
    costs nothing and the probabilities of all texts sum to one.  A constraint that allows nothing
    from the start thus leaves the empty text, with log-probability and score 0.  The last token
    tells whether a text has an end token.

    A prompt is settled when no live text can still beat the worst of `num_beams` finished ones:
    log-probabilities only fall, so a live text can reach at most its own over `max_new_tokens` to
    the `length_power` (cf. Huang et al. 2017, arXiv:1809.00069).  This finds what transformers
    finds with `early_stopping="never"`; its default stops sooner where the power is not 0, and may
    miss better texts.  One beam with a power of 0 is greedy generation; with a higher power it
    still searches on for a longer text of a better score.

    Each prompt is read once; its cache is then copied for each beam, and `num_beams` caches are
    what the search takes in memory, but for what an encoder read, which all beams share.  The
    functions compile once per shape of prompt, `max_new_tokens` and `search`.

    Args:
        fn: a pure `TokenDecoder`.
        params: its parameters.
        prompt: tokens, padded on the right with any token.
        prompt_lengths: tokens of each prompt, at least one.
        max_new_tokens: most tokens to generate.
        ends: tokens that end a text, for all rows or a row each; -1 ends nothing.
        search: how widely to search.
        constraint: which tokens may come next.  It sees `b w` rows, those of the first prompt
            first; a row that is no live text holds any tokens, and what it allows does not count.
        context: given to the model's `empty_cache`, a row for each prompt.

    Raises:
        ValueError: an empty prompt, a token that the model has not, or no room for the new tokens.
    """
    check_prompts(prompt, prompt_lengths, max_new_tokens)
    ends = jnp.asarray(ends, jnp.int32).reshape(1, -1) if isinstance(ends, Sequence) else ends
    if constraint is not None and not isinstance(constraint, jax.tree_util.Partial):
        constraint = jax.tree_util.Partial(constraint)
    capacity = prompt.shape[1] + max_new_tokens
    logits, cache = prefill(fn, params, prompt, prompt_lengths, capacity=capacity, context=context)
    check_vocabulary(prompt, prompt_lengths, logits.shape[-1])
    return _search_from(fn, params, logits, cache, ends, constraint, max_new_tokens, search)


@functools.partial(jax.jit, static_argnames=("fn", "max_new_tokens", "search"))
def _search_from(
    fn: Any,
    params: Any,
    logits: Float32[Array, "b v"],
    cache: Any,
    ends: Int[Array, "#b ends"],
    constraint: Constraint | None,
    max_new_tokens: int,
    search: TokenBeamSearch,
) -> BeamTokens:
    model, b, w = fn.bind(params), logits.shape[0], search.num_beams

    def step(state: _State) -> _State:
        reads = jnp.ones(b * w, jnp.int32)
        states, cache = model.decode(state.last.reshape(-1, 1), reads, state.cache)
        logits = model.logits(states[:, 0]).reshape(b, w, -1)
        return grow(state._replace(cache=cache), logits)

    def grow(state: _State, logits: Float32[Array, "b w v"]) -> _State:
        grown, rows = _grow(state, logits, ends, constraint, search)
        return grown._replace(cache=model.choose_rows(state.cache, rows))

    def unsettled(state: _State) -> Bool[Array, ""]:
        longest = jnp.full((b, w), max_new_tokens)
        hope = _score(state.live.log_probability, longest, search).max(axis=1)
        return jnp.any(hope > state.finished.score[:, -1])

    nothing = BeamTokens(
        tokens=jnp.full((b, w, max_new_tokens), -1, jnp.int32),
        lengths=jnp.zeros((b, w), jnp.int32),
        log_probability=jnp.full((b, w), -jnp.inf),
        score=jnp.full((b, w), -jnp.inf),
    )
    # One live text at first, the empty one: several would grow into the same texts.
    alone = nothing._replace(log_probability=nothing.log_probability.at[:, 0].set(0.0))
    caches = model.choose_rows(cache, jnp.repeat(jnp.arange(b), w))
    start = _State(alone, nothing, nothing.lengths, caches)
    first = grow(start, jnp.repeat(logits[:, None], w, axis=1))
    found = jax.lax.while_loop(unsettled, step, first).finished
    exists = jnp.isfinite(found.score)
    return found._replace(
        tokens=jnp.where(exists[..., None], found.tokens, -1),
        lengths=jnp.where(exists, found.lengths, 0),
        log_probability=jnp.where(exists, found.log_probability, -jnp.inf),
    )


def _grow(
    state: _State,
    logits: Float32[Array, "b w v"],
    ends: Int[Array, "#b ends"],
    constraint: Constraint | None,
    search: TokenBeamSearch,
) -> tuple[_State, Int[Array, "bw"]]:
    """Continue live texts by one token: the best ones, and of those the ones that ended.

    Returns:
        The state but for its cache; and of which row of that each live text is one.
    """
    live, (b, w, v) = state.live, logits.shape
    n = live.tokens.shape[2]
    steps, stops = _log_probabilities(logits, live, constraint)
    # A text has at most `ends` continuations that end, or the one by which it stops: among these
    # candidates there are `w` that go on, if there are so many at all.
    count = min(w * (1 + max(ends.shape[1], 1)), w * v)
    total = live.log_probability[..., None] + steps
    total, index = jax.lax.top_k(total.reshape(b, w * v), count)
    parent, token = index // v, (index % v).astype(jnp.int32)
    texts, stopped = _take(live, parent), jnp.take_along_axis(stops, parent, axis=1)
    added = jnp.isfinite(total) & ~stopped
    row, place = jnp.arange(b)[:, None], jnp.where(added, texts.lengths, n)
    lengths = texts.lengths + added
    texts = BeamTokens(
        tokens=texts.tokens.at[row, jnp.arange(count)[None], place].set(token, mode="drop"),
        lengths=lengths,
        log_probability=total,
        score=_score(total, lengths, search),
    )
    ended = stopped | (token[..., None] == ends[:, None]).any(axis=-1) | (lengths >= n)
    closed = texts._replace(score=jnp.where(ended, texts.score, -jnp.inf))
    both = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new[:, :w]], axis=1), state.finished, closed
    )
    best, chosen = jax.lax.top_k(jnp.where(ended, -jnp.inf, total), w)
    parent, token = (jnp.take_along_axis(x, chosen, axis=1) for x in (parent, token))
    rows = (row * w + parent).reshape(-1)
    grown = _State(
        live=_take(texts, chosen)._replace(log_probability=best),
        finished=_take(both, jax.lax.top_k(both.score, w)[1]),
        last=token,
        cache=state.cache,
    )
    return grown, rows


def _log_probabilities(
    logits: Float32[Array, "b w v"], live: BeamTokens, constraint: Constraint | None
) -> tuple[Float32[Array, "b w v"], Bool[Array, "b w"]]:
    """Of each next token; and which texts stop, since the constraint allows nothing there.

    To stop is certain, and stands in the place of token 0.
    """
    b, w, v = logits.shape
    if constraint is None:
        return jax.nn.log_softmax(logits, axis=-1), jnp.zeros((b, w), bool)
    so_far = TokensSoFar(live.tokens.reshape(b * w, -1), live.lengths.reshape(-1))
    may_come = jnp.broadcast_to(constraint(so_far), (b * w, v)).reshape(b, w, v)
    steps = jax.nn.log_softmax(logits, axis=-1, where=may_come)
    stops = ~may_come.any(axis=-1)
    stop = jnp.where(jnp.arange(v) == 0, 0.0, -jnp.inf)[None, None]
    return jnp.where(stops[..., None], stop, steps), stops


def _score(
    log_probability: Float32[Array, "b k"], lengths: Int[Array, "b k"], search: TokenBeamSearch
) -> Float32[Array, "b k"]:
    """A text without a token is certain: it scores 0 as if it had one."""
    return log_probability / jnp.maximum(lengths, 1).astype(jnp.float32) ** search.length_power


def _take(texts: BeamTokens, index: Int[Array, "b k"]) -> BeamTokens:
    def take(x: Array) -> Array:
        where = index.reshape(*index.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, where, axis=1)

    return jax.tree.map(take, texts)
