"""Sampling of sets, food by food: no repeats, constraints and ways to choose as values.

A set model gives logits of the next food after any prefix; foods already chosen are masked here,
not in the model, so that a repeat has probability zero whatever the parameters.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules

_NEVER = jnp.finfo(jnp.float32).min


@runtime_checkable
class SetDecoder(Protocol):
    """What a model offers in order to be decoded: see `IngredientGenerator`.

    Every array of its cache has the axes `layers b …`.

    Attributes:
        cfg: its configuration, of which `max_foods` is read.
    """

    cfg: Any

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


@runtime_checkable
class PromptEncoder(Protocol):
    """What a `SetDecoder` offers too if it reads a prompt as a whole, outside its sequence."""

    def encode_prompt(
        self, table: Float[Array, "v e"], foods: Int[Array, "b p"], lengths: Int[Array, "b"]
    ) -> Any:
        """A cache that knows the prompts and holds no sequence yet."""
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

    What is dropped becomes the lowest finite number.  Ties at a boundary are kept.  A temperature
    of 0 divides by nothing.
    """
    if sampling.temperature > 0:
        # The highest becomes 0 first: a small temperature then drives no logit to infinity.
        highest = jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.maximum((logits - highest) / sampling.temperature, _NEVER)
    top_k = logits.shape[-1] if sampling.top_k is None else sampling.top_k
    if top_k >= logits.shape[-1] and sampling.top_p == 1.0:
        return logits
    ranked = jnp.sort(logits, axis=-1, descending=True)
    lowest = ranked[:, min(top_k, logits.shape[-1]) - 1][:, None]
    if sampling.top_p < 1.0:
        ranked = jnp.where(ranked < lowest, _NEVER, ranked)
        shares = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        kept = (before < sampling.top_p).at[:, 0].set(True)
        lowest = jnp.min(ranked, axis=-1, keepdims=True, where=kept, initial=jnp.inf)
    return jnp.where(logits < lowest, _NEVER, logits)


def choose(logits: Float[Array, "b v"], sampling: Sampling, key: PRNGKeyArray) -> Int[Array, "b"]:
    """Draw one choice a row; the most probable where the temperature is 0."""
    if sampling.temperature == 0:
        return _first_highest(logits)
    return jax.random.categorical(key, filter_logits(logits, sampling), axis=-1)


def _first_highest(logits: Float[Array, "b v"]) -> Int[Array, "b"]:
    """`argmax` by two plain reductions, which on CPU take a tenth of its time."""
    v = logits.shape[-1]
    is_highest = logits >= jnp.max(logits, axis=-1, keepdims=True)
    places = jnp.where(is_highest, jnp.arange(v)[None], v - 1)
    return jnp.min(places, axis=-1)


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


class Reading(NamedTuple):
    """Where every row stands in its sequence of foods.

    Attributes:
        cache: of what was read.
        lengths: foods that a row's set has so far; `prompt` names those still to be read as well.
        prompt: required foods first, then padding.
        chosen: foods that may not come again; all of the prompt from the first.
    """

    cache: Any
    lengths: Int[Array, "b"]
    prompt: Int[Array, "b m"]
    chosen: Bool[Array, "b v"]


def start_reading(
    model: SetDecoder,
    table: Float[Array, "v e"],
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
) -> Reading:
    """Before the first choice: the prompt is in a model's encoder, or to be read food by food.

    Raises:
        ValueError: if `p` is above the model's `max_foods`.
    """
    (b, p), v, m = prompt.shape, table.shape[0], model.cfg.max_foods
    if p > m:
        raise ValueError(f"prompt has {p} places, the model holds at most max_foods={m} foods")
    encodes = isinstance(model, PromptEncoder)
    return Reading(
        cache=model.encode_prompt(table, prompt, prompt_lengths)
        if encodes
        else model.empty_cache(b),
        lengths=prompt_lengths if encodes else jnp.zeros_like(prompt_lengths),
        prompt=jnp.pad(prompt, ((0, 0), (0, m - p)), constant_values=v),
        chosen=jnp.zeros((b, v), bool).at[jnp.arange(b)[:, None], prompt].set(True, mode="drop"),
    )


