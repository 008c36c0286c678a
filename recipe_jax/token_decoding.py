"""Generation of token sequences: one jitted prefill, then one jitted loop over a fixed-size cache.

The loop never returns to the host before every row has ended.  What may come next is decided in
this order: repetition penalty, constraint, temperature, top-k, top-p.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.decoding import Sampling, choose

_NEVER = jnp.finfo(jnp.float32).min
_GREEDY = Sampling(temperature=0.0)


@runtime_checkable
class TokenDecoder(Protocol):
    """What a model offers in order to be decoded: see `CausalLanguageModel`."""

    def empty_cache(self, batch_size: int, capacity: int, context: Any = None) -> Any:
        """A cache that holds no token yet, and what the model knows of a context."""
        ...

    def decode(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, "b"], cache: Any
    ) -> tuple[Float[Array, "b t e"], Any]:
        """Read the first `lengths` tokens of each row; a state after each, and the cache."""
        ...

    def choose_rows(self, cache: Any, rows: Int[Array, "n"]) -> Any:
        """The cache of rows that go on from chosen ones; of a search, from those it keeps.

        Each row of the context has as many of them as any other, those of the first first: what
        was read of a context need not be copied.
        """
        ...

    def logits(self, states: Float[Array, "... e"]) -> Float32[Array, "... v"]:
        """Logits of the next token."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSampling(Sampling):
    """How a token is drawn from logits.

    Attributes:
        repetition_penalty: positive logits of tokens that the prompt or the text so far holds are
            divided by it, negative ones multiplied (Keskar et al. 2019, arXiv:1909.05858, section
            4.1, in the form of the transformers library); 1 for none.
    """

    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be positive; 1 for none"
            )


class TokensSoFar(NamedTuple):
    """What a constraint sees of each row.

    Attributes:
        tokens: generated so far, without the prompt; the rest is -1.
        lengths: how many.
    """

    tokens: Int[Array, "b n"]
    lengths: Int[Array, "b"]


Constraint: TypeAlias = Callable[[TokensSoFar], Bool[Array, "#b v"]]
"""Which tokens may come next: a pure function.  Arrays it needs belong in a
`jax.tree_util.Partial(function, *arrays)`, with which it is compiled once for all their values."""

OnToken: TypeAlias = Callable[[np.ndarray, np.ndarray], None]
"""Called on the host with each step's tokens `b` and with which rows they are for."""


class GeneratedTokens(NamedTuple):
    """Texts as tokens.

    Attributes:
        tokens: generated, an end token last where there is one, then -1.
        lengths: how many, the end token included.
        log_probability: of them under the model with the constraint, but before penalty,
            temperature, top-k and top-p.
    """

    tokens: Int[Array, "b n"]
    lengths: Int[Array, "b"]
    log_probability: Float32[Array, "b"]


class _State(NamedTuple):
    texts: GeneratedTokens
    last: Int[Array, "b"]
    done: Bool[Array, "b"]
    seen: Bool[Array, "b v"] | None
    cache: Any
    key: PRNGKeyArray


