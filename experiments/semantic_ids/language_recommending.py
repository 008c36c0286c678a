"""What a language model that knows items' IDs says: to a sentence, or to a history."""

import functools
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from experiments.language_model.checkpoints import read_checkpoint
from experiments.semantic_ids.protocol import Scorer
from experiments.semantic_ids.questions import FILE, Questions, as_json, read_questions
from experiments.semantic_ids.recommending import (
    FEWEST_BEAMS,
    Recommendation,
    Recommendations,
    beams_for,
    excluded_row,
    known_items,
)
from experiments.semantic_ids.text_queries import TextScorer
from experiments.semantic_ids.trained import read_own
from recipe_jax.data.id_templates import TRIGGER, plain_text
from recipe_jax.data.interactions import Histories
from recipe_jax.data.texts import check_characters, render
from recipe_jax.huggingface import LanguageModel, ModelFolderError
from recipe_jax.item_beam_search import Available, FoundItems, search_items
from recipe_jax.prefix_index import PrefixIndex, build_prefix_index
from recipe_jax.semantic_ids import START, SemanticIds, format_id, id_tokens, read_ids

_PROMPT_SIZES = (64, 128, 192, 256, 384, 512, 1024)
"""Padded lengths of prompts; beyond them the next power of two."""

_ROWS_AT_ONCE = 32


class LanguageRecommender(NamedTuple):
    """A language model whose vocabulary holds the codes of items.

    Attributes:
        model: the language model.
        tokenizer: with a chat template.
        ids: the items' IDs.
        questions: how it is asked.
    """

    model: LanguageModel
    tokenizer: Any
    ids: SemanticIds
    questions: Questions

    @property
    def level_tokens(self) -> tuple[int, ...]:
        """The token of code 0 of each level."""
        words = [f"[SEM_{level}_0]" for level in range(len(self.ids.sizes))]
        return tuple(self.tokenizer.convert_tokens_to_ids(words))


def language_files(questions: Questions, ids: bytes) -> dict[str, bytes]:
    """Name -> content of what a model folder holds beside model and tokenizer.

    Args:
        questions: how the model is asked.
        ids: of `ids_as_bytes`.
    """
    sha256 = {"ids.npz": hashlib.sha256(ids).hexdigest()}
    return {FILE: as_json(questions, sha256=sha256), "ids.npz": ids}


def load_language_recommender(run: Path) -> LanguageRecommender:
    """Read the model of a run folder of `tune`, or its model folder.

    Raises:
        DataError: nothing there.
        ModelFolderError: IDs that are not those that the model learned, or a tokenizer without
            them.
    """
    folder = run if (run / FILE).is_file() else run / "model"
    questions, held = read_questions(folder / FILE)
    read_own(folder / "ids.npz", held.get("sha256", {}).get("ids.npz"))
    ids = read_ids(folder / "ids.npz")
    checkpoint = read_checkpoint(folder)
    vocabulary = checkpoint.tokenizer.get_vocab()
    words = (*id_tokens(ids.sizes), TRIGGER)
    for word, following in itertools.pairwise(words):
        if word not in vocabulary or vocabulary.get(following) != vocabulary[word] + 1:
            raise ModelFolderError(f"{folder}: its tokenizer has no {word} with {following} behind")
    return LanguageRecommender(checkpoint.model, checkpoint.tokenizer, ids, questions)


def recommend_for_query(recommender: LanguageRecommender, query: str, *, k: int) -> Recommendations:
    """The `k` items that most probably answer a sentence.

    Args:
        recommender: the model.
        query: what is wanted, in words; what reads as a token of the model is made plain.
        k: how many items.

    Raises:
        ValueError: an empty query, one that is too long for the model, or more items asked for than
            there are.
    """
    started = time.perf_counter()
    _check_k(k, recommender.ids.num_items)
    nothing = excluded_row(np.zeros(0, np.int32), 0)
    return _recommend(recommender, _of_query(recommender, query), nothing, k, 0, started)


