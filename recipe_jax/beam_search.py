"""Beam search over sets: beams that hold the same foods in another order are one beam."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from recipe_jax.batches import Molecules
from recipe_jax.decoding import SetConstraint, constrain, start_reading

_NEVER = jnp.finfo(jnp.float32).min


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How widely to search and what to prefer.

    Attributes:
        num_beams: sets that are grown at a time, and that are returned.
        length_power: sets are compared by their log-probability over this power of the number of
            choices in it: 0 for the log-probability itself, which favours short sets, 1 for the
            mean of the choices (Murray and Chiang 2018, arXiv:1808.10006, section 4).
    """

    num_beams: int = 8
    length_power: float = 0.0

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ValueError(f"num_beams={self.num_beams} must be at least 1")
        if not 0.0 <= self.length_power <= 1.0:
            raise ValueError(f"length_power={self.length_power} must be from 0 to 1")


class BeamSets(NamedTuple):
    """Distinct sets, best first.  Where fewer exist the rest has `-inf`, length 0 and padding.

    Attributes:
        foods: prompt first, then in the order found, then padding (index `v`).
        lengths: foods per set.
        log_probability: of the choices after the prompt in the best order found, the end included.
            A set's own probability is the sum over all orders and so at least as high.
        score: what they are sorted by.
    """

    foods: Int[Array, "b w m"]
    lengths: Int[Array, "b w"]
    log_probability: Float32[Array, "b w"]
    score: Float32[Array, "b w"]


class _State(NamedTuple):
    live: BeamSets
    finished: BeamSets
    read: Int[Array, "b w"]
    chosen: Bool[Array, "b w v"]
    cache: Any


@functools.partial(jax.jit, static_argnames=("fn", "search"))
def beam_search(
    fn: Any,
    params: Any,
    molecules: Molecules,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    *,
    constraint: SetConstraint,
    search: BeamSearch = BeamSearch(),
) -> BeamSets:
    """Probable sets that complete each prompt.

    Ends when no growing set can still beat the worst of `num_beams` finished ones.  Of one set in
    several orders the most probable order goes on, which is all that a cache can hold.

    Args:
        fn: a pure `SetDecoder`; its prompt goes to the encoder if it is a `PromptEncoder`.
        params: its parameters.
        molecules: of the `v` foods.
        prompt: distinct required foods, then padding (index `v`); `p` may be 0.
        prompt_lengths: foods in each prompt; may be 0.
        constraint: what every set must obey; `max_foods` above the model's counts as the model's.
        search: how widely to search.

    Raises:
        ValueError: if `p` is above the model's `max_foods`.
    """
    model = fn.bind(params)
    table = model.embedding(molecules)
    w, v = search.num_beams, table.shape[0]
    rows = jnp.repeat(prompt, w, axis=0), jnp.repeat(prompt_lengths, w)
    start = start_reading(model, table, *rows)
    b, m = prompt.shape[0], start.prompt.shape[1]
    limits = constraint._replace(max_foods=jnp.minimum(constraint.max_foods, m))
    required = start.prompt.reshape(b, w, m)[:, 0]
    alone = jnp.where(jnp.arange(w)[None] == 0, 0.0, -jnp.inf)
    alone = jnp.broadcast_to(alone, (b, w))
    live = BeamSets(start.prompt.reshape(b, w, m), start.lengths.reshape(b, w), alone, alone)
    nothing = jnp.full((b, w), -jnp.inf)
    finished = BeamSets(jnp.full((b, w, m), v, prompt.dtype), live.lengths * 0, nothing, nothing)
    first = jnp.full((b, w), -1, prompt.dtype)
    state = _State(live, finished, first, start.chosen.reshape(b, w, v), start.cache)

    def step(state: _State) -> _State:
        live = state.live
        logits, cache = model.decode(
            table, state.read.reshape(-1, 1), jnp.ones(b * w, jnp.int32), state.cache
        )
        logits = logits[:, 0].reshape(b, w, v + 1)
        logits = jax.vmap(constrain, (0, 0, 0, None))(logits, state.chosen, live.lengths, limits)
        steps = jnp.where(logits > _NEVER, jax.nn.log_softmax(logits, axis=-1), -jnp.inf)
        place = jnp.minimum(live.lengths[:, 0], m - 1)[:, None]
        is_next = jnp.arange(v + 1)[None] == jnp.take_along_axis(required, place, axis=1)
        is_forced = (live.lengths < prompt_lengths[:, None])[..., None]
        steps = jnp.where(is_forced, jnp.where(is_next, 0.0, -jnp.inf)[:, None], steps)
        total = live.log_probability[..., None] + steps
        choices = jnp.maximum(live.lengths - prompt_lengths[:, None] + 1, 1).astype(jnp.float32)
        ended = live._replace(
            log_probability=total[..., v], score=total[..., v] / choices**search.length_power
        )
        finished = _best(_join(state.finished, ended), w)
        return _grow(state._replace(finished=finished, cache=cache), total[..., :v])

    def unsettled(state: _State) -> Array:
        most = jnp.maximum(limits.max_foods - prompt_lengths, 0).astype(jnp.float32) + 1.0
        hope = jnp.max(state.live.log_probability, axis=1) / most**search.length_power
        return jnp.any(hope > state.finished.score[:, -1])

    found = jax.lax.while_loop(unsettled, step, state).finished
    exists = jnp.isfinite(found.score)
    return found._replace(
        foods=jnp.where(exists[..., None], found.foods, v),
        lengths=jnp.where(exists, found.lengths, 0),
    )


