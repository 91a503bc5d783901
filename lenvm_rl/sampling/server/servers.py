"""Servers of a run: which of them gets the next request, and what becomes of one that is down.

Requests go to the server with the fewest in flight, servers taking turns among equals. The openai
SDK asks each of them again where that may help (busy, broken, Retry-After); one that then cannot be
reached is taken out, and asked for its models now and then until it is back. When none has been
reachable for `patience` seconds, the run is over.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from lenvm_rl.sampling.server.answers import Problem, refusal

_QUICK = 30.0  # seconds that a list of models may take
_PAUSES = (0.5, 30.0)  # seconds before a server that is down is asked again: doubles in between


@dataclass(kw_only=True, eq=False)
class Server:
    """One server and how it is doing."""

    base: str
    """Its address up to and including `/v1`."""
    client: Any
    """`openai.AsyncOpenAI`."""
    in_flight: int = 0
    strikes: int = 0
    """Failures to reach it in a row; 0 when it is up."""
    not_before: float = 0.0
    """No request before this time."""
    turn: int = 0
    """When it was last chosen, in requests of all servers."""


class ServerPool:
    """The servers of a run.

    Args:
        servers: at least one.
        patience: seconds that no server may be reachable before the run ends.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        assert servers
        self.servers, self._patience, self._clock = list(servers), patience, clock
        self.context: int | None = None
        """Tokens of prompt and response together: the least that any server says; None when no
        server says it. vLLM and SGLang do."""
        self._turns = 0
        self._answered = clock()

    async def connect(self, model: str) -> None:
        """Ask every server for its models.

        Raises:
            ValueError: none answers, one wants another key, or one does not have the model.
        """
        answers = await asyncio.gather(*(_models(server) for server in self.servers))
        silent = [answer for answer in answers if isinstance(answer, str)]
        if len(silent) == len(self.servers):
            raise ValueError(
                f"no server answers: {'; '.join(silent)}. Start one (vllm serve MODEL), or check "
                "the address."
            )
        contexts = []
        for server, answer in zip(self.servers, answers, strict=True):
            if isinstance(answer, str):
                self.down(server)
            elif answer:
                if model not in answer:
                    raise ValueError(
                        f"{server.base} does not serve {model!r}, it has {list(answer)}: give "
                        "one of these as the model."
                    )
                contexts.append(answer[model])
        self.context = min((c for c in contexts if isinstance(c, int)), default=None)

    async def acquire(self) -> Server | None:
        """The server for the next request, waiting until there is one; None when the run is over.

        Every server that was acquired is given back by `release`, which `ask` does.
        """
        while True:
            now = self._clock()
            free = [s for s in self.servers if s.not_before <= now]
            down = next((s for s in free if s.strikes), None)
            if down is not None:
                self._strike(down)  # nobody else asks it meanwhile, nor for a while if it is down
                if not isinstance(await _models(down), str):
                    self.answered(down)
                continue
            if free:
                return self._take(min(free, key=lambda s: (s.in_flight, s.turn)))
            if all(s.strikes for s in self.servers) and now - self._answered > self._patience:
                return None
            earliest = min(s.not_before for s in self.servers)
            await asyncio.sleep(min(max(earliest - now, 0.01), 1.0))

    def _take(self, server: Server) -> Server:
        self._turns += 1
        server.turn = self._turns
        server.in_flight += 1
        return server

    async def ask(self, server: Server, body: dict[str, Any], *, chat: bool) -> bytes:
        """The answer of a server that was acquired, once the SDK has tried again what may be.

        Args:
            body: of the request.
            chat: to `/chat/completions` instead of `/completions`.
        Raises:
            Problem: there is none.
        """
        create = server.client.completions.with_raw_response.create
        if chat:
            create = server.client.chat.completions.with_raw_response.create
        # As extra_body nothing is walked through: of 8,000 prompt tokens that takes 60 ms of CPU.
        empty: dict[str, Any] = {"messages": []} if chat else {"prompt": ""}
        try:
            answer = await create(model=body["model"], **empty, extra_body=body)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                self.down(server)
            if isinstance(error, openai.APITimeoutError):
                detail = f"no answer within {server.client.timeout.read:g} s"
                raise Problem("timeout", detail, retry=False) from error
            detail = f"{server.base}: {type(cause).__name__} {cause}"
            raise Problem("connection lost", detail, retry=False) from error
        except openai.APIStatusError as error:
            self.answered(server)
            raise refusal(error.status_code, error.response.text) from error
        finally:
            self.release(server)
        self.answered(server)
        return answer.content

    def release(self, server: Server) -> None:
        """The request has ended, well or not."""
        server.in_flight -= 1

    def answered(self, server: Server) -> None:
        """It gave an answer, good or bad: it is up."""
        if server.strikes:
            server.strikes, server.not_before = 0, 0.0
        self._answered = self._clock()

    def down(self, server: Server) -> None:
        """It could not be reached. Of many requests that find that out, one counts."""
        if not server.strikes:
            self._strike(server)

    def _strike(self, server: Server) -> None:
        first, longest = _PAUSES
        server.strikes += 1
        pause = min(longest, first * 2.0 ** min(server.strikes - 1, 30))
        server.not_before = self._clock() + pause

    async def close(self) -> None:
        """Close all connections."""
        for server in self.servers:
            await server.client.close()


def open_servers(addresses: Sequence[str], *, retries: int, timeout: float) -> list[Server]:
    """Clients of servers, with the key of OPENAI_API_KEY where there is one.

    Args:
        addresses: with or without `/v1`.
        retries: further attempts of a request that a server failed.
        timeout: seconds for a request.
    """
    key = os.environ.get("OPENAI_API_KEY") or "none"
    limit = openai.Timeout(timeout, connect=min(timeout, 10.0))
    return [
        Server(
            base=base,
            client=openai.AsyncOpenAI(
                base_url=base, api_key=key, max_retries=retries, timeout=limit
            ),
        )
        for base in map(base_of, addresses)
    ]


def base_of(address: str) -> str:
    """An address up to and including `/v1`."""
    address = address.strip().rstrip("/")
    return address if address.endswith("/v1") else address + "/v1"


async def _models(server: Server) -> dict[str, int | None] | str:
    """Name -> context of the models that it lists (nothing when it has no list), or why it does not
    answer."""
    client = server.client.with_options(max_retries=0, timeout=_QUICK)
    try:
        listed = await client.models.list()
        return {entry.id: getattr(entry, "max_model_len", None) for entry in listed.data}
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ValueError(
            f"{server.base} answers {error.status_code}: set OPENAI_API_KEY to a key it takes."
        ) from error
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        return f"{server.base} ({type(cause).__name__} {cause})"
    except openai.APIStatusError as error:
        return {} if error.status_code < 500 else f"{server.base} (status {error.status_code})"
    except (openai.OpenAIError, ValueError, TypeError, AttributeError):
        return {}  # it answers, and has no list that can be read
