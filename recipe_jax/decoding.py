"""Decoding of set models: sampling without repeats, beam search over sets, constraints as values.

A set model gives logits of the next food after any prefix; foods already chosen are masked here, not
in the model, so that a repeat has probability zero whatever the parameters.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules

_NEVER = jnp.finfo(jnp.float32).min


class SetDecoder(Protocol):
    """What a model offers in order to be decoded: see `IngredientGenerator`."""

    def embedding(self, molecules: Molecules) -> Float[Array, "v e"]:
        """The vectors of all foods."""
        ...

    def empty_cache(self, batch_size: int) -> Any:
        """A cache that holds nothing yet."""
        ...

    def decode(
        self,
        table: Float[Array, "v e"],
        foods: Int[Array, "b t"],
        lengths: Int[Array, "b"],
        cache: Any,
    ) -> tuple[Float32[Array, "b t v_plus_one"], Any]:
        """Read foods (-1 is the start, `v` padding); logits after each, and the cache with them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a choice is drawn from logits.

    Attributes:
        temperature: divides the logits; 0 takes the most probable.
        top_k: keeps the `k` most probable; None for all.
        top_p: keeps the fewest that hold this probability (Holtzman et al. 2020,
            arXiv:1904.09751); 1 for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be finite and not negative")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1; None keeps all")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")


class SetConstraint(NamedTuple):
    """What every decoded set must obey; required foods are the prompt.

    Attributes:
        allowed: foods that may be chosen.
        min_foods: the end is impossible before.
        max_foods: the end is certain then.
    """

    allowed: Bool[Array, "v"]
    min_foods: Int[Array, ""]
    max_foods: Int[Array, ""]


class DecodedSets(NamedTuple):
    """Decoded sets.

    Attributes:
        foods: prompt first, then what was chosen, then padding (index `v`).
        lengths: foods per row.
        log_probability: of the choices after the prompt, the end included, under the model with
            repeats and constraints masked but before temperature, top-k and top-p.
    """

    foods: Int[Array, "b m"]
    lengths: Int[Array, "b"]
    log_probability: Float32[Array, "b"]


def filter_logits(logits: Float[Array, "b v"], sampling: Sampling) -> Float[Array, "b v"]:
    """Divide by the temperature, then keep the top k, then the top p of what is left.

    What is dropped becomes the lowest finite number.  Ties at the boundary of top-k are kept.
    """
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, _NEVER, logits)
    if sampling.top_p < 1.0:
        order = jnp.argsort(logits, axis=-1, descending=True)
        ranked = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        rank = jnp.argsort(order, axis=-1)
        kept = jnp.take_along_axis(before < sampling.top_p, rank, axis=-1)
        logits = jnp.where(kept, logits, _NEVER)
    return logits


def choose(logits: Float[Array, "b v"], sampling: Sampling, key: PRNGKeyArray) -> Int[Array, "b"]:
    """Draw one choice a row; the most probable where the temperature is 0."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    return jax.random.categorical(key, filter_logits(logits, sampling), axis=-1)


def constrain(
    logits: Float[Array, "b v_plus_one"],
    chosen: Bool[Array, "b v"],
    lengths: Int[Array, "b"],
    constraint: SetConstraint,
) -> Float[Array, "b v_plus_one"]:
    """Mask foods that are chosen or not allowed, and the end before `min_foods`.

    At `max_foods`, or where no food is left, the end is the only choice.
    """
    free = constraint.allowed[None] & ~chosen
    over = (lengths >= constraint.max_foods) | ~free.any(axis=-1)
    end = over | (lengths >= constraint.min_foods)
    allowed = jnp.concatenate([free & ~over[:, None], end[:, None]], axis=-1)
    return jnp.where(allowed, logits.astype(jnp.float32), _NEVER)


class _State(NamedTuple):
    foods: Int[Array, "b m"]
    lengths: Int[Array, "b"]
    done: Bool[Array, "b"]
    chosen: Bool[Array, "b v"]
    logits: Float32[Array, "b v_plus_one"]
    log_probability: Float32[Array, "b"]
    cache: Any
    key: PRNGKeyArray


@functools.partial(jax.jit, static_argnames=("fn", "sampling"))
def sample_sets(
    fn: Any,
    params: Any,
    molecules: Molecules,
    prompt: Int[Array, "b m"],
    prompt_lengths: Int[Array, "b"],
    key: PRNGKeyArray,
    *,
    constraint: SetConstraint,
    sampling: Sampling = Sampling(),
) -> DecodedSets:
    """Complete sets of foods, one choice at a time, until every row has chosen its end.

    One prefill reads the prompts, then one `lax.while_loop` decodes with a key-value cache.

    Args:
        fn: a pure `SetDecoder`.
        params: its parameters.
        molecules: of the `v` foods.
        prompt: required foods, then padding (index `v`); `m` is the longest set there can be.
        prompt_lengths: foods in each prompt; may be 0.
        key: random key.
        constraint: what every set must obey.
        sampling: how a choice is drawn.
    """
    model = fn.bind(params)
    table = model.embedding(molecules)
    state = _prefill(model, table, prompt, prompt_lengths, key)

    def step(state: _State) -> _State:
        key, here = jax.random.split(state.key)
        logits = constrain(state.logits, state.chosen, state.lengths, constraint)
        choice = choose(logits, sampling, here)
        log_probabilities = jax.nn.log_softmax(logits, axis=-1)
        cost = jnp.take_along_axis(log_probabilities, choice[:, None], axis=-1)[:, 0]
        return _append(model, table, state, choice, cost)._replace(key=key)

    state = jax.lax.while_loop(lambda state: ~state.done.all(), step, state)
    return DecodedSets(state.foods, state.lengths, state.log_probability)


def _prefill(
    model: SetDecoder,
    table: Float[Array, "v e"],
    prompt: Int[Array, "b m"],
    lengths: Int[Array, "b"],
    key: PRNGKeyArray,
) -> _State:
    b, v = prompt.shape[0], table.shape[0]
    read = jnp.concatenate([jnp.full((b, 1), -1, prompt.dtype), prompt], axis=1)
    logits, cache = model.decode(table, read, lengths + 1, model.empty_cache(b))
    rows = jnp.arange(b)[:, None]
    chosen = jnp.zeros((b, v), bool).at[rows, prompt].set(True, mode="drop")
    return _State(
        foods=prompt,
        lengths=lengths,
        done=jnp.zeros(b, bool),
        chosen=chosen,
        logits=jnp.take_along_axis(logits, lengths[:, None, None], axis=1)[:, 0],
        log_probability=jnp.zeros(b, jnp.float32),
        cache=cache,
        key=key,
    )


def _append(
    model: SetDecoder,
    table: Float[Array, "v e"],
    state: _State,
    choice: Int[Array, "b"],
    cost: Float32[Array, "b"],
) -> _State:
    """Add each row's choice to its set, unless the row is done or its choice is the end."""
    v = table.shape[0]
    done = state.done | (choice == v)
    added = jnp.where(done, v, choice)
    rows = jnp.arange(added.shape[0])
    logits, cache = model.decode(table, added[:, None], (~done).astype(jnp.int32), state.cache)
    return state._replace(
        foods=state.foods.at[rows, jnp.where(done, state.foods.shape[1], state.lengths)].set(
            added, mode="drop"
        ),
        lengths=state.lengths + ~done,
        done=done,
        chosen=state.chosen.at[rows, added].set(True, mode="drop"),
        logits=jnp.where(done[:, None], state.logits, logits[:, 0]),
        log_probability=state.log_probability + jnp.where(state.done, 0.0, cost),
        cache=cache,
    )