class _State(NamedTuple):
    sets: DecodedSets
    read: Int[Array, "b"]
    done: Bool[Array, "b"]
    chosen: Bool[Array, "b v"]
    cache: Any
    key: PRNGKeyArray


@functools.partial(jax.jit, static_argnames=("fn", "sampling"))
def sample_sets(
    fn: Any,
    params: Any,
    molecules: Molecules,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    key: PRNGKeyArray,
    *,
    constraint: SetConstraint,
    sampling: Sampling = Sampling(),
) -> DecodedSets:
    """Complete sets of foods, one choice at a time, until every row has chosen its end.

    One `lax.while_loop` reads prompts and choices alike, a food a turn, with a key-value cache: no
    row waits for the longest prompt, and none is read in parallel only to be thrown away.

    Args:
        fn: a pure `SetDecoder`; its prompt goes to the encoder if it is a `PromptEncoder`.
        params: its parameters.
        molecules: of the `v` foods.
        prompt: distinct required foods, then padding (index `v`); `p` may be 0.
        prompt_lengths: foods in each prompt; may be 0.
        key: random key.
        constraint: what every set must obey; `max_foods` above the model's counts as the model's.
        sampling: how a choice is drawn.

    Returns:
        Sets in rows of the model's `max_foods`.

    Raises:
        ValueError: if `p` is above the model's `max_foods`.
    """
    model = fn.bind(params)
    table = model.embedding(molecules)
    start = start_reading(model, table, prompt, prompt_lengths)
    b, m = start.prompt.shape
    limits = constraint._replace(max_foods=jnp.minimum(constraint.max_foods, m))
    full = prompt_lengths >= limits.max_foods
    lengths = jnp.where(full, prompt_lengths, start.lengths)
    state = _State(
        sets=DecodedSets(start.prompt, lengths, jnp.zeros(b, jnp.float32)),
        read=jnp.full(b, -1, prompt.dtype),
        done=full,
        chosen=start.chosen,
        cache=start.cache,
        key=key,
    )

    def step(state: _State) -> _State:
        key, here = jax.random.split(state.key)
        lengths, reads = state.sets.lengths, (~state.done).astype(jnp.int32)
        logits, cache = model.decode(table, state.read[:, None], reads, state.cache)
        logits = constrain(logits[:, 0], state.chosen, lengths, limits)
        choice = choose(logits, sampling, here)
        cost = _pick(jax.nn.log_softmax(logits, axis=-1), choice)
        required = lengths < prompt_lengths
        choice = jnp.where(required, _pick(start.prompt, jnp.minimum(lengths, m - 1)), choice)
        cost = jnp.where(required, 0.0, cost)
        state = _append(state._replace(cache=cache, key=key), choice, cost)
        return state._replace(done=state.done | (state.sets.lengths >= limits.max_foods))

    return jax.lax.while_loop(lambda state: ~state.done.all(), step, state).sets


def _append(state: _State, choice: Int[Array, "b"], cost: Float32[Array, "b"]) -> _State:
    """Add each row's choice to its set, unless the row is done or its choice is the end."""
    sets, (b, v) = state.sets, state.chosen.shape
    rows, m = jnp.arange(b), sets.foods.shape[1]
    done = state.done | (choice == v)
    added = jnp.where(done, v, choice)
    place = jnp.where(done, m, sets.lengths)
    grown = DecodedSets(
        foods=sets.foods.at[rows, place].set(added, mode="drop"),
        lengths=sets.lengths + ~done,
        log_probability=sets.log_probability + jnp.where(state.done, 0.0, cost),
    )
    chosen = state.chosen.at[rows, added].set(True, mode="drop")
    return state._replace(sets=grown, read=added, done=done, chosen=chosen)


def _pick(rows: Array, place: Int[Array, "b"]) -> Array:
    """One element of each row."""
    return jnp.take_along_axis(rows, place[:, None], axis=1)[:, 0]
