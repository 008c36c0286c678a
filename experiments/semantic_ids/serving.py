"""`POST /recommend`: what a recommender answers over HTTP.

What is refused is refused in one line, `{"detail": "…"}`; nothing of a request is written anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from experiments.semantic_ids.desk import (
    Answer,
    Ask,
    BusyError,
    Desk,
    Limits,
    RefusedError,
    shortened,
)
from experiments.semantic_ids.request_bodies import BodyLimit


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="one line")


class Health(BaseModel):
    """What is served."""

    num_items: int
    reads: list[str] = Field(description="of a request: history, query")


def make_app(desk: Desk, *, hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]")) -> FastAPI:
    """The endpoint, its description (`/openapi.json`) and `/health`.

    There is no `/docs`: FastAPI's fetches its scripts from elsewhere.

    Args:
        desk: answers.
        hosts: names under which clients know this machine.  Others are refused: else a page of
            theirs whose name leads here could ask, and read the answers, in somebody's browser.
    """
    app = FastAPI(title="Recommendations that exist", version="1", docs_url=None, redoc_url=None)
    refusals: dict[int | str, dict[str, Any]] = {
        408: {"model": Refusal, "description": "The body did not arrive in time"},
        413: {"model": Refusal, "description": "The body is too large"},
        422: {"model": Refusal, "description": "The request cannot be answered"},
        500: {"model": Refusal, "description": "A fault of the server"},
        503: {
            "model": Refusal,
            "description": "Too many requests",
            "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}},
        },
    }

    @app.post("/recommend", responses=refusals)
    async def recommend(ask: Ask) -> Answer:
        """Items for somebody with a history, or for what somebody says."""
        return await desk.answer(ask)

    @app.get("/health")
    async def health() -> Health:
        """Whether requests are answered, and which."""
        reads = {"history": desk.service.by_history, "query": desk.service.by_query}
        return Health(
            num_items=desk.service.num_items,
            reads=[name for name, function in reads.items() if function is not None],
        )

    _describe_limits(app, desk.limits)
    _refuse_in_one_line(app)
    limits = desk.limits
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes, seconds=limits.seconds)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app


def _describe_limits(app: FastAPI, limits: Limits) -> None:
    """Limits are a desk's own, and no part of the type `Ask`."""
    fields = app.openapi()["components"]["schemas"]["Ask"]["properties"]
    text = {"type": "string", "maxLength": limits.max_characters}
    fields["k"] |= {"minimum": 1, "maximum": limits.max_k}
    fields["query"]["anyOf"] = [text, {"type": "null"}]
    history = {"type": "array", "items": text, "minItems": 1, "maxItems": limits.max_history_items}
    fields["history"]["anyOf"] = [history, {"type": "null"}]


_Handler: TypeAlias = Callable[[Request, Any], JSONResponse]


def _refuse_in_one_line(app: FastAPI) -> None:
    """Every error becomes a line of its own kind; that of the server's own is in its log alone."""

    def refuse(
        status: int, say: Callable[[Any], object], headers: Mapping[str, str] | None = None
    ) -> _Handler:
        def handle(_: Request, error: Any) -> JSONResponse:
            line = " ".join(str(say(error)).split()).encode(errors="backslashreplace").decode()
            return JSONResponse({"detail": line}, status, headers)

        return handle

    def unreadable(error: HTTPException) -> str:
        """As FastAPI refuses a body that is nested too deeply, or is no UTF-8, with a 400."""
        return f"the request body cannot be read as JSON ({type(error.__cause__).__name__})"

    handlers: dict[Any, _Handler] = {
        RequestValidationError: refuse(422, _line_of),
        RefusedError: refuse(422, lambda error: error),
        BusyError: refuse(503, lambda error: error, {"Retry-After": "1"}),
        400: refuse(422, unreadable),
        # uvicorn closes the connection after it.
        Exception: refuse(
            500, lambda _: "the server failed: its log says why", {"Connection": "close"}
        ),
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


_MUST_BE = {"history": "a list of names", "query": "text", "k": "a whole number"}


def _line_of(error: RequestValidationError) -> str:
    """The first thing that is wrong with a body."""
    found = error.errors()[0]
    place, value = found["loc"][1:], found.get("input")
    if found["type"] == "json_invalid":
        return f"the request body is not JSON: {found['ctx']['error']} at character {place[0]}"
    if found["type"] == "missing":
        return "the request has no body: give an object of JSON with history or query, and k"
    if not place:
        return (
            "the request body must be an object of JSON with history or query, and k, and its "
            "content-type application/json"
        )
    name = str(place[0]) + "".join(f"[{index}]" for index in place[1:])
    if found["type"] == "extra_forbidden":
        return f"{shortened(name)} is no field of a request: those are history, query and k"
    rule = "text" if len(place) > 1 else _MUST_BE[str(place[0])]
    return f"{name}={shortened(value)} must be {rule}"