def recommend_for_history(
    recommender: LanguageRecommender, history: Sequence[str], *, k: int
) -> Recommendations:
    """The `k` items that most probably follow a history.

    Args:
        recommender: the model, which reads the latest items where the history is longer than it
            learned.
        history: names of items, the latest last.
        k: how many items.

    Raises:
        ValueError: a model that learned no histories, an empty one, an unknown item, or more items
            asked for than there are beside those of the history.
    """
    started = time.perf_counter()
    items, known = known_items(recommender.ids.items, history, k=k)
    read = items[-recommender.questions.max_items :]
    prompt = _of_history(recommender, read)
    excluded = excluded_row(known, len(items))
    return _recommend(recommender, prompt, excluded, k, len(read), started)


def warm_up_language(
    recommender: LanguageRecommender, *, max_history_items: int, max_k: int
) -> None:
    """Compile what sentences and histories need for `k` up to this, so that nobody waits.

    Prompts of more than 1,024 tokens are compiled when the first of them is asked.

    Args:
        recommender: whose items are asked for.
        max_history_items: longest history, repeated items included.
        max_k: most items.
    """
    none = np.zeros(0, np.int32)
    rooms = {excluded_row(none, n).shape[1] for n in (0, max_history_items)}
    for size in sorted({min(size, _longest_prompt(recommender)) for size in _PROMPT_SIZES}):
        prompt = [0] * size
        for room in sorted(rooms):
            for beams in beams_for(min(max_k, recommender.ids.num_items)):
                excluded = np.full((1, room), -1, np.int32)
                _search(recommender, _tree(recommender.ids), [prompt], excluded, beams)


def history_scorer(recommender: LanguageRecommender, item_ids: Sequence[str]) -> Scorer:
    """The model as a scorer of the protocol, of items in this order.

    Items that no beam finds share the last rank.  Those that a user knows are left out.

    Args:
        recommender: the model, which must know an ID of each of these items.
        item_ids: of the data that is asked about.

    Raises:
        ValueError: an item without an ID, or a model that learned no histories.
    """
    rows, tree = _among(recommender, item_ids)

    def score(histories: Histories) -> Float32[np.ndarray, "u n"]:
        asked = [histories.items_of(user) for user in range(len(histories.users))]
        prompts = [
            _of_history(recommender, rows[items[-recommender.questions.max_items :]])
            for items in asked
        ]
        return _scores(recommender, tree, prompts, asked, len(rows))

    return score


def query_scorer(recommender: LanguageRecommender, item_ids: Sequence[str]) -> TextScorer:
    """The model as a scorer of sentences, of items in this order.

    Args:
        recommender: the model, which must know an ID of each of these items.
        item_ids: of the items that are asked about.

    Raises:
        ValueError: an item without an ID.
    """
    rows, tree = _among(recommender, item_ids)

    def score(queries: Sequence[str]) -> Float32[np.ndarray, "u n"]:
        prompts = [_of_query(recommender, query) for query in queries]
        nothing = [np.zeros(0, np.int32)] * len(prompts)
        return _scores(recommender, tree, prompts, nothing, len(rows))

    return score


def prompt_tokens(recommender: LanguageRecommender, question: str, what: str) -> list[int]:
    """Tokens up to where an ID begins, as they stand in a conversation that is learned.

    Args:
        recommender: the model.
        question: with the trigger at its end.
        what: the question is, for messages.

    Raises:
        ValueError: more tokens than the model can read.
    """
    messages = [
        {"role": "system", "content": recommender.questions.system},
        {"role": "user", "content": question},
        {"role": "assistant", "content": START},
    ]
    tokenizer = recommender.tokenizer
    text = render(messages, tokenizer)
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = tokenizer.convert_tokens_to_ids(START)
    tokens = tokens[: len(tokens) - tokens[::-1].index(start)]
    most = _longest_prompt(recommender)
    if len(tokens) > most:
        raise ValueError(f"{what} makes {len(tokens)} tokens, must make at most {most}")
    return tokens


def _of_query(recommender: LanguageRecommender, query: str) -> list[int]:
    check_characters("query", query)
    plain = plain_text(query)
    if not plain:
        raise ValueError(f"query={query!r:.60} must be a text that is not empty")
    return prompt_tokens(recommender, f"{plain} {TRIGGER}", "the query")


def _of_history(recommender: LanguageRecommender, items: Int32[np.ndarray, "t"]) -> list[int]:
    if not recommender.questions.history_query:
        raise ValueError("the model learned no histories: tune it on examples with --histories")
    texts = ", ".join(format_id(recommender.ids.codes[item]) for item in items)
    question = recommender.questions.history_query.replace("{history}", texts)
    return prompt_tokens(recommender, question, "the history")


