"""An app in front of OpenAI-compatible servers that says how long each response will be.

A request for a completion is predicted, gets the hints of `hints`, and goes to the server with the
fewest predicted tokens in flight. Everything else, and every answer, passes through byte for byte,
streams too. A prediction that fails or is late costs the hint alone, and is counted.

Servers: one that is not there is passed over for the next; one that hangs up before it answers is
asked once more, elsewhere if there is another. If none answers, the client gets 502 and a
sentence. One that dies in mid-stream: server-sent events end with an `error` event behind the last
whole one, any other answer is broken off, so that no client takes a part for the whole.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from yarl import URL

from lenvm_rl.serving.hints import OWN, expected_length, hinted
from lenvm_rl.serving.http import (
    SECONDS,
    Gone,
    Receive,
    Scope,
    Send,
    TooLarge,
    error_body,
    metrics_page,
    problem,
    whole_body,
)
from lenvm_rl.serving.remaining import Predict, Remaining, whole_events
from lenvm_rl.serving.settings import RouteSettings

HINTED = ("/chat/completions", "/completions")
"""Ends of the paths that are predicted."""
ASKED = ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "tools",
         "chat_template_kwargs")  # fmt: skip
"""Fields of a request that its prediction depends on."""
HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
    *(b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"),
}
REMAINING = "x-lenvm-remaining"
"""Header by which the client of a stream asks for the remaining length every so many events."""
PREDICTED = b"x-predicted-osl"
KEPT_ALIVE = 4.0  # seconds; uvicorn, and so vLLM, closes idle connections after 5


@dataclass
class Upstream:
    """A server, and what was sent to it."""

    url: str
    requests: int = 0
    """In flight."""
    tokens: float = 0.0
    """Predicted for the requests in flight."""
    absent_until: float = 0.0
    """Passed over until then, if there is another; of time.monotonic()."""


@dataclass
class Ready:
    """A request as it goes upstream."""

    method: str
    path: str
    headers: CIMultiDict[str]
    body: bytes
    length: float | None = None
    """Expected tokens."""
    answer: Mapping[str, Any] | None = None
    """Of the predictor."""
    question: dict[str, Any] = field(default_factory=dict)
    remaining: int = 0
    """Events from one remaining length to the next; 0: none."""


class Proxy:
    """The app.

    Args:
        servers: base URLs of OpenAI-compatible servers that serve the same models.
        predict: answers questions; None gives no hints.
        settings: see there.
    """

    def __init__(self, servers: Sequence[str], predict: Predict | None, settings: RouteSettings):
        self.settings = settings
        self._upstreams = [Upstream(url.rstrip("/").removesuffix("/v1")) for url in servers]
        self._predict, self._turn = predict, itertools.count()
        self._session: aiohttp.ClientSession | None = None
        self.registry = CollectorRegistry()
        own = self.registry
        self._requests = Counter(
            "lenvm_route_requests", "Answers.", ["upstream", "status"], registry=own
        )
        self._hints = Counter("lenvm_route_hints", "Hints, by outcome.", ["outcome"], registry=own)
        self._broken = Counter(
            "lenvm_route_broken", "Answers cut short.", ["upstream"], registry=own
        )
        self._waited = Histogram(
            "lenvm_route_predict_seconds",
            "Wait for a prediction.",
            buckets=SECONDS,
            registry=own,
        )
        self._own = Histogram(
            "lenvm_route_own_seconds",
            "Time from request to server, without the prediction.",
            buckets=SECONDS,
            registry=own,
        )
        for what in ("requests", "tokens"):
            gauge = Gauge(f"lenvm_route_{what}_in_flight", "In flight.", ["upstream"], registry=own)
            for one in self._upstreams:
                gauge.labels(one.url).set_function(partial(getattr, one, what))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        if scope["type"] != "http":
            return None  # uvicorn answers a websocket with 403
        if not (scope.get("raw_path") or b"/").startswith(b"/"):  # would name another server
            return await problem(400, "the path does not begin with /.")(scope, receive, send)
        answer = self._own_page(scope["path"])
        if answer is not None:
            return await answer(scope, receive, send)
        started = time.perf_counter()
        try:
            body = await whole_body(receive, self.settings.largest_body)
        except Gone:
            return None
        except TooLarge:
            sentence = f"the body is larger than {self.settings.largest_body:,} bytes."
            return await problem(413, sentence)(scope, receive, send)
        work = asyncio.create_task(self._forward(scope, body, started, send))
        gone = asyncio.create_task(_disconnected(receive))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        work.cancel()  # the client has gone: the server need not go on
        with suppress(asyncio.CancelledError):
            await work

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for held in (self._session, self._predict):
            if held is not None:
                await held.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _own_page(self, path: str) -> Any:
        if path == "/metrics":
            return metrics_page(self.registry)
        if path == "/health":
            now = time.monotonic()
            states = [
                {"url": u.url, "reachable": u.absent_until <= now, "in_flight": u.requests}
                for u in self._upstreams
            ]
            return JSONResponse({"status": "ok", "upstreams": states})
        return None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self.settings.connect_seconds
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    async def _forward(self, scope: Scope, body: bytes, started: float, send: Send) -> None:
        ready = _ready(scope, body)
        waited = 0.0
        if ready.method == "POST" and scope["path"].endswith(HINTED) and self._predict is not None:
            before = time.perf_counter()
            await self._hint(ready)
            waited = time.perf_counter() - before
        self._own.observe(time.perf_counter() - started - waited)
        tried: list[str] = []
        for upstream, last in self._order():
            tokens = ready.length or 0.0
            upstream.requests += 1
            upstream.tokens += tokens
            try:
                failed = await self._through(upstream, ready, send)
            finally:
                upstream.requests -= 1
                upstream.tokens -= tokens
            if failed is None:
                return
            tried.append(failed)
            if last:
                break
        self._requests.labels("none", 502).inc()
        await problem(502, "no server answered: " + "; ".join(tried) + ".")(scope, _never, send)

    def _order(self) -> list[tuple[Upstream, bool]]:
        """Servers in the order in which they are tried, and whether it is the last try."""
        turn, now, count = next(self._turn), time.monotonic(), len(self._upstreams)
        spread = [self._upstreams[(turn + i) % count] for i in range(count)]
        order = sorted(spread, key=lambda u: (u.absent_until > now, u.tokens, u.requests))
        tries = order if count > 1 else [*order, *order]  # one may have closed an idle connection
        return [(upstream, number == len(tries) - 1) for number, upstream in enumerate(tries)]

    async def _hint(self, ready: Ready) -> None:
        """Predict, and fill the hints in; whatever fails here is counted and costs the hint."""
        try:
            body = json.loads(ready.body)
            if not isinstance(body, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            return self._hints.labels("unreadable").inc()  # the server says what is wrong
        ready.question = {name: body[name] for name in ASKED if name in body}
        outcome, length = await self._expected(ready, body)
        if length is None:
            length = self.settings.assumed_length
        self._hints.labels(outcome).inc()
        if length is None:
            return None
        headers = {name.lower(): value for name, value in ready.headers.items()}
        found = hinted(body, headers, length, self.settings, now=time.time())
        if self.settings.override:
            for name in itertools.chain.from_iterable(OWN[hint] for hint in self.settings.hints):
                ready.headers.popall(name, None)
        ready.headers.update(found.headers)
        ready.length = length
        if found.body != body:
            ready.body = json.dumps(found.body, separators=(",", ":")).encode()
        return None

    async def _expected(self, ready: Ready, body: Mapping[str, Any]) -> tuple[str, float | None]:
        """Outcome, as it is counted, and the expected tokens."""
        assert self._predict is not None
        before = time.perf_counter()
        try:
            ready.answer = await asyncio.wait_for(
                self._predict(ready.question), self.settings.predict_seconds
            )
            return "hinted", expected_length(ready.answer, body, self.settings)
        except TimeoutError:
            return "late", None
        except ValueError:
            return "refused", None
        except Exception:
            return "failed", None
        finally:
            self._waited.observe(time.perf_counter() - before)

    async def _through(self, upstream: Upstream, ready: Ready, send: Send) -> str | None:
        """Ask a server and pass its answer on; a reason if it gave none, and may be asked again."""
        try:
            response = await self._client().request(
                ready.method,
                URL(upstream.url + ready.path, encoded=True),
                data=ready.body or None,
                headers=ready.headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            absent = isinstance(error, (aiohttp.ClientConnectorError, TimeoutError))
            upstream.absent_until = time.monotonic() + (1.0 if absent else 0.0)
            return f"{upstream.url} {_why(error)}"
        upstream.absent_until = 0.0
        self._requests.labels(upstream.url, response.status).inc()
        try:
            await self._answer(upstream, ready, response, send)
        finally:
            response.close()  # a whole answer has given its connection back already
        return None

    async def _answer(
        self, upstream: Upstream, ready: Ready, response: aiohttp.ClientResponse, send: Send
    ) -> None:
        headers = [(k.lower(), v) for k, v in response.raw_headers if k.lower() not in HOP_BY_HOP]
        if ready.length is not None:
            headers.append((PREDICTED, str(round(ready.length)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        stream = response.content_type == "text/event-stream"
        remaining = self._remaining(ready) if stream and response.status == 200 else None
        held = b""
        try:
            async for chunk in response.content.iter_any():
                if stream:  # whole events alone: after half of one, no other could be said
                    chunk = held + chunk
                    chunk, held = chunk[: (end := whole_events(chunk))], chunk[end:]
                    chunk += remaining.after(chunk) if remaining and chunk else b""
                if chunk:
                    await _send_part(send, chunk)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._broken.labels(upstream.url).inc()
            if not stream:
                return  # no last part: uvicorn breaks the connection off
            sentence = f"the server {upstream.url} broke off in mid-stream: {_why(error)}."
            held = f"data: {json.dumps(error_body(502, sentence))}\n\n".encode()
        finally:
            if remaining is not None:
                remaining.close()
        await send({"type": "http.response.body", "body": held, "more_body": False})

    def _remaining(self, ready: Ready) -> Remaining | None:
        if not ready.remaining or self._predict is None or not ready.question:
            return None
        return Remaining(ready.question, self._predict, every=ready.remaining, first=ready.answer)


def _ready(scope: Scope, body: bytes) -> Ready:
    """A request without what belongs to the client's connection."""
    headers: CIMultiDict[str] = CIMultiDict()
    for key, value in scope["headers"]:
        if key not in HOP_BY_HOP and key not in (b"host", b"content-length"):
            headers.add(key.decode("latin-1"), value.decode("latin-1"))
    path = scope.get("raw_path") or scope["path"].encode()
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    every = headers.popone(REMAINING, "0")
    return Ready(
        scope["method"],
        (path + query).decode("latin-1"),
        headers,
        body,
        remaining=int(every) if every.isdecimal() else 0,
    )


def _why(error: BaseException) -> str:
    """What went wrong with a server, in words."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return "is not there"
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "hung up without an answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return "answered something that is no HTTP"
    return f"failed ({type(error).__name__}: {error})".rstrip(".")


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> dict[str, Any]:
    return {"type": "http.disconnect"}


class PredictorByUrl:
    """A predictor behind HTTP.

    Args:
        url: base URL of `lenvm predictor`.
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/") + "/predict"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Predict`; RuntimeError and aiohttp's own errors where it cannot answer now."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE)
            )
        async with self._session.post(self._url, json=question) as response:
            if response.status == 200:
                return await response.json()
            said = (await response.text())[:200]
        if response.status < 500:
            raise ValueError(said)
        raise RuntimeError(f"{response.status}: {said}")

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
