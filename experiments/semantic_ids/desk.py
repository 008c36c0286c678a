"""Requests for recommendations, and one desk at which they are answered in turn."""

import asyncio
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from experiments.semantic_ids.recommending import Recommendations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_body_bytes: of its body.
        max_characters: of a query, and of an item's name.
        max_history_items: of a history, repeated items included.
        max_k: items that are recommended.
        max_at_once: requests that are computed at the same time.
        max_waiting: requests that are being answered or wait for it.
        seconds: in which a body must arrive, and after it an answer must be there.
    """

    max_body_bytes: int = 65_536
    max_characters: int = 500
    max_history_items: int = 256
    max_k: int = 100
    max_at_once: int = 2
    max_waiting: int = 64
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.type is float else 1
            if not least <= value < float("inf") or value == 0:
                rule = "above 0" if field.type is float else "at least 1"
                raise ValueError(f"{field.name}={value} must be {rule} and finite")


class Service(NamedTuple):
    """What is served.

    Attributes:
        num_items: that can be recommended.
        by_history: names of items, the latest last, and how many are asked for -> what follows.
        by_query: a text, and how many are asked for -> what it asks for.

    Either function may be None, of a model that does not do this, and raises `ValueError` with a
    line for the client.
    """

    num_items: int
    by_history: Callable[[Sequence[str], int], Recommendations] | None = None
    by_query: Callable[[str, int], Recommendations] | None = None


class Ask(BaseModel):
    """Who wants items: somebody with a history, or somebody who says what."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[str] | None = Field(None, description="names of items, the latest last")
    query: str | None = Field(None, description="what is wanted, in words")
    k: int = Field(10, description="how many items")


class Item(BaseModel):
    """An item that exists."""

    item: str = Field(description="its name")
    semantic_id: str = Field(description="its codes as text; empty from a model that knows none")
    codes: list[int] = Field(description="its codes; none from a model that knows none")
    score: float = Field(
        allow_inf_nan=False,
        description="log-probability of the codes, or a score of a model that knows none",
    )


class Answer(BaseModel):
    """What is recommended: distinct items, best first, none of the history."""

    items: list[Item]
    num_read: int = Field(description="items of the history that the model read: the latest")
    milliseconds: float = Field(description="that the answer took, without waiting")
    waited_milliseconds: float = Field(description="for the answers to requests before this one")


class RefusedError(ValueError):
    """A request that cannot be answered."""


class BusyError(RefusedError):
    """One that could be answered later."""


class Desk:
    """Answers requests in the order in which they came.

    They are computed in threads beside the one that talks to clients.

    Args:
        service: what is asked.
        limits: of what may be asked.

    Attributes:
        num_answered: requests so far.
    """

    def __init__(self, service: Service, limits: Limits):
        self.service, self.limits, self.num_answered = service, limits, 0
        self._workers = ThreadPoolExecutor(limits.max_at_once, thread_name_prefix="desk")
        self._waiting: set[Future[Any]] = set()

    async def answer(self, ask: Ask) -> Answer:
        """What the service says.

        Raises:
            RefusedError: a request that it cannot answer, in one line.
            BusyError: too many requests before this one.
        """
        compute = self._function_for(ask)
        if len(self._waiting) >= self.limits.max_waiting:
            raise BusyError(f"{len(self._waiting)} requests are waiting: ask again later")
        asked = time.perf_counter()
        future = self._workers.submit(_timed, compute)
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        try:
            # One whose time is up is never begun.  One that has begun counts until it ends.
            started, found = await asyncio.wait_for(
                asyncio.wrap_future(future), self.limits.seconds
            )
        except TimeoutError:
            line = f"no answer within {self.limits.seconds:g} seconds: ask again later"
            raise BusyError(line) from None
        except ValueError as error:
            raise RefusedError(str(error)) from error
        items = [
            Item(item=row.item, semantic_id=row.semantic_id, codes=list(row.codes), score=row.score)
            for row in found.items
        ]
        answer = Answer(
            items=items,
            num_read=found.num_read,
            milliseconds=found.milliseconds,
            waited_milliseconds=1e3 * (started - asked),
        )
        self.num_answered += 1
        return answer

    def close(self) -> None:
        """Answer nothing more."""
        self._workers.shutdown(cancel_futures=True)

    def _function_for(self, ask: Ask) -> Callable[[], Recommendations]:
        """What answers a request that is within the limits."""
        if (ask.history is None) == (ask.query is None):
            given = "neither is" if ask.history is None else "both are"
            raise RefusedError(f"history or query must be given, one of them: {given}")
        if not 1 <= ask.k <= self.limits.max_k:
            raise RefusedError(f"k={shortened(ask.k)} must be from 1 to {self.limits.max_k}")
        if ask.history is not None:
            if self.service.by_history is None:
                raise RefusedError("the model reads no history: give a query")
            _check_history(ask.history, self.limits)
            return functools.partial(self.service.by_history, ask.history, ask.k)
        assert ask.query is not None
        if self.service.by_query is None:
            raise RefusedError("the model reads no query: give a history")
        if not ask.query.strip():
            raise RefusedError(f"query={shortened(ask.query)} must hold a word")
        _check_length("query", ask.query, self.limits)
        return functools.partial(self.service.by_query, ask.query, ask.k)


def _timed(compute: Callable[[], Recommendations]) -> tuple[float, Recommendations]:
    return time.perf_counter(), compute()


def _check_history(history: Sequence[str], limits: Limits) -> None:
    if len(history) > limits.max_history_items:
        raise RefusedError(
            f"history has {len(history)} items, must have at most {limits.max_history_items}: give "
            "the latest"
        )
    for place, name in enumerate(history):
        _check_length(f"history[{place}]", name, limits)


def _check_length(field: str, text: str, limits: Limits) -> None:
    if len(text) > limits.max_characters:
        raise RefusedError(
            f"{field}={shortened(text)} has {len(text)} characters, must have at most "
            f"{limits.max_characters}"
        )


def shortened(value: Any) -> str:
    """A value as JSON, in one line, cut where it is long."""
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
