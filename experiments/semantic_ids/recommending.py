"""What a trained recommender says to one user: distinct items that exist, best first."""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int32

from experiments.semantic_ids.embedding_retrieval import EmbeddingRetrieval, check_new_items
from experiments.semantic_ids.sasrec_task import sasrec_scorer
from experiments.semantic_ids.trained import Recommender
from recipe_jax.data.history_batches import SIZES
from recipe_jax.data.interactions import histories_of
from recipe_jax.functional import PureModule
from recipe_jax.item_beam_search import Available, search_items
from recipe_jax.models.generative_recommender import History
from recipe_jax.prefix_index import PrefixIndex, build_prefix_index
from recipe_jax.reserved_places import mix_in, reserved_places, top_items
from recipe_jax.semantic_ids import SemanticIds, format_id

FEWEST_BEAMS = 20
"""Of a search, however few items are asked for; for more there are 5 times as many, or 25, …"""

ROOMS = (8, 32, 128)
"""Padded lengths of histories, beside the longest that a model reads."""

ROOM_TO_EXCLUDE = 256
"""Items of a history that fit, or twice as many, …: padding costs next to nothing here."""


class Recommendation(NamedTuple):
    """One item.

    Attributes:
        item: its name.
        semantic_id: its codes as text; empty from a model that knows none.
        score: log-probability of the codes in nats, or the score of a model that knows none; of a
            fallback the cosine of vectors.
        codes: of each level; none from a model that knows none.
        by_fallback: whether it has a place that is reserved for new items.
    """

    item: str
    semantic_id: str
    score: float
    codes: tuple[int, ...] = ()
    by_fallback: bool = False


class Fallback(NamedTuple):
    """Places for items that the model never saw.

    Attributes:
        retrieval: ranks them, by vectors in the order of the model's items.
        share: of the places; which ones they are, `reserved_places` says.
    """

    retrieval: EmbeddingRetrieval
    share: float


class Recommendations(NamedTuple):
    """What is recommended.

    Attributes:
        items: best first, none of the history.
        num_read: items of the history that the model read: the latest.
        milliseconds: from the names of the history to those of the items.
    """

    items: tuple[Recommendation, ...]
    num_read: int
    milliseconds: float


def recommend(
    recommender: Recommender,
    history: Sequence[str],
    *,
    k: int,
    fallback: Fallback | None = None,
) -> Recommendations:
    """The `k` items that most probably follow a history.

    Args:
        recommender: its model reads the latest items where the history is longer than it can read.
        history: names of items, the latest last.
        k: how many items.
        fallback: keeps places for new items; None leaves all of them to the model, which may name
            new items, too.

    Raises:
        ValueError: no history, an item that the model does not know, more items asked for than
            there are beside those of the history, or a fallback that does not fit the model.
    """
    if fallback is not None:
        _check_fallback(recommender, fallback, k)
    started = time.perf_counter()
    items, known = known_items(recommender.item_ids, history, k=k)
    best, scores = _search(recommender, items, known, k)
    by_fallback = np.zeros(k, bool)
    if fallback is not None:
        best, scores, by_fallback = _mixed(recommender, fallback, items, known, best, scores)
    found = tuple(
        Recommendation(
            recommender.item_ids[item],
            "" if recommender.ids is None else format_id(recommender.ids.codes[item]),
            score,
            () if recommender.ids is None else tuple(recommender.ids.codes[item].tolist()),
            is_reserved,
        )
        for item, score, is_reserved in zip(
            best.tolist(), scores.tolist(), by_fallback.tolist(), strict=True
        )
    )
    num_read = min(len(history), _config(recommender.fn).max_items)
    return Recommendations(found, num_read, 1e3 * (time.perf_counter() - started))


def known_items(
    item_ids: tuple[str, ...], history: Sequence[str], *, k: int
) -> tuple[Int32[np.ndarray, "t"], Int32[np.ndarray, "x"]]:
    """Indices of a history's items, and of each of them once.

    Args:
        item_ids: an item's index is its place here.
        history: names of items.
        k: how many others are asked for.

    Raises:
        ValueError: no history, an item that is none of these, or more items asked for than there
            are beside those of the history.
    """
    index = _index_of(item_ids)
    for name in history:
        if name not in index:
            raise ValueError(
                f"item {name!r} of the history is none of the model's {len(index)} items"
            )
    if not history:
        raise ValueError("the history is empty, must name at least one item")
    items = np.array([index[name] for name in history], np.int32)
    known = np.array(list(dict.fromkeys(items.tolist())), np.int32)
    most = len(index) - len(known)
    if not 1 <= k <= most:
        raise ValueError(
            f"k={k} must be from 1 to {most}: there are {len(index)} items, {len(known)} of them "
            "in the history"
        )
    return items, known


