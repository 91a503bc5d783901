"""Do the servers of a run answer, and do they have the model?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from lenvm_rl.sampling.server.servers import RetryPolicy, Server, ServerPool

_QUICK = 30.0  # seconds that a list of models may take


@dataclass(frozen=True)
class Connected:
    """Servers that may be asked."""

    pool: ServerPool
    context: int | None
    """Tokens of prompt and response together: the least that any server says; None when no server
    says it. vLLM and SGLang do."""


async def connect(
    addresses: Sequence[str], model: str, retry: RetryPolicy, *, key: str | None = None
) -> Connected:
    """Ask every server for its models.

    Args:
        addresses: with or without `/v1`.
        model: must be among the models of every server that lists some.
        key: sent as bearer token.
    Raises:
        ValueError: none answers, one wants another key, or one does not have the model.
    """
    servers = [Server(base=base_of(address), client=_client(key, retry)) for address in addresses]
    try:
        answers = await asyncio.gather(*(_models(server) for server in servers))
        silent = [answer for answer in answers if isinstance(answer, str)]
        if len(silent) == len(servers):
            raise ValueError(
                f"no server answers: {'; '.join(silent)}. Start one (vllm serve MODEL), or check "
                "the address."
            )
        pool = ServerPool(servers, retry)
        contexts = []
        for server, answer in zip(servers, answers, strict=True):
            if isinstance(answer, str):
                pool.down(server)
            elif answer:
                contexts.append(_entry(answer, model, server).get("max_model_len"))
    except BaseException:
        for server in servers:
            await server.client.aclose()
        raise
    return Connected(pool, min((c for c in contexts if isinstance(c, int)), default=None))


def base_of(address: str) -> str:
    """An address up to and including `/v1`."""
    address = address.strip().rstrip("/")
    return address if address.endswith("/v1") else address + "/v1"


def _client(key: str | None, retry: RetryPolicy) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=retry.connect_timeout),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


async def _models(server: Server) -> list[dict[str, Any]] | str:
    """The models that it lists (nothing when it has no list), or why it does not answer."""
    try:
        answer = await server.client.get(server.base + "/models", timeout=_QUICK)
    except httpx.HTTPError as error:
        return f"{server.base} ({type(error).__name__} {error})"
    if answer.status_code in (401, 403):
        raise ValueError(
            f"{server.base} answers {answer.status_code}: set OPENAI_API_KEY to a key it takes."
        )
    try:
        return [dict(model) for model in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _entry(models: Sequence[dict[str, Any]], model: str, server: Server) -> dict[str, Any]:
    for entry in models:
        if entry.get("id") == model:
            return entry
    raise ValueError(
        f"{server.base} does not serve {model!r}, it has {[e.get('id') for e in models]}: give "
        "one of these as the model."
    )
