"""Engine that asks OpenAI-compatible servers, guided or not, with the openai SDK.

A request asks for several completions of one prompt, which share its prefill; many are in flight.
Their number is bounded, and so is what waits for the disk: while rows are being written nothing new
is asked. What a server will not do becomes a `Failure` of that request alone, and the next run asks
again. The random stream is the server's: rows carry no seed unless seeds are sent. A vLLM server
draws the same numbers again after a restart, so give it another `--seed` then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.model.policy import policy_configs, policy_facts
from lenvm_rl.model.tokens import token_ids_of
from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.rollouts.text import TextCodec
from lenvm_rl.sampling.run import EngineFacts, Failure, Request, lenvm_facts
from lenvm_rl.sampling.server.answers import Dialect, Problem, read_answer, request_body

if TYPE_CHECKING:
    from lenvm_rl.sampling.server.servers import ServerPool

_PAUSE = 0.5  # seconds before an answer that could not be read is asked for again; doubles


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Which servers, and how they are asked."""

    server: Sequence[str] | None = None
    """OpenAI-compatible servers that sample: http://HOST:PORT[,URL2,...], with or without /v1."""
    model: str | None = None
    """With servers: name of the model there, and in the file (default: the policy's)."""
    chat: bool = False
    """With servers: send messages through the server's chat template instead of token ids."""
    token_ids: Literal["server", "text"] = "server"
    """With servers: take token ids from it, or make them from text, and say so in the file."""
    concurrency: int = 256
    """With servers: completions in flight, over all servers."""
    per_request: int = 8
    """With servers: maximum completions in one request, which is as slow as its longest."""
    send_seeds: bool = False
    """With servers: send a seed, and a request, for every completion. vLLM's CPU runner dies of
    seeds where a prompt is read in pieces."""
    retries: int = 10
    """With servers: further attempts of a request that failed."""
    timeout: float = 1800.0
    """With servers: seconds for a request."""
    patience: float = 300.0
    """With servers: seconds that no server may be reachable before the run ends."""
    end_token: list[str] | None = None
    """With servers: token or id that ends a response, if tokenizer and generation configuration do
    not say it."""
    think_tags: str | None = None
    """With servers: how the policy writes reasoning that is kept beside the content, see
    `lenvm_rl.rollouts.text.reasoning_of`."""
    vocab_size: int | None = None
    """With servers: rows of the policy's output layer, if no configuration lies beside its
    tokenizer."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request's body, e.g. `thinking_token_budget`."""

    def __post_init__(self) -> None:
        if self.server is not None and not any(map(str.strip, self.server)):
            raise ValueError("no server given: write http://HOST:PORT, several with commas.")
        for address in self.server or ():
            if not _is_address(address):
                raise ValueError(f"server {address!r}: write http://HOST:PORT or https://HOST.")
        if self.token_ids not in ("server", "text"):
            raise ValueError(f"token_ids must be server or text, got {self.token_ids!r}.")
        if self.concurrency < 1 or self.per_request < 1:
            raise ValueError(
                "concurrency and completions per request must be at least 1, got "
                f"{self.concurrency} and {self.per_request}."
            )
        if self.retries < 0:
            raise ValueError(f"retries must be at least 0, got {self.retries}.")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}.")


def _is_address(text: str) -> bool:
    """Whether a text is http(s)://HOST, with a port or without."""
    try:
        url = urlsplit(text.strip())
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