def _grow(state: _State, total: Float[Array, "b w v"]) -> _State:
    """The best `w` distinct sets that are one food larger; the others are forgotten."""
    b, w, v = total.shape
    live = state.live
    # A set comes from at most one parent per food and `w` parents in all: among the best `w²`
    # candidates there are `w` distinct ones, if there are so many at all.
    count = min(w * w, w * v)
    candidates, index = jax.lax.top_k(total.reshape(b, w * v), count)
    parent, food = index // v, index % v
    earlier = jnp.tril(jnp.ones((1, count, count), bool), -1)
    twins = _same_set(state.chosen, parent, food) & earlier
    candidates = jnp.where(twins.any(axis=2), -jnp.inf, candidates)
    best, index = jax.lax.top_k(candidates, w)
    parent, food = (jnp.take_along_axis(x, index, axis=1) for x in (parent, food))
    kept = _take(live, parent)
    alive = jnp.isfinite(best)
    row, beam = jnp.arange(b)[:, None], jnp.arange(w)[None]
    place = jnp.where(alive, kept.lengths, live.foods.shape[2])
    food = food.astype(live.foods.dtype)
    cache_rows = (row * w + parent).reshape(-1)
    return state._replace(
        live=BeamSets(
            foods=kept.foods.at[row, beam, place].set(food, mode="drop"),
            lengths=kept.lengths + 1,
            log_probability=best,
            score=best,
        ),
        read=food,
        chosen=jnp.take_along_axis(state.chosen, parent[..., None], axis=1)
        .at[row, beam, food]
        .set(True),
        cache=jax.tree.map(lambda x: x[:, cache_rows], state.cache),
    )


def _same_set(
    chosen: Bool[Array, "b w v"],
    parent: Int[Array, "b c"],
    food: Int[Array, "b c"],
) -> Bool[Array, "b c c"]:
    """Which candidates, each a parent and one more food, are one set: exactly, not by a hash.

    Sets `A + f` and `B + g` of one size are equal where `f` is in `B`, `g` in `A`, and `A` and `B`
    share all but one food.
    """
    hot = chosen.astype(jnp.float32)
    shared = jnp.einsum("biv,bjv->bij", hot, hot).astype(jnp.int32)
    close = shared == jnp.sum(chosen, axis=2)[:, :, None] - 1
    row = jnp.arange(parent.shape[0])[:, None, None]
    left, right = parent[:, :, None], parent[:, None, :]
    holds = chosen[row, right, food[:, :, None]] & chosen[row, left, food[:, None, :]]
    return close[row, left, right] & holds


def _best(sets: BeamSets, count: int) -> BeamSets:
    score, index = jax.lax.top_k(sets.score, count)
    return _take(sets, index)._replace(score=score)


def _join(left: BeamSets, right: BeamSets) -> BeamSets:
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), left, right)


def _take(sets: BeamSets, index: Int[Array, "b k"]) -> BeamSets:
    def take(x: Array) -> Array:
        where = index.reshape(*index.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, where, axis=1)

    return jax.tree.map(take, sets)
