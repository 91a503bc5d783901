"""Which of several servers gets the next request, and what becomes of one that is down?

Requests go to the server with the fewest in flight, servers taking turns among equals. One that
cannot be reached is taken out; after a pause that grows up to half a minute it is asked for its
models, and an answer brings it back. One that asks to wait (Retry-After) is left alone so long.
When none has been reachable for `patience` seconds, the run is over.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

_PROBE = 10.0  # seconds that a server may take to show that it is back


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how long to try. All times are seconds."""

    retries: int = 10
    """Further attempts of a request that the server failed. A server that cannot be reached costs
    none: its requests wait."""
    first_delay: float = 0.5
    """Mean wait before the first retry; it doubles with each, times a random 0.5 .. 1.5."""
    longest_delay: float = 30.0
    patience: float = 300.0
    """How long no server may be reachable before the run ends."""
    timeout: float = 1800.0
    """Whole request, from sending to the last byte."""
    connect_timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries must be at least 0, got {self.retries}.")
        if not (self.timeout > 0 and self.connect_timeout > 0):
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}.")

    def delay(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt` >= 1."""
        mean = min(self.longest_delay, self.first_delay * 2.0 ** min(attempt - 1, 30))
        return mean * random.uniform(0.5, 1.5)  # so that many clients do not come back together


@dataclass(kw_only=True, eq=False)
class Server:
    """One server and how it is doing."""

    base: str
    """Its address up to and including `/v1`."""
    client: httpx.AsyncClient
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
        retry: see `RetryPolicy`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        retry: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        assert servers
        self.servers, self._retry, self._clock = list(servers), retry, clock
        self._turns = 0
        self._answered = clock()

    async def acquire(self) -> Server | None:
        """The server for the next request, waiting until there is one; None when the run is over.

        Every server that was acquired is given back by `release`.
        """
        while True:
            now = self._clock()
            free = [s for s in self.servers if s.not_before <= now]
            down = next((s for s in free if s.strikes), None)
            if down is not None:
                await self._probe(down)
                continue
            if free:
                return self._take(min(free, key=lambda s: (s.in_flight, s.turn)))
            if all(s.strikes for s in self.servers) and now - self._answered > self._retry.patience:
                return None
            earliest = min(s.not_before for s in self.servers)
            await asyncio.sleep(min(max(earliest - now, 0.01), 1.0))

    def _take(self, server: Server) -> Server:
        self._turns += 1
        server.turn = self._turns
        server.in_flight += 1
        return server

    async def _probe(self, server: Server) -> None:
        """Find out whether it is back. Nobody else does meanwhile, nor for a while if it is not."""
        self._strike(server)
        try:
            answer = await server.client.get(server.base + "/models", timeout=_PROBE)
        except httpx.HTTPError:
            return
        if answer.status_code < 500:
            self.answered(server)

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

    def pause(self, server: Server, seconds: float | None) -> None:
        """It asked to wait."""
        if seconds is not None:
            wait = min(seconds, self._retry.patience)
            server.not_before = max(server.not_before, self._clock() + wait)

    def _strike(self, server: Server) -> None:
        server.strikes += 1
        server.not_before = self._clock() + self._retry.delay(server.strikes)
