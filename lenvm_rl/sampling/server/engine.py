"""How are many requests kept in flight, and what becomes of each?

Their number is bounded, and so is what waits for the disk: while rows are being written nothing new
is asked. Problems are tried again after growing, jittered pauses; what a server will not do becomes
a `Failure`, and the next run asks again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import httpx

from lenvm_rl.rollouts.text import TextCodec
from lenvm_rl.sampling.run import Failure, Sample, SamplingRun, Task
from lenvm_rl.sampling.server.connect import connect
from lenvm_rl.sampling.server.request import Dialect, Problem, read_answer, request_body
from lenvm_rl.sampling.server.servers import RetryPolicy, Server, ServerPool

UNREACHABLE = "cannot connect"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Which servers, and how they are asked."""

    servers: Sequence[str]
    """Addresses, with or without `/v1`."""
    model: str
    """Name of the model at the servers; also the policy's name in the file."""
    chat: bool = False
    """Messages through the server's chat template instead of token ids."""
    token_ids: str = "server"
    """"server": answers must have token ids. "text": ids are made from text, and the file says so
    (metadata key `retokenized`)."""
    concurrency: int = 256
    """Completions in flight, over all servers."""
    per_request: int = 8
    """Most completions of a prompt in one request. A request is as slow as its longest."""
    own_seeds: bool = False
    """Send a seed with every completion; then each is a request of its own. vLLM's CPU runner dies
    of seeds where a prompt is read in pieces."""
    retry: RetryPolicy = RetryPolicy()

    def __post_init__(self) -> None:
        if not self.servers:
            raise ValueError("no server given: write http://HOST:PORT, several with commas.")
        for address in self.servers:
            if not _is_address(address.strip()):
                raise ValueError(f"server {address!r}: write http://HOST:PORT or https://HOST.")
        if self.token_ids not in ("server", "text"):
            raise ValueError(f"token_ids must be server or text, got {self.token_ids!r}.")
        if self.concurrency < 1 or self.per_request < 1:
            raise ValueError(
                "concurrency and completions per request must be at least 1, got "
                f"{self.concurrency} and {self.per_request}."
            )


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


class ServerEngine:
    """An engine of `fill` that asks servers. Its event loop runs while the next result is awaited
    and at no other time, so that a slow disk slows the requests down."""

    def __init__(self, settings: ServerSettings, run: SamplingRun, codec: TextCodec | None):
        self._settings, self._run = settings, run
        self._dialect = Dialect(model=settings.model, chat=settings.chat, codec=codec)
        self._results: asyncio.Queue[Sample | Failure | None] = asyncio.Queue(4096)

    def __call__(
        self, missing: Iterator[tuple[Task, int]], resumed: int
    ) -> Iterator[Sample | Failure]:
        """Check the servers, and return their results as they come."""
        chosen = self._settings
        key = os.environ.get("OPENAI_API_KEY")
        runner = asyncio.Runner()
        try:
            found = runner.run(connect(chosen.servers, chosen.model, chosen.retry, key=key))
        except BaseException:
            runner.close()
            raise
        self._dialect = replace(
            self._dialect, extended=found.context is not None, context=found.context
        )
        return self._iterate(runner, found.pool, missing)

    def _iterate(
        self, runner: asyncio.Runner, pool: ServerPool, missing: Iterator[tuple[Task, int]]
    ) -> Iterator[Sample | Failure]:
        with runner:  # closing it cancels what is in flight
            asking = runner.get_loop().create_task(self._ask_all(pool, missing))
            while batch := runner.run(self._next()):
                yield from batch
            runner.run(_finish(asking, pool))

    async def _next(self) -> list[Sample | Failure]:
        """All results that are there, at least one; nothing at the end."""
        batch = [await self._results.get()]
        while not self._results.empty():
            batch.append(self._results.get_nowait())
        if None in batch and len(batch) > 1:
            self._results.put_nowait(None)
        return [result for result in batch if result is not None]

    async def _ask_all(self, pool: ServerPool, missing: Iterator[tuple[Task, int]]) -> None:
        """So many requests at a time that `concurrency` completions are in flight."""
        per_request = 1 if self._settings.own_seeds else self._settings.per_request
        work = in_requests(missing, per_request)

        async def worker() -> None:
            for task, sample_ids in work:  # one iterator for all workers
                await self._ask(pool, task, sample_ids)

        this = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(-(-self._settings.concurrency // per_request)):
                    group.create_task(worker())
        finally:
            if this is None or not this.cancelling():  # then nobody reads any more
                await self._results.put(None)

    async def _ask(self, pool: ServerPool, task: Task, sample_ids: list[int]) -> None:
        """Ask until all samples of a request are there, or there is no point in it."""
        attempt, last = 0, "none has answered yet"
        try:
            while sample_ids:
                body = request_body(self._dialect, self._run, task, sample_ids)
                server = await pool.acquire()
                if server is None:
                    raise Problem("no server", f"last: {last}", retry=False)
                try:
                    results = await self._send(pool, server, body, task, sample_ids)
                except Problem as problem:
                    last = str(problem)
                    if problem.kind == UNREACHABLE:
                        continue  # costs no attempt: it waits in `acquire`
                    attempt += 1
                    if not problem.retry or attempt > self._settings.retry.retries:
                        raise
                    await asyncio.sleep(self._settings.retry.delay(attempt))
                    continue
                for result in results:
                    await self._results.put(result)
                sample_ids = sample_ids[len(results) :]  # fewer than asked: the rest again
        except Problem as problem:
            await self._results.put(
                Failure(task=task, sample_ids=sample_ids, kind=problem.kind, detail=problem.detail)
            )

    async def _send(
        self,
        pool: ServerPool,
        server: Server,
        body: dict[str, Any],
        task: Task,
        sample_ids: list[int],
    ) -> list[Sample | Failure]:
        """One request and what became of its completions; at least of one, or a Problem."""
        limit = self._settings.retry.timeout
        try:
            async with asyncio.timeout(limit):
                answer = await server.client.post(server.base + self._dialect.path, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            pool.down(server)
            detail = f"{server.base}: {error or type(error).__name__}"
            raise Problem(UNREACHABLE, detail, retry=True) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Problem("timeout", f"no answer within {limit:g} s", retry=True) from error
        except httpx.HTTPError as error:
            detail = f"{type(error).__name__}: {error}"
            raise Problem("connection lost", detail, retry=True) from error
        finally:
            pool.release(server)
        pool.answered(server)
        try:
            return read_answer(answer, self._dialect, task, sample_ids, end_ids=self._run.eos_ids)
        except Problem as problem:
            pool.pause(server, problem.retry_after)
            raise


def in_requests(
    missing: Iterator[tuple[Task, int]], per_request: int
) -> Iterator[tuple[Task, list[int]]]:
    """Samples of a prompt together, at most `per_request` of them."""
    for _, group in groupby(missing, key=lambda item: item[0].prompt_id):
        samples = list(group)
        for start in range(0, len(samples), per_request):
            part = samples[start : start + per_request]
            yield part[0][0], [sample_id for _, sample_id in part]


async def _finish(asking: asyncio.Task[None], pool: ServerPool) -> None:
    """Raise what a worker raised; close the connections."""
    try:
        await asking
    finally:
        for server in pool.servers:
            await server.client.aclose()
