"""How does a served policy answer the requests of an evaluation? Over HTTP, many at a time.

    server = ServedPolicy("http://127.0.0.1:8000")
    completions = server.generate(requests, settings)

The same requests and settings that the in-process sampler takes go to `/v1/completions` of a
`lenvm serve` server as token ids, guidance in `vllm_xargs`, so that one evaluation serves both. A
server that is busy or breaks an answer is asked again; a request that fails in the end becomes a
completion with finish_reason "error", which evaluations score as a failure and report.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.model import load_tokenizer
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.sampling.pictures import PicturedRequest
from lenvm_rl.sampling.transformers.sampler import Completion, Request

_AGAIN = {408, 409, 425, 429, 499, 500, 502, 503, 504}
ERROR = "error"
"""`finish_reason` of a completion that could not be made."""


class ServedPolicy:
    """A policy behind a `lenvm serve` server, or any vLLM server for unguided requests.

    Args:
        url: base address, with or without `/v1`.
        concurrency: requests under way at once; the server queues what exceeds its own limit.
        timeout: seconds that one request may take.
        retries: further tries of a request that failed.
        seeds: send every request's seed. Completions can then be repeated; on a GPU it costs speed,
            and vLLM's CPU runner dies of seeds where a prompt is read in pieces.
        chat_template_args: what the chat template gets besides the messages, where the server
            renders them (prompts with pictures).
        delay: seconds before the first of them; doubled for each next one, at most 20.
        sleep: waits; tests give their own.
    Raises:
        ValueError: no server answers there, or it serves no model.
    """

    def __init__(
        self,
        url: str,
        *,
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 4,
        seeds: bool = False,
        chat_template_args: dict[str, Any] | None = None,
        delay: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.concurrency, self.retries, self.seeds = concurrency, retries, seeds
        self.delay, self.sleep = delay, sleep
        self.chat_template_args = chat_template_args or {}
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(timeout=timeout, limits=limits)
        self.failures: Counter[str] = Counter()
        """Failed requests by kind, over all calls."""
        self.model = self._served_model()

    def generate(
        self,
        requests: Sequence[Request],
        settings: Sequence[GuidanceSettings | None],
        *,
        fields: Mapping[str, Any] | None = None,
        progress: Callable[[int], None] = lambda steps: None,
    ) -> list[Completion]:
        """Completions of `requests`, in their order; see `evals.control.Generate`.

        Args:
            fields: further fields of every request's body, e.g. `thinking_token_budget`.
            progress: called with 1 when a request is done.
        Raises:
            ValueError: the server refuses a request (its sentence), or all of them fail.
        """

        def answer(pair: tuple[Request, GuidanceSettings | None]) -> Completion:
            completion = self._answer(self._body(*pair, fields or {}))
            progress(1)
            return completion

        with ThreadPoolExecutor(self.concurrency) as pool:
            done = list(pool.map(answer, zip(requests, settings, strict=True)))
        if done and all(completion.finish_reason == ERROR for completion in done):
            raise ValueError(
                f"all {len(done)} requests to {self.url} failed ({_kinds(self.failures)}): is the "
                "server still up? Run the command again to go on where it stopped."
            )
        return done

    def _body(
        self, request: Request, guide: GuidanceSettings | None, fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        if isinstance(request, PicturedRequest):
            asked: dict[str, Any] = {"messages": list(request.messages)}
            if self.chat_template_args:
                asked["chat_template_kwargs"] = self.chat_template_args
        else:
            asked = {"prompt": list(request.prompt_ids)}
        body: dict[str, Any] = {
            "model": self.model,
            **asked,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "repetition_penalty": 1.0,  # all are sent: the server has defaults of the model's own
            "return_token_ids": True,
            **fields,
        }
        if self.seeds and request.seed is not None:
            body["seed"] = request.seed
        if guide is not None and not guide.changes_nothing:
            body["vllm_xargs"] = guide.to_args()
        return body

    def _answer(self, body: dict[str, Any]) -> Completion:
        kind, path = "", "chat/completions" if "messages" in body else "completions"
        for attempt in range(self.retries + 1):
            if attempt:
                self.sleep(min(self.delay * 2 ** (attempt - 1), 20.0))
            try:
                response = self._client.post(f"{self.url}/v1/{path}", json=body)
            except httpx.TransportError as error:
                kind = type(error).__name__
                continue
            if response.status_code in _AGAIN:
                kind = f"status {response.status_code}"
                continue
            if response.status_code != 200:
                raise ValueError(
                    f"{self.url} refuses a request with status {response.status_code}: "
                    f"{response.text[:500]}"
                )
            completion = _completion(response)
            if completion is not None:
                return completion
            kind = "answer without tokens"
        self.failures[kind] += 1
        return Completion([], ERROR, [])

    def _served_model(self) -> str:
        try:
            answer = self._client.get(f"{self.url}/v1/models")
            return answer.json()["data"][0]["id"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"no OpenAI-compatible server answers at {self.url} ({type(error).__name__}): "
                "start one with `lenvm serve` and wait until it is up."
            ) from error


class ServedSampler:
    """A `ServedPolicy` with the tokenizer of its policy, as evaluations use it.

    Args:
        server: where requests go.
        tokenizer: directory or hub name of the policy that it serves.
        fields: further fields of every request's body.
        progress: draw a bar on stderr for every set of completions.
    """

    def __init__(
        self,
        server: ServedPolicy,
        tokenizer: str | Path,
        *,
        fields: Mapping[str, Any] | None = None,
        progress: bool = False,
    ):
        self.server, self.fields, self.progress = server, dict(fields or {}), progress
        self.tokenizer = load_tokenizer(
            tokenizer, chat_template_args=getattr(server, "chat_template_args", None)
        )
        self._next = "sampling"

    def with_fields(self, **fields: Any) -> ServedSampler:
        """The same sampler with further fields in every request, e.g. `thinking_token_budget`."""
        other = copy.copy(self)
        other.fields = {**self.fields, **fields}
        return other

    def name_next(self, what: str) -> None:
        """What the next progress bar says."""
        self._next = what

    @property
    def failures(self) -> Counter[str]:
        """Failed requests by kind."""
        return self.server.failures

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its completions besides requests and settings, as far as it is known."""
        return {"server": self.server.model, **self.fields}

    def generate(
        self, requests: Sequence[Request], settings: Sequence[GuidanceSettings | None]
    ) -> list[Completion]:
        """Completions of `requests`, in their order."""
        with progress_bar(self._next, total=len(requests), shown=self.progress) as advance:
            return self.server.generate(requests, settings, fields=self.fields, progress=advance)


def _completion(response: httpx.Response) -> Completion | None:
    """The answer's tokens; None where it holds none that can be read."""
    try:
        choice = response.json()["choices"][0]
        ids = [int(token) for token in choice["token_ids"]]
        reason = choice["finish_reason"]
    except (ValueError, LookupError, TypeError):
        return None
    if not ids or reason not in ("stop", "length"):
        return None
    return Completion(ids, reason, [float("nan")] * len(ids))


def _kinds(failures: Counter[str]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in failures.most_common())