def _among(
    recommender: LanguageRecommender, item_ids: Sequence[str]
) -> tuple[Int32[np.ndarray, "n"], PrefixIndex]:
    """Rows of some items among the model's, and the tree of their IDs."""
    row_of = {name: row for row, name in enumerate(recommender.ids.items)}
    missing = [name for name in item_ids if name not in row_of]
    if missing:
        raise ValueError(f"item {missing[0]!r} has no ID, nor have {len(missing) - 1} others")
    rows = np.array([row_of[name] for name in item_ids], np.int32)
    tree = build_prefix_index(recommender.ids.codes[rows], recommender.ids.sizes)
    return rows, jax.device_put(tree)


def _recommend(
    recommender: LanguageRecommender,
    prompt: list[int],
    excluded: Int32[np.ndarray, "1 x"],
    k: int,
    num_read: int,
    started: float,
) -> Recommendations:
    beams = beams_for(k)[-1]
    found = _search(recommender, _tree(recommender.ids), [prompt], excluded, beams)
    items = tuple(
        Recommendation(
            recommender.ids.items[item],
            format_id(recommender.ids.codes[item]),
            score,
            tuple(recommender.ids.codes[item].tolist()),
        )
        for item, score in zip(
            np.asarray(found.items)[0, :k].tolist(),
            np.asarray(found.log_probability)[0, :k].tolist(),
            strict=True,
        )
    )
    return Recommendations(items, num_read, 1e3 * (time.perf_counter() - started))


def _scores(
    recommender: LanguageRecommender,
    tree: PrefixIndex,
    prompts: list[list[int]],
    known: list[Int32[np.ndarray, "_"]],
    num_items: int,
) -> Float32[np.ndarray, "u n"]:
    scores = np.empty((len(prompts), num_items), np.float32)
    longest = max(map(len, known), default=0)
    for rows in _groups(prompts):
        excluded = np.full((_ROWS_AT_ONCE, 1 << (max(8, longest) - 1).bit_length()), -1, np.int32)
        for place, row in enumerate(rows):
            excluded[place, : len(known[row])] = known[row]
        group = [prompts[row] for row in rows]
        found = _search(recommender, tree, group, excluded, FEWEST_BEAMS)
        items, nats = (np.asarray(x)[: len(rows)] for x in (found.items, found.log_probability))
        row, place = np.nonzero(items >= 0)
        scores[rows] = nats.min(axis=1, where=items >= 0, initial=0.0)[:, None] - 1.0
        scores[np.array(rows)[row], items[row, place]] = nats[row, place]
    return scores


def _groups(prompts: list[list[int]]) -> Iterator[list[int]]:
    """Numbers of prompts, those of like length together."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(order), _ROWS_AT_ONCE):
        yield order[start : start + _ROWS_AT_ONCE]


def _search(
    recommender: LanguageRecommender,
    tree: PrefixIndex,
    prompts: list[list[int]],
    excluded: Int32[np.ndarray, "b x"],
    num_beams: int,
) -> FoundItems:
    """Items for some prompts, padded to few shapes, each of which is compiled once."""
    longest = max(map(len, prompts))
    most = _longest_prompt(recommender)
    doubled = 1 << (longest - 1).bit_length()
    size = min(next((size for size in _PROMPT_SIZES if longest <= size), doubled), most)
    tokens = np.zeros((len(excluded), size), np.int32)
    lengths = np.ones(len(excluded), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return search_items(
        recommender.model.fn,
        recommender.model.params,
        jnp.asarray(tokens),
        jnp.asarray(lengths),
        indexes=[tree],
        level_tokens=recommender.level_tokens,
        num_beams=num_beams,
        available=Available(excluded=jnp.asarray(excluded)),
    )


def _longest_prompt(recommender: LanguageRecommender) -> int:
    return recommender.model.cfg.max_positions - len(recommender.ids.sizes) + 1


def _check_k(k: int, num_items: int) -> None:
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k} must be from 1 to {num_items}: so many items there are")


@functools.lru_cache(maxsize=4)
def _tree(ids: SemanticIds) -> PrefixIndex:
    return jax.device_put(build_prefix_index(ids.codes, ids.sizes))
