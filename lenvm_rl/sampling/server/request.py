"""What is asked of an OpenAI-compatible server, what does its answer say, and is it worth asking
again?

Prompts go as token ids to `/v1/completions`, so that no template or BOS comes in between; `chat`
sends messages to `/v1/chat/completions`. Token ids are the truth of a rollout file, and vLLM gives
them (`return_token_ids`). Text alone is turned into ids only where the caller asked for that, with
reasoning that the server keeps beside it put back; the number of ids is compared with `usage`.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from lenvm_rl.rollouts.text import (
    REASONING_KEYS,
    TextCodec,
    TextProblem,
    lengths_agree,
    with_reasoning,
)
from lenvm_rl.sampling.run import OVER_CONTEXT, Failure, Sample, SamplingRun, Task

RETRIED_STATUS = (408, 409, 425, 429)
"""Status codes besides 5xx that are worth asking again."""
RETRIED_ENDS = (None, "abort", "error")
"""Finish reasons that are no choice of the policy's. Asking again after others (tool calls, a
content filter) would leave only the completions that are unlike them."""
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
        if run.chat_template_args:
            body["chat_template_kwargs"] = run.chat_template_args
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
    answer: httpx.Response,
    dialect: Dialect,
    task: Task,
    sample_ids: Sequence[int],
    *,
    end_ids: Sequence[int] | None = None,
) -> list[Sample | Failure]:
    """What became of `sample_ids`, in order: completions, and failures that asking again would not
    mend. There may be fewer than asked.

    Args:
        end_ids: tokens that end a response; None: not known.
    Raises:
        Problem: nothing can be taken from it.
    """
    if answer.status_code != 200:
        raise _refusal(answer)
    try:
        body = json.loads(answer.content)
        choices = list(body["choices"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _garbage(error, answer) from error
    done: list[Sample | Failure] = []
    again = Problem(FEWER, "no choices", retry=True)
    for choice in choices[: len(sample_ids)]:
        sample_id = sample_ids[len(done)]
        try:
            done.append(_sample(body, choice, dialect, task, sample_id, end_ids))
        except Problem as problem:
            if problem.retry:
                again = problem
            else:
                done.append(_failure(task, sample_id, problem))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            again = _garbage(error, answer)
    if not done:
        raise again
    made = [result for result in done if isinstance(result, Sample)]
    if dialect.codec is not None and len(made) == len(choices):
        try:
            _compare_usage(body, made)
        except Problem as problem:
            return [_failure(task, sample.sample_id, problem) for sample in made]
    return done


def _garbage(error: Exception, answer: httpx.Response) -> Problem:
    detail = f"{type(error).__name__} in {answer.text[:_SHOWN]!r}"
    return Problem("garbage answer", detail, retry=True)


def _failure(task: Task, sample_id: int, problem: Problem) -> Failure:
    return Failure(task=task, sample_ids=[sample_id], kind=problem.kind, detail=problem.detail)


def _sample(
    body: Mapping[str, Any],
    choice: Mapping[str, Any],
    dialect: Dialect,
    task: Task,
    sample_id: int,
    end_ids: Sequence[int] | None,
) -> Sample:
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise Problem(f"ended by {reason!r}", retry=reason in RETRIED_ENDS)
    if reason == "stop" and isinstance(choice.get("stop_reason"), str):
        detail = f"{choice['stop_reason']!r}: the server has stop strings of its own"
        raise Problem("ended by a stop string", detail, retry=False)
    if dialect.codec is None:
        ids = _token_ids(body, choice, task)
        if reason == "length" and dialect.context and len(ids) < max_tokens_of(dialect, task):
            detail = (
                f"{len(ids)} tokens where {max_tokens_of(dialect, task)} were allowed: its own "
                "limit (vLLM: --override-generation-config, or max_new_tokens of the model's "
                "generation config) hides the true lengths"
            )
            raise Problem("cut by the server below max_tokens", detail, retry=False)
        if reason == "stop" and ids and end_ids is not None and ids[-1] not in end_ids:
            detail = (
                f"finish_reason is stop and the last token is {ids[-1]}, none of {list(end_ids)}. "
                "If the policy ends its responses with it, say so (--end-token); a server that "
                "leaves the end token out hides one token of every length"
            )
            raise Problem("stop without an end token", detail, retry=False)
    else:
        ids = _ids_of_text(
            body, choice, dialect.codec, chat=dialect.chat, truncated=reason == "length"
        )
    if not ids:
        raise Problem("empty completion", retry=True)
    return Sample(task=task, sample_id=sample_id, token_ids=ids, finish_reason=reason)


def _ids_of_text(
    body: Mapping[str, Any],
    choice: Mapping[str, Any],
    codec: TextCodec,
    *,
    chat: bool,
    truncated: bool,
) -> list[int]:
    """Ids of what the policy wrote, reasoning included."""
    message = choice["message"] if chat else {"content": choice["text"]}
    if message.get("content") is None and truncated and not _has_reasoning(message):
        raise Problem(
            "text is missing",
            "the response was cut, and the server returns nothing of it: its reasoning parser "
            "keeps reasoning to itself. Start it without, or take its token ids",
            retry=False,
        )
    try:
        return codec.completion(with_reasoning(codec, message), finished=not truncated)
    except TextProblem as problem:
        raise Problem(problem.kind, str(problem), retry=False) from problem


def _has_reasoning(message: Mapping[str, Any]) -> bool:
    return any(message.get(key) for key in REASONING_KEYS)


def _compare_usage(body: Mapping[str, Any], samples: Sequence[Sample]) -> None:
    """Problem where re-tokenised text has other lengths than the server counted."""
    usage = body.get("usage")
    said = usage.get("completion_tokens") if isinstance(usage, dict) else None
    made = sum(len(sample.token_ids) for sample in samples)
    if isinstance(said, int) and said > 0 and not lengths_agree(made, said, len(samples)):
        raise Problem(
            "text unlike its token count",
            f"{len(samples)} completions have {made} tokens, the server counted {said}: part of "
            "what was generated is not in their text, or --tokenizer is not the policy's",
            retry=False,
        )


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
