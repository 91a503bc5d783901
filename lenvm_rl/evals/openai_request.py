"""What is asked of an OpenAI-compatible server, what does its answer say, and is it worth asking
again?

Prompts go as token ids to `/v1/completions`, so that no template or BOS comes in between; `chat`
sends messages to `/v1/chat/completions`. Token ids are the truth of a rollout file, and vLLM gives
them (`return_token_ids`). Text alone is turned into ids only where the caller asked for that.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from lenvm_rl.rollouts.sampling_run import OVER_CONTEXT, Sample, SamplingRun, Task
from lenvm_rl.rollouts.text import TextCodec

RETRIED_STATUS = (408, 409, 425, 429)
"""Status codes besides 5xx that are worth asking again."""
FEWER = "fewer completions than asked"
_SHOWN = 300  # characters of a server's answer that a message quotes


class Problem(Exception):
    """A request that brought no completions.

    Args:
        kind: short and without details, so that problems can be counted by it.
        detail: what the server said.
        retry: whether the same request may succeed later.
        retry_after: seconds that the server asked to wait, if it did.
    """

    def __init__(
        self, kind: str, detail: str = "", *, retry: bool, retry_after: float | None = None
    ):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail, self.retry, self.retry_after = kind, detail, retry, retry_after


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a server is spoken to."""

    model: str
    """Name of the model at the server."""
    chat: bool = False
    """Messages to `/v1/chat/completions` instead of ids to `/v1/completions`."""
    codec: TextCodec | None = None
    """Turns text into ids; None takes ids from the server, and refuses answers without."""
    extended: bool = False
    """Whether it knows the sampling fields of vLLM and SGLang. They are then always sent, because
    these servers put the model's `generation_config.json` in the place of what is left out."""
    context: int | None = None
    """Tokens of prompt and response together, where the server says so."""

    @property
    def path(self) -> str:
        """Of the endpoint, below the server's `/v1`."""
        return "/chat/completions" if self.chat else "/completions"


def max_tokens_of(dialect: Dialect, task: Task) -> int:
    """Longest response that fits: the task's own limit, or what the context leaves.

    Raises:
        Problem: the prompt alone fills the context.
    """
    if dialect.context is None:
        return task.max_tokens
    room = dialect.context - len(task.prompt_ids)
    if room < 1:
        detail = f"{len(task.prompt_ids)} tokens, the server's context is {dialect.context}"
        raise Problem(OVER_CONTEXT, detail, retry=False)
    return min(task.max_tokens, room)


def request_body(
    dialect: Dialect, run: SamplingRun, task: Task, sample_ids: Sequence[int]
) -> dict[str, Any]:
    """One request for the samples `sample_ids` of a prompt."""
    sampling = run.sampling(task, sample_ids[0])
    body: dict[str, Any] = {
        "model": dialect.model,
        "max_tokens": max_tokens_of(dialect, task),
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
    }
    if dialect.chat:
        body["messages"] = task.messages
    else:
        body["prompt"] = list(task.prompt_ids)
    if len(sample_ids) > 1:
        body["n"] = len(sample_ids)
    if sampling["seed"] is not None:
        assert len(sample_ids) == 1, "a request has one seed"
        body["seed"] = sampling["seed"]
    if dialect.codec is None:
        body["return_token_ids"] = True
    if dialect.extended:
        body |= {"top_k": run.top_k or -1, "min_p": run.min_p, "repetition_penalty": 1.0}
    else:
        body |= {"top_k": run.top_k} if run.top_k else {}
        body |= {"min_p": run.min_p} if run.min_p else {}
    return body


def read_answer(
    answer: httpx.Response, dialect: Dialect, task: Task, sample_ids: Sequence[int]
) -> list[Sample]:
    """The completions of an answer, at most one for each of `sample_ids`; there may be fewer.

    Raises:
        Problem: no completion can be taken from it.
    """
    if answer.status_code != 200:
        raise _refusal(answer)
    try:
        body = json.loads(answer.content)
        choices = list(body["choices"])
        if not choices:
            raise Problem(FEWER, "no choices", retry=True)
        return [
            _sample(body, choice, dialect, task, sample_id)
            for choice, sample_id in zip(choices, sample_ids, strict=False)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        detail = f"{type(error).__name__} in {answer.text[:_SHOWN]!r}"
        raise Problem("garbage answer", detail, retry=True) from error


def _sample(
    body: Mapping[str, Any],
    choice: Mapping[str, Any],
    dialect: Dialect,
    task: Task,
    sample_id: int,
) -> Sample:
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise Problem(f"ended by {reason!r}", retry=True)
    if dialect.codec is None:
        ids = _token_ids(body, choice, task)
        if reason == "length" and dialect.context and len(ids) < max_tokens_of(dialect, task):
            detail = (
                f"{len(ids)} tokens where {max_tokens_of(dialect, task)} were allowed: its own "
                "limit (vLLM: --override-generation-config, or max_new_tokens of the model's "
                "generation config) hides the true lengths"
            )
            raise Problem("cut by the server below max_tokens", detail, retry=False)
    else:
        text = choice["message"]["content"] if dialect.chat else choice["text"]
        ids = dialect.codec.completion(text, finished=reason == "stop")
    if not ids:
        raise Problem("empty completion", retry=True)
    return Sample(task=task, sample_id=sample_id, token_ids=ids, finish_reason=reason)


def _token_ids(body: Mapping[str, Any], choice: Mapping[str, Any], task: Task) -> list[int]:
    ids = choice.get("token_ids")
    if ids is None:
        raise Problem(
            "no token ids",
            "the server returns text only; --token-ids text makes ids from it, and marks the file",
            retry=False,
        )
    prompt = choice.get("prompt_token_ids") or body.get("prompt_token_ids")
    if prompt is not None and list(prompt) != list(task.prompt_ids):
        raise Problem(
            "other prompt tokens",
            f"the server's chat template makes {len(prompt)} tokens of the prompt, the "
            f"tokenizer's {len(task.prompt_ids)}: give the server's own --tokenizer",
            retry=False,
        )
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise TypeError(f"token_ids are not numbers: {ids[:8]}")
    return list(ids)


def _refusal(answer: httpx.Response) -> Problem:
    status, text = answer.status_code, answer.text[:_SHOWN]
    if status in RETRIED_STATUS or status >= 500:
        wait = retry_after(answer.headers.get("retry-after"), now=time.time())
        return Problem(f"status {status}", text, retry=True, retry_after=wait)
    said = text.lower()
    if status in (400, 413, 422) and "context" in said and ("length" in said or "exceed" in said):
        return Problem(OVER_CONTEXT, text, retry=False)
    return Problem(f"status {status}", text, retry=False)


def retry_after(header: str | None, *, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (seconds or an HTTP date); None without a usable one.

    Args:
        now: seconds since the epoch.
    """
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return None