class ServerEngine:
    """An `Engine` that asks servers. Its event loop runs while the next result is awaited and at no
    other time, so that a slow disk slows the requests down.

    Args:
        settings: with at least one server and the model's name.
        facts: of the policy, see `open`.
        codec: makes ids from text, where the settings ask for that.
        tokenizer: of the policy, for callers that render prompts.
    """

    def __init__(
        self,
        settings: ServerSettings,
        facts: EngineFacts,
        *,
        codec: TextCodec | None = None,
        tokenizer: Any = None,
    ):
        if not settings.server:
            raise ValueError("no server to ask: name at least one in the settings.")
        self.settings, self.facts, self.tokenizer = settings, facts, tokenizer
        self._dialect = Dialect(
            model=settings.model or facts.policy,
            chat=settings.chat,
            codec=codec,
            end_ids=facts.eos_ids,
            chat_template_args=facts.chat_template_args,
            fields=settings.fields,
        )
        self._results: asyncio.Queue[Rollout | Failure | None]

    @classmethod
    def open(
        cls,
        settings: ServerSettings,
        policy: str | Path,
        *,
        tokenizer: Any = None,
        lenvm: str | Path | None = None,
        chat_template_args: dict[str, Any] | None = None,
    ) -> Self:
        """An engine for the servers of a policy.

        Args:
            policy: directory or hub name of the policy's tokenizer.
            tokenizer: from there; None loads it.
            lenvm: name of the value model that guides at the server, for the file.
            chat_template_args: what the chat template gets besides the messages.
        Raises:
            ValueError: an end token that the tokenizer does not know, or none at all.
        """
        if tokenizer is None:
            tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
        sha = tokenizer_sha(tokenizer)
        named = token_ids_of(tokenizer, settings.end_token or ())
        facts = policy_facts(policy, tokenizer, end_ids=named, vocab_size=settings.vocab_size)
        codec = None
        if settings.token_ids == "text":
            known = policy_configs(policy)
            codec = TextCodec.from_tokenizer(
                tokenizer,
                tokenizer_sha=sha,
                end_ids=named,
                generation=known.generation,
                config=known.config,
                chat=settings.chat or bool(getattr(tokenizer, "chat_template", None)),
                reasoning=settings.think_tags,
            )
            facts = replace(facts, eos_ids=sorted(codec.ends))
        return cls(
            settings,
            EngineFacts(
                policy=settings.model or str(policy),
                tokenizer_sha=sha,
                own_seeds=settings.send_seeds,
                retokenized=codec is not None,
                lenvm=lenvm_facts(lenvm),
                **facts.of_run(),
            ),
            codec=codec,
            tokenizer=tokenizer,
        )

    def __call__(self, requests: Iterator[Request], resumed: int) -> Iterator[Rollout | Failure]:
        """Check the servers, and return their results as they come.

        Raises:
            ValueError: no server answers, or one does not have the model.
        """
        from lenvm_rl.sampling.server.servers import ServerPool, open_servers  # the openai SDK

        chosen = self.settings
        runner = asyncio.Runner()
        try:
            servers = open_servers(
                chosen.server or (), retries=chosen.retries, timeout=chosen.timeout
            )
            pool = ServerPool(servers, patience=chosen.patience)
            runner.run(pool.connect(self._dialect.model))
        except BaseException:
            runner.close()
            raise
        self._dialect = replace(self._dialect, context=pool.context)
        self._results = asyncio.Queue(4096)
        return self._iterate(runner, pool, requests)

    def _iterate(
        self, runner: asyncio.Runner, pool: ServerPool, requests: Iterator[Request]
    ) -> Iterator[Rollout | Failure]:
        with runner:  # closing it cancels what is in flight
            asking = runner.get_loop().create_task(self._ask_all(pool, requests))
            while batch := runner.run(self._next()):
                yield from batch
            runner.run(_finish(asking, pool))

    async def _next(self) -> list[Rollout | Failure]:
        """All results that are there, at least one; nothing at the end."""
        batch = [await self._results.get()]
        while not self._results.empty():
            batch.append(self._results.get_nowait())
        if None in batch and len(batch) > 1:
            self._results.put_nowait(None)
        return [result for result in batch if result is not None]

    async def _ask_all(self, pool: ServerPool, requests: Iterator[Request]) -> None:
        """So many requests at a time that `concurrency` completions are in flight."""
        per_request = 1 if self.settings.send_seeds else self.settings.per_request
        work = together(requests, per_request)

        async def worker() -> None:
            for samples in work:  # one iterator for all workers
                await self._ask(pool, samples)

        this = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(-(-self.settings.concurrency // per_request)):
                    group.create_task(worker())
        finally:
            if this is None or not this.cancelling():  # then nobody reads any more
                await self._results.put(None)

    async def _ask(self, pool: ServerPool, samples: list[Request]) -> None:
        """Ask until all samples of a prompt are there, or there is no point in it."""
        attempt, last = 0, "none has answered yet"
        try:
            while samples:
                body = request_body(self._dialect, samples)
                server = await pool.acquire()
                if server is None:
                    raise Problem("no server", f"last: {last}", retry=False)
                try:
                    chat = self._dialect.sends_messages(samples[0])
                    answer = await pool.ask(server, body, chat=chat)
                    results = read_answer(answer, self._dialect, samples)
                except Problem as problem:
                    last = str(problem)
                    if server.strikes:
                        continue  # costs no attempt: it waits in `acquire`
                    attempt += 1
                    if not problem.retry or attempt > self.settings.retries:
                        raise
                    await asyncio.sleep(min(_PAUSE * 2 ** (attempt - 1), 30.0))
                    continue
                for result in results:
                    await self._results.put(result)
                samples = samples[len(results) :]  # fewer than asked: the rest again
        except Problem as problem:
            for request in samples:
                await self._results.put(request.failure(problem.kind, problem.detail))


def together(requests: Iterator[Request], per_request: int) -> Iterator[list[Request]]:
    """Samples of a prompt together, at most `per_request` of them."""
    for _, group in groupby(requests, key=lambda request: request.task.prompt_id):
        samples = list(group)
        for start in range(0, len(samples), per_request):
            yield samples[start : start + per_request]


async def _finish(asking: asyncio.Task[None], pool: ServerPool) -> None:
    """Raise what a worker raised; close the connections."""
    try:
        await asking
    finally:
        await pool.close()