def generate(
    fn: Any,
    params: Any,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    *,
    max_new_tokens: int,
    ends: Sequence[int] | Int[Array, "#b ends"] = (),
    sampling: Sampling = _GREEDY,
    key: PRNGKeyArray | None = None,
    constraint: Constraint | None = None,
    context: Any = None,
    on_token: OnToken | None = None,
) -> GeneratedTokens:
    """Continue every prompt until it has ended or has `max_new_tokens` more.

    A row ends after one of its end tokens, or where the constraint allows nothing.  The functions
    compile once per shape of prompt and `max_new_tokens`.

    Args:
        fn: a pure `TokenDecoder`.
        params: its parameters.
        prompt: tokens, padded on the right with any token.
        prompt_lengths: tokens of each prompt, at least one.
        max_new_tokens: most tokens to generate.
        ends: tokens that end a text, for all rows or a row each; -1 ends nothing.
        sampling: how a token is drawn; the most probable one by default.
        key: random key; needed unless the temperature is 0.
        constraint: which tokens may come next.
        context: given to the model's `empty_cache`, such as what an encoder reads.
        on_token: called on the host for each token, to stream a text while it grows.

    Raises:
        ValueError: an empty prompt, a token that the model has not, no room for the new tokens, or
            sampling without a key.
    """
    check_prompts(prompt, prompt_lengths, max_new_tokens)
    if key is None and sampling.temperature > 0:
        raise ValueError(f"temperature={sampling.temperature} needs a key; 0 needs none")
    ends = jnp.asarray(ends, jnp.int32).reshape(1, -1) if isinstance(ends, Sequence) else ends
    if constraint is not None and not isinstance(constraint, jax.tree_util.Partial):
        constraint = jax.tree_util.Partial(constraint)
    logits, cache = prefill(
        fn,
        params,
        prompt,
        prompt_lengths,
        capacity=prompt.shape[1] + max_new_tokens,
        context=context,
    )
    check_vocabulary(prompt, prompt_lengths, logits.shape[-1])
    penalised = getattr(sampling, "repetition_penalty", 1.0) != 1.0
    seen = _tokens_of(prompt, prompt_lengths, logits.shape[-1]) if penalised else None
    key = jax.random.key(0) if key is None else key
    return _generate_from(
        fn, params, logits, cache, seen, ends, key, constraint, max_new_tokens, sampling, on_token
    )


def check_prompts(
    prompt: Int[Array, "b p"], prompt_lengths: Int[Array, "b"], max_new_tokens: int
) -> None:
    """Refuse what cannot be continued; under jit lengths are not known, and not checked.

    Args:
        prompt: tokens, padded on the right.
        prompt_lengths: tokens of each prompt.
        max_new_tokens: most tokens to generate.

    Raises:
        ValueError: no rows of tokens, an empty prompt, one longer than its row, or no token to
            generate.
    """
    if prompt.ndim != 2 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(
            f"prompt has shape {prompt.shape} and dtype {prompt.dtype}, must be rows of tokens: "
            "whole numbers, padded on the right"
        )
    p = prompt.shape[1]
    if not isinstance(prompt_lengths, Tracer):
        lengths = np.asarray(prompt_lengths)
        for row in np.flatnonzero((lengths < 1) | (lengths > p)):
            raise ValueError(
                f"prompt {row} has {lengths[row]} tokens, must have from 1 to {p}: start an empty "
                "text with the token that begins one"
            )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")


def check_vocabulary(
    prompt: Int[Array, "b p"], prompt_lengths: Int[Array, "b"], vocab_size: int
) -> None:
    """Refuse tokens that no row of the embedding stands for; under jit they are not checked.

    Args:
        prompt: tokens, padded on the right with any token.
        prompt_lengths: tokens of each prompt.
        vocab_size: tokens that the model has.

    Raises:
        ValueError: names the first such token.
    """
    if isinstance(prompt, Tracer) or isinstance(prompt_lengths, Tracer):
        return
    tokens, lengths = np.asarray(prompt), np.asarray(prompt_lengths)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    for row, place in np.argwhere(real & ((tokens < 0) | (tokens >= vocab_size))):
        raise ValueError(
            f"prompt {row} has token {tokens[row, place]}, must be from 0 to {vocab_size - 1}"
        )


@functools.partial(jax.jit, static_argnames=("fn", "capacity"))
def prefill(
    fn: Any,
    params: Any,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    *,
    capacity: int,
    context: Any = None,
) -> tuple[Float32[Array, "b v"], Any]:
    """Read all prompts at once: logits of the token that follows each, and the cache.

    Args:
        fn: a pure `TokenDecoder`.
        params: its parameters.
        prompt: tokens, padded on the right.
        prompt_lengths: tokens of each prompt, at least one.
        capacity: tokens that the cache shall have room for, the prompt included.
        context: given to the model's `empty_cache`.
    """
    model = fn.bind(params)
    cache = model.empty_cache(prompt.shape[0], capacity, context)
    states, cache = model.decode(prompt, prompt_lengths, cache)
    last = (prompt_lengths - 1)[:, None, None]
    return model.logits(jnp.take_along_axis(states, last, axis=1)[:, 0]), cache


