"""Bodies of requests, read before anything looks at them: none too large, none too slow."""

import asyncio
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROOM_TO_DISCARD = 256
"""Limits' worth of a body that is too large, read and thrown away at most.

A client that is still sending when the connection closes sees no answer.
"""


class BodyLimit:
    """An ASGI application behind a limit of size and of time for the body of a request.

    Bytes are counted as they come: a body without a length, sent in chunks, is refused like any
    other.  The application gets the whole body at once.

    Args:
        app: what is behind it.
        max_bytes: the most that a body may hold.
        seconds: within which the whole of it must have come.
    """

    def __init__(self, app: "ASGIApp", *, max_bytes: int, seconds: float):
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, or refuse it in one line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            line = f"the request body must arrive within {self.seconds:g} seconds"
            await _refuse(send, 408, line)
            return
        except ConnectionError:
            return  # the client is gone
        if body is None:
            line = f"the request body has more than the {self.max_bytes} bytes that it may have"
            await _refuse(send, 413, line)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> "Message":
            return messages.pop() if messages else await receive()

        await self.app(scope, receive_again, send)

    async def _read(self, scope: "Scope", receive: "Receive") -> bytes | None:
        """The body; None if it is too large."""
        headers = dict(scope["headers"])
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.max_bytes and b"expect" in headers:
            return None  # the client waits to be told whether it shall send anything
        parts, total, more = [], 0, True
        while more and total <= ROOM_TO_DISCARD * self.max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            part = message.get("body", b"")
            more, total = message.get("more_body", False), total + len(part)
            if total <= self.max_bytes:
                parts.append(part)
        return b"".join(parts) if total <= self.max_bytes else None


async def _refuse(send: "Send", status: int, line: str) -> None:
    body = json.dumps({"detail": line}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
