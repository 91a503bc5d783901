"""Refusals of requests before they are scheduled: one sentence each (HTTP 400), and the remedy.

`check_request` refuses guidance that is malformed or contradicts a request's other settings. It
runs in vLLM's front end, which does not know the engine's additional_config. A request that names
gamma is therefore checked against the checkpoint in LENVM_CHECKPOINT (`lenvm serve` sets it).

`RefuseMisplaced` refuses guidance that stands where nobody would look: vLLM ignores fields that it
does not know, and beam search makes its own sampling parameters, so that a request would be
answered with status 200, unguided. `lenvm serve` puts it in front of the server; any other one does
so with `--middleware lenvm_rl.vllm.refusals.RefuseMisplaced`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.guidance.settings import PREFIX, RESPONSE, counted_by
from lenvm_rl.vllm.options import ENVIRONMENT, REASONING, checkpoint_config

if TYPE_CHECKING:
    from vllm import SamplingParams

_CHECKPOINT = ENVIRONMENT["checkpoint"]


def check_request(params: SamplingParams) -> None:
    """Refuse a request whose guidance is malformed or contradicts its other settings.

    A stop string ends a response where guidance does not see it. vLLM looks for none in the first
    `min_tokens`, so that `at_least` sets these, if the request has stop strings.

    Raises:
        ValueError: what is wrong, and what to send instead.
    """
    settings = GuidanceSettings.from_args(params.extra_args)
    if settings is None:
        return
    counted = _check_checkpoint(settings)
    if settings.target is None:
        return
    if os.environ.get(REASONING) == "1" and counted == RESPONSE:
        raise ValueError(
            f"lenvm_mode {settings.mode} counts thinking and answer together, and could end the "
            "response inside its thinking: this server separates reasoning, so send mode tilt or "
            "scale, bound the thinking with vLLM's thinking_token_budget, or serve a LenVM that "
            "counts the thinking (`lenvm segment`)."
        )
    if params.ignore_eos and not params.stop_token_ids:
        raise ValueError(
            f"ignore_eos contradicts lenvm_mode {settings.mode}: nothing could end the response. "
            "Leave ignore_eos out, or name stop_token_ids."
        )
    if settings.mode != "at_least" and (params.min_tokens or 0) > settings.target:
        raise ValueError(
            f"min_tokens {params.min_tokens} is more than lenvm_target {settings.target} of mode "
            f"{settings.mode}: the response cannot be both. Lower one of them."
        )
    if settings.mode == "at_least" and (params.max_tokens or settings.target) < settings.target:
        raise ValueError(
            f"max_tokens {params.max_tokens} is less than lenvm_target {settings.target} of mode "
            "at_least: the response would be cut before it. Raise max_tokens."
        )
    if params.stop:
        _heed_stop_strings(settings, params)


def _heed_stop_strings(settings: GuidanceSettings, params: SamplingParams) -> None:
    if settings.mode in ("equal", "equal_soft"):
        raise ValueError(
            f"stop strings ({params.stop!r}) end a response where lenvm_mode {settings.mode} does "
            "not see it, before its target: use stop_token_ids, or leave stop out."
        )
    if settings.mode == "at_least":
        needed = settings.target - settings.count_eos
        params.min_tokens = max(params.min_tokens or 0, needed)


def _check_checkpoint(settings: GuidanceSettings) -> str:
    """The segment that the server's LenVM counts; of an unknown one, whole responses."""
    checkpoint = os.environ.get(_CHECKPOINT)
    if checkpoint:
        config = _config(checkpoint)
        settings.check_model(config)
        return counted_by(config)
    for name, usual in (("gamma", None), ("segment", RESPONSE), ("risk", None)):
        if (given := getattr(settings, name)) != usual:
            raise ValueError(
                f"lenvm_{name} {given} cannot be compared with the LenVM's own: the server was "
                f"started without {_CHECKPOINT}. Leave lenvm_{name} out; the checkpoint knows it."
            )
    return RESPONSE


@lru_cache(maxsize=4)
def _config(checkpoint: str):
    return checkpoint_config(checkpoint)


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
