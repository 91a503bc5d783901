"""Which HTTP requests ask for guidance where nobody would look? They get 400 and the remedy.

vLLM ignores fields that it does not know, and beam search makes its own sampling parameters: a
request would be answered with status 200, unguided. `lenvm serve` puts this in front of the
server; any other one does so with `--middleware lenvm_rl.vllm.middleware.RefuseMisplaced`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lenvm_rl.guidance.settings import PREFIX

CONTAINER = "vllm_xargs"
Receive = Callable[[], Awaitable[dict[str, Any]]]


class RefuseMisplaced:
    """ASGI middleware; what it does not refuse passes untouched, byte for byte.

    Args:
        app: the server.
    """

    def __init__(self, app: Callable):
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Callable) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
            messages.append(await receive())
        sentence = misplaced(b"".join(message.get("body", b"") for message in messages))
        if sentence is not None:
            return await _refuse(sentence, send)

        async def replay() -> dict[str, Any]:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def misplaced(body: bytes) -> str | None:
    """What is wrong with a request's body in JSON, and what to send; None where nothing is."""
    if PREFIX.encode() not in body:  # nearly every request of unguided traffic
        return None
    try:
        request = json.loads(body)
    except ValueError:
        return None  # the server says it better
    if not isinstance(request, dict):
        return None
    for name, value in request.items():
        if name.startswith(PREFIX):
            return _elsewhere(name, f"{name} is a field of the request itself")
        inner = value if isinstance(value, Mapping) and name != CONTAINER else {}
        for key in inner:
            if key.startswith(PREFIX) or key == CONTAINER:
                return _elsewhere(key, f"{key} is inside {name}")
    given = request.get(CONTAINER)
    guided = isinstance(given, dict) and any(key.startswith(PREFIX) for key in given)
    if guided and request.get("use_beam_search"):
        return (
            "beam search cannot be guided: vLLM makes its own sampling parameters for it, without "
            f"{CONTAINER}. Leave use_beam_search out; temperature 0 takes the most probable token."
        )
    return None


def _elsewhere(key: str, where: str) -> str:
    name = "lenvm_mode" if key == CONTAINER else key
    return (
        f"{where}, where vLLM ignores it and the response would be unguided: send it as "
        f'"{CONTAINER}": {{"{name}": ...}} at the top of the request (with the openai client '
        f'extra_body={{"{CONTAINER}": {{"{name}": ...}}}}).'
    )


async def _refuse(sentence: str, send: Callable) -> None:
    """Answer as vLLM does to a request that is not valid."""
    error = {"message": sentence, "type": "BadRequestError", "param": None, "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