@functools.partial(jax.jit, static_argnames=("fn", "max_new_tokens", "sampling", "on_token"))
def _generate_from(
    fn: Any,
    params: Any,
    logits: Float32[Array, "b v"],
    cache: Any,
    seen: Bool[Array, "b v"] | None,
    ends: Int[Array, "#b ends"],
    key: PRNGKeyArray,
    constraint: Constraint | None,
    max_new_tokens: int,
    sampling: Sampling,
    on_token: OnToken | None,
) -> GeneratedTokens:
    model, b = fn.bind(params), logits.shape[0]

    def append(state: _State, logits: Float32[Array, "b v"]) -> _State:
        """Choose a token for every row that has not ended."""
        texts, (key, here) = state.texts, jax.random.split(state.key)
        allowed, possible = logits, jnp.ones(b, bool)
        if constraint is not None:
            may_come = constraint(TokensSoFar(texts.tokens, texts.lengths))
            may_come = jnp.broadcast_to(may_come, logits.shape)
            allowed, possible = jnp.where(may_come, logits, _NEVER), may_come.any(axis=-1)
        weighed = allowed
        if state.seen is not None:
            weighed = jnp.where(state.seen, _penalise(logits, sampling), logits)
            weighed = jnp.where(allowed > _NEVER, weighed, _NEVER)
        token = choose(weighed, sampling, here).astype(jnp.int32)
        added = possible & ~state.done
        nats = jax.nn.logsumexp(allowed, axis=-1) - _pick(allowed, token)
        if on_token is not None:
            io_callback(on_token, None, token, added, ordered=True)
        rows, place = jnp.arange(b), jnp.where(added, texts.lengths, max_new_tokens)
        grown = GeneratedTokens(
            tokens=texts.tokens.at[rows, place].set(token, mode="drop"),
            lengths=texts.lengths + added,
            log_probability=texts.log_probability - jnp.where(added, nats, 0.0),
        )
        ended = ~added | (token[:, None] == ends).any(axis=-1)
        seen = None if state.seen is None else state.seen.at[rows, token].set(True)
        return state._replace(texts=grown, last=token, done=ended, seen=seen, key=key)

    def step(state: _State) -> _State:
        reads = (~state.done).astype(jnp.int32)
        states, cache = model.decode(state.last[:, None], reads, state.cache)
        return append(state._replace(cache=cache), model.logits(states[:, 0]))

    def unfinished(state: _State) -> Bool[Array, ""]:
        return ~(state.done | (state.texts.lengths >= max_new_tokens)).all()

    nothing = GeneratedTokens(
        tokens=jnp.full((b, max_new_tokens), -1, jnp.int32),
        lengths=jnp.zeros(b, jnp.int32),
        log_probability=jnp.zeros(b, jnp.float32),
    )
    nowhere = jnp.zeros(b, jnp.int32)
    start = _State(nothing, nowhere, jnp.zeros(b, bool), seen, cache, key)
    return jax.lax.while_loop(unfinished, step, append(start, logits)).texts


def _penalise(logits: Float32[Array, "b v"], sampling: Sampling) -> Float32[Array, "b v"]:
    penalty = getattr(sampling, "repetition_penalty", 1.0)
    return jnp.where(logits > 0, logits / penalty, logits * penalty)


@functools.partial(jax.jit, static_argnames="vocab_size")
def _tokens_of(
    tokens: Int[Array, "b p"], lengths: Int[Array, "b"], vocab_size: int
) -> Bool[Array, "b v"]:
    """Which tokens each row holds."""
    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    places = jnp.where(real, tokens, vocab_size)
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, places].set(True, mode="drop")


def _pick(rows: Float[Array, "b v"], place: Int[Array, "b"]) -> Float[Array, "b"]:
    """One element of each row."""
    return jnp.take_along_axis(rows, place[:, None], axis=1)[:, 0]
