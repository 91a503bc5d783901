"""What both apps answer with, and how they take bodies in."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import JSONResponse, Response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
"""Buckets of histograms of time."""
KINDS = {400: "invalid_request_error", 404: "not_found_error", 413: "invalid_request_error"}


class TooLarge(Exception):
    """A body beyond the limit."""


class Gone(Exception):
    """The client hung up before its body was there."""


def error_body(status: int, sentence: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = KINDS.get(status, "server_error")
    return {"error": {"message": sentence, "type": kind, "code": status}}


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A status with a sentence."""
    return JSONResponse(error_body(status, sentence), status, headers)


def metrics_page(registry: CollectorRegistry) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def whole_body(receive: Receive, largest: int) -> bytes:
    """The body of a request.

    Raises:
        TooLarge: more than `largest` bytes.
        Gone: the client hung up.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > largest:
            raise TooLarge
        if not message.get("more_body", False):
            return b"".join(parts)


class BodyLimit:
    """An app whose requests have bodies of at most `largest` bytes, the rest is 413."""

    def __init__(self, app: App, largest: int):
        self.app, self.largest = app, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await whole_body(receive, self.largest)
        except Gone:
            return None
        except TooLarge:
            answer = problem(413, f"the body is larger than {self.largest:,} bytes: split it.")
            return await answer(scope, receive, send)
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await self.app(scope, replay, send)


class Timed:
    """An app whose answers are noted.

    Args:
        note: gets path, status and seconds of each.
    """

    def __init__(self, app: App, note: Callable[[str, int, float], None]):
        self.app, self.note = app, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            if scope["type"] == "http":
                self.note(scope["path"], status, time.perf_counter() - started)