def warm_up(recommender: Recommender, *, max_history_items: int, max_k: int) -> None:
    """Compile all that `recommend` needs for histories and `k` up to these, so that nobody waits.

    Args:
        recommender: whose items are asked for.
        max_history_items: longest history, repeated items included.
        max_k: most items.
    """
    most = min(max_k, len(recommender.item_ids) - 1)
    if most < 1:
        return  # `recommend` refuses every history: there is no other item
    longest = _config(recommender.fn).max_items
    rooms = {*ROOMS, *SIZES, longest, *_up_to(max_history_items, ROOM_TO_EXCLUDE, 2)}
    for length in sorted({min(length, max_history_items) for length in rooms}):
        for k in beams_for(most):
            recommend(recommender, recommender.item_ids[:1] * length, k=min(k, most))


def _search(
    recommender: Recommender, items: np.ndarray, known: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    if recommender.ids is None:
        histories = histories_of(["user"], [items], ordered=True)
        score = sasrec_scorer(recommender.fn, recommender.params, users_at_once=1)
        scores = score(histories)[0]
        scores[known] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        return best, scores[best]
    cfg = _config(recommender.fn)
    read = items[-cfg.max_items :]
    # Few shapes, each of which is compiled once: see `warm_up`.
    room = next((size for size in ROOMS if len(read) <= size <= cfg.max_items), cfg.max_items)
    codes = np.zeros((1, room, len(cfg.sizes)), np.int32)
    codes[0, : len(read)] = recommender.ids.codes[read]
    # At once: with an operation for each, an answer took 10 ms where it now takes 7.
    prompt, length, excluded, codes, num_read = jax.device_put(
        (
            np.full((1, 1), cfg.start_token, np.int32),
            np.ones(1, np.int32),
            excluded_row(known, len(items)),
            codes,
            np.array([len(read)], np.int32),
        )
    )
    found = search_items(
        recommender.fn,
        recommender.params,
        prompt,
        length,
        indexes=[_tree(recommender.ids)],
        level_tokens=cfg.level_tokens,
        num_beams=beams_for(k)[-1],
        available=Available(excluded=excluded),
        context=History(codes, num_read),
    )
    return np.asarray(found.items)[0, :k], np.asarray(found.log_probability)[0, :k]


def _mixed(
    recommender: Recommender,
    fallback: Fallback,
    items: np.ndarray,
    known: np.ndarray,
    best: np.ndarray,
    scores: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items, their scores, and which of them have a place by the fallback."""
    k = len(best)
    cosines = fallback.retrieval.score(histories_of(["user"], [items], ordered=True))
    may_win = recommender.is_new.copy()
    may_win[known] = False
    others = top_items(cosines, may_win[None], k)
    mixed = mix_in(best[None], others, share=fallback.share, num_places=k)[0]
    by_fallback = reserved_places(k, fallback.share) & np.isin(mixed, others)
    score_of = dict(zip(best.tolist(), scores.tolist(), strict=True))
    given = [score_of.get(item, 0.0) for item in mixed.tolist()]
    return mixed, np.where(by_fallback, cosines[0, mixed], given), by_fallback


def _check_fallback(recommender: Recommender, fallback: Fallback, k: int) -> None:
    """Refuse a share that is none, vectors of other items, and a model that saw all of its."""
    reserved_places(k, fallback.share)
    check_new_items(recommender.is_new)
    num_vectors = len(fallback.retrieval.vectors)
    if num_vectors != len(recommender.item_ids):
        raise ValueError(
            f"the fallback has {num_vectors} vectors, must have one for each of the model's "
            f"{len(recommender.item_ids)} items"
        )


def beams_for(k: int) -> list[int]:
    """Beams of the searches for up to so many items: few numbers, each of which is compiled."""
    return _up_to(k, FEWEST_BEAMS, 5)


def excluded_row(known: Int32[np.ndarray, "x"], length: int) -> Int32[np.ndarray, "1 room"]:
    """Items that a search may not name, padded for histories of up to this length."""
    row = np.full((1, _up_to(length, ROOM_TO_EXCLUDE, 2)[-1]), -1, np.int32)
    row[0, : len(known)] = known
    return row


def _up_to(count: int, first: int, factor: int) -> list[int]:
    """`first` and its multiples by powers of a factor, up to one that is no less than a count."""
    found = [first]
    while found[-1] < count:
        found.append(factor * found[-1])
    return found


@functools.lru_cache(maxsize=4)
def _config(fn: PureModule[Any]) -> Any:
    return fn.bind(fn.shapes).cfg


@functools.lru_cache(maxsize=4)
def _index_of(item_ids: tuple[str, ...]) -> dict[str, int]:
    return {name: index for index, name in enumerate(item_ids)}


@functools.lru_cache(maxsize=4)
def _tree(ids: SemanticIds) -> PrefixIndex:
    return jax.device_put(build_prefix_index(ids.codes, ids.sizes))
