"""Beam search that can only name items: every ID that it finds is one of a catalogue.

All levels of the search run in one jitted function, with the model's cache; nothing goes to the
host between.  A step looks at the children of the live nodes alone, so that its time depends on how
many these are at most, and not on the number of items or on the words of the model.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float32, Int, Int32

from recipe_jax.prefix_index import PrefixIndex
from recipe_jax.token_decoding import check_prompts, check_vocabulary, prefill


class Available(NamedTuple):
    """Which items may be named; all of the indexes if nothing is given.

    Attributes:
        counts: of each index, `count_allowed`, or None where all of it may; or nothing at all.
        excluded: items that a row may not name, such as what its user knows; -1 is no item.
    """

    counts: tuple[Int32[Array, "#b leaves"] | None, ...] = ()
    excluded: Int32[Array, "b x"] | None = None


class FoundItems(NamedTuple):
    """Distinct items, best first.

    Attributes:
        items: which; -1 where there are no more.
        codes: their IDs; -1 where there are no more.
        log_probability: of the ID's codes, in nats; `-inf` where there are no more.
    """

    items: Int32[Array, "b w"]
    codes: Int32[Array, "b w q"]
    log_probability: Float32[Array, "b w"]


class _Beams(NamedTuple):
    """Live prefixes of one length; one of log-probability `-inf` is none.

    `nodes` are where they stand in each index, -1 where that has no such prefix.
    """

    nodes: tuple[Int32[Array, "b w"], ...]
    codes: Int32[Array, "b w q"]
    log_probability: Float32[Array, "b w"]


class _Children(NamedTuple):
    """By which codes prefixes go on, and where they then stand in each index."""

    codes: Int32[Array, "b w c"]
    nodes: tuple[Int32[Array, "b w c"], ...]
    is_live: Bool[Array, "b w c"]


_ALL = Available()


def search_items(
    fn: Any,
    params: Any,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    *,
    indexes: Sequence[PrefixIndex],
    level_tokens: Sequence[int],
    num_beams: int,
    available: Available = _ALL,
    renormalize: bool = False,
    context: Any = None,
) -> FoundItems:
    """The most probable items that follow each prompt, among those that may be named.

    The model writes an ID code by code.  Of all prefixes of IDs that lead to such an item, each
    step keeps the `num_beams` most probable; what leads to none is never looked at.  With at least
    as many beams as there are items the search is exact.  There are `num_beams` results wherever
    there are so many items: a prefix that is kept leads to one.

    Args:
        fn: a pure `TokenDecoder`.
        params: its parameters.
        prompt: tokens, padded on the right with any token; an ID follows.
        prompt_lengths: tokens of each prompt, at least one.
        indexes: trees of IDs that are searched as one: such as that of the catalogue, and a small
            one, made with a capacity, of items that came later.  No item and no ID is in two.
        level_tokens: the token of code 0 of each level; that of code `c` is `c` further.
        num_beams: prefixes that are kept, and items that are found.
        available: which items may be named.
        renormalize: take the probability of a code among those that may follow, as if the model
            had never learned of others: probabilities of all items then sum to one.  By default it
            is that among all tokens of the model.
        context: given to the model's `empty_cache`, such as what an encoder reads.

    Raises:
        ValueError: indexes that do not fit each other, the model or the prompt, or no item in them.
    """
    check_prompts(prompt, prompt_lengths, max_new_tokens=len(level_tokens))
    indexes = tuple(indexes)
    _check_indexes(indexes, level_tokens, num_beams)
    _check_available(indexes, available, prompt.shape[0])
    capacity = prompt.shape[1] + len(level_tokens) - 1
    logits, cache = prefill(fn, params, prompt, prompt_lengths, capacity=capacity, context=context)
    check_vocabulary(prompt, prompt_lengths, logits.shape[-1])
    for level, (first, size) in enumerate(zip(level_tokens, indexes[0].sizes, strict=True)):
        if not 0 <= first <= logits.shape[-1] - size:
            raise ValueError(
                f"level_tokens[{level}]={first} must leave room for {size} codes among the "
                f"model's {logits.shape[-1]} tokens"
            )
    return _search(
        fn,
        params,
        logits,
        cache,
        indexes,
        available,
        level_tokens=tuple(level_tokens),
        num_beams=num_beams,
        renormalize=renormalize,
    )


@functools.partial(jax.jit, static_argnames=("fn", "level_tokens", "num_beams", "renormalize"))
def _search(
    fn: Any,
    params: Any,
    logits: Float32[Array, "b v"],
    cache: Any,
    indexes: tuple[PrefixIndex, ...],
    available: Available,
    *,
    level_tokens: tuple[int, ...],
    num_beams: int,
    renormalize: bool,
) -> FoundItems:
    model, b, q = fn.bind(params), logits.shape[0], len(level_tokens)
    excluded = tuple(_excluded_leaves(index, i, available) for i, index in enumerate(indexes))
    beams = _Beams(
        nodes=tuple(jnp.zeros((b, 1), jnp.int32) for _ in indexes),
        codes=jnp.full((b, 1, q), -1, jnp.int32),
        log_probability=jnp.zeros((b, 1)),
    )
    logits = logits[:, None]
    for level, first in enumerate(level_tokens):
        children = _children(indexes, beams.nodes, level, available, excluded)
        steps = _log_probabilities(logits, children, first, renormalize)
        beams, rows = _grow(beams, children, steps, level, num_beams)
        if level == q - 1:
            break
        cache = model.choose_rows(cache, rows)
        tokens = jnp.maximum(beams.codes[..., level], 0).reshape(-1, 1) + first
        states, cache = model.decode(tokens, jnp.ones(len(tokens), jnp.int32), cache)
        logits = model.logits(states[:, 0]).reshape(b, -1, logits.shape[-1])
    items = jnp.full(beams.log_probability.shape, -1, jnp.int32)
    for index, nodes in zip(indexes, beams.nodes, strict=True):
        items = jnp.where(nodes >= 0, index.items[jnp.maximum(nodes, 0)], items)
    exists = jnp.isfinite(beams.log_probability)
    missing = ((0, 0), (0, num_beams - exists.shape[1]))
    return FoundItems(
        items=jnp.pad(jnp.where(exists, items, -1), missing, constant_values=-1),
        codes=jnp.pad(
            jnp.where(exists[..., None], beams.codes, -1), (*missing, (0, 0)), constant_values=-1
        ),
        log_probability=jnp.pad(beams.log_probability, missing, constant_values=-jnp.inf),
    )


def _grow(
    beams: _Beams,
    children: _Children,
    steps: Float32[Array, "b w c"],
    level: int,
    num_beams: int,
) -> tuple[_Beams, Int32[Array, "rows"]]:
    """The best children of all prefixes; and of which row of the cache each is one."""
    b, w, c = steps.shape
    total = (beams.log_probability[..., None] + steps).reshape(b, w * c)
    best, chosen = jax.lax.top_k(total, min(num_beams, w * c))
    parent = chosen // c

    def pick(x: Array) -> Array:
        return jnp.take_along_axis(x.reshape(b, w * c), chosen, axis=1)

    codes = jnp.take_along_axis(beams.codes, parent[..., None], axis=1)
    grown = _Beams(
        nodes=tuple(pick(nodes) for nodes in children.nodes),
        codes=codes.at[..., level].set(pick(children.codes)),
        log_probability=best,
    )
    return grown, (jnp.arange(b)[:, None] * w + parent).reshape(-1)


def _log_probabilities(
    logits: Float32[Array, "b w v"], children: _Children, first: int, renormalize: bool
) -> Float32[Array, "b w c"]:
    """Of each child given its parent; `-inf` where there is none."""
    b, w, c = children.codes.shape
    found = jnp.take_along_axis(logits, (first + children.codes).reshape(b, w, c), axis=2)
    found = jnp.where(children.is_live, found, -jnp.inf)
    among = found if renormalize else logits
    total = jax.nn.logsumexp(among, axis=2, keepdims=True)
    return jnp.where(children.is_live, found - total, -jnp.inf)


def _children(
    indexes: tuple[PrefixIndex, ...],
    nodes: tuple[Int32[Array, "b w"], ...],
    level: int,
    available: Available,
    excluded: tuple[Int32[Array, "b x"] | None, ...],
) -> _Children:
    """What follows in any index, each code once, with its node in every index that has it."""
    found = [_children_of(index, of, level) for index, of in zip(indexes, nodes, strict=True)]
    live = [
        (child >= 0) & _has_available(index, child, level + 1, i, available, excluded[i])
        for i, (index, (_, child)) in enumerate(zip(indexes, found, strict=True))
    ]
    groups = []
    for i, (codes, _) in enumerate(found):
        where, alive, is_new = [], live[i], found[i][1] >= 0
        for j, (others, child) in enumerate(found):
            if j == i:
                where.append(child)
                continue
            same = (codes[..., :, None] == others[..., None, :]) & (child >= 0)[..., None, :]
            place = jnp.argmax(same, axis=-1)
            has = same.any(axis=-1)
            where.append(jnp.where(has, jnp.take_along_axis(child, place, axis=2), -1))
            alive |= has & jnp.take_along_axis(live[j], place, axis=2)
            is_new &= ~has if j < i else True
        groups.append((codes, tuple(where), alive & is_new))
    codes, where, is_live = zip(*groups, strict=True)
    return _Children(
        codes=jnp.concatenate(codes, axis=2),
        nodes=tuple(jnp.concatenate(of, axis=2) for of in zip(*where, strict=True)),
        is_live=jnp.concatenate(is_live, axis=2),
    )


def _children_of(
    index: PrefixIndex, nodes: Int32[Array, "b w"], level: int
) -> tuple[Int32[Array, "b w c"], Int32[Array, "b w c"]]:
    """Codes and nodes of the children in one index; node -1 where there is none."""
    ends, node = index.children[level], jnp.maximum(nodes, 0)
    child = ends[node][..., None] + jnp.arange(index.branching[level], dtype=jnp.int32)[None, None]
    exists = (child < ends[node + 1][..., None]) & (nodes >= 0)[..., None]
    child = jnp.where(exists, child, 0)
    codes = index.codes[level][child].astype(jnp.int32)
    return jnp.where(exists, codes, 0), jnp.where(exists, child, -1)


def _has_available(
    index: PrefixIndex,
    nodes: Int32[Array, "b w c"],
    level: int,
    which: int,
    available: Available,
    excluded: Int32[Array, "b x"] | None,
) -> Bool[Array, "b w c"]:
    """Whether a leaf under each node may be named."""
    node = jnp.maximum(nodes, 0)
    begin, end = node, node + 1
    if level < index.num_levels:
        begin, end = index.leaves[level][begin], index.leaves[level][end]
    counts = available.counts[which] if available.counts else None
    found = end - begin
    if counts is not None:
        rows = jnp.arange(counts.shape[0])[:, None, None]
        found = counts[rows, end] - counts[rows, begin]
    if excluded is not None:
        before = jax.vmap(jnp.searchsorted)
        found -= before(excluded, end) - before(excluded, begin)
    return found > 0


def _excluded_leaves(
    index: PrefixIndex, which: int, available: Available
) -> Int32[Array, "b x"] | None:
    """Leaves of items that rows may not name, sorted, each once, and then ends.

    Those that a filter forbids anyway are left out: each would be taken off twice.
    """
    if available.excluded is None:
        return None
    n = index.items.shape[0]
    place = available.excluded - index.first_item
    known = (available.excluded >= 0) & (place >= 0) & (place < n)
    leaves = jnp.where(known, index.leaf_of_item[jnp.clip(place, 0, n - 1)], n)
    counts = available.counts[which] if available.counts else None
    if counts is not None:
        rows = jnp.arange(counts.shape[0])[:, None]
        at = jnp.minimum(leaves, n - 1)
        leaves = jnp.where(counts[rows, at + 1] > counts[rows, at], leaves, n)
    leaves = jnp.sort(leaves, axis=1)
    repeated = jnp.pad(leaves[:, 1:] == leaves[:, :-1], ((0, 0), (1, 0)))
    return jnp.sort(jnp.where(repeated, n, leaves), axis=1)


def _check_indexes(
    indexes: tuple[PrefixIndex, ...], level_tokens: Sequence[int], num_beams: int
) -> None:
    if not indexes:
        raise ValueError("indexes must hold at least one")
    if num_beams < 1:
        raise ValueError(f"num_beams={num_beams} must be at least 1")
    for i, index in enumerate(indexes):
        if index.sizes != indexes[0].sizes:
            raise ValueError(
                f"indexes[{i}] has levels of {index.sizes} codes, must have {indexes[0].sizes} as "
                "the first"
            )
    if len(level_tokens) != indexes[0].num_levels:
        raise ValueError(
            f"level_tokens={tuple(level_tokens)} must be one for each of the "
            f"{indexes[0].num_levels} levels of the index"
        )
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(indexes)):
        return
    if not sum(index.num_items for index in indexes):
        raise ValueError("the index holds no item: there is nothing to name")


def _check_available(indexes: tuple[PrefixIndex, ...], available: Available, b: int) -> None:
    if available.counts and len(available.counts) != len(indexes):
        raise ValueError(
            f"available.counts has {len(available.counts)} entries, must have one for each of "
            f"{len(indexes)} indexes"
        )
    for i, (counts, index) in enumerate(zip(available.counts, indexes, strict=False)):
        shape = None if counts is None else counts.shape
        if shape is not None and shape not in (
            (1, len(index.items) + 1),
            (b, len(index.items) + 1),
        ):
            raise ValueError(
                f"available.counts[{i}] has shape {shape}, must have 1 or {b} rows of "
                f"{len(index.items) + 1}: what count_allowed gives for this index"
            )
    excluded = available.excluded
    if excluded is not None and (excluded.ndim != 2 or excluded.shape[0] != b):
        raise ValueError(f"available.excluded has shape {excluded.shape}, must have {b} rows")
