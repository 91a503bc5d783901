"""What is asked of an OpenAI-compatible server, and what its answer is worth.

Prompts go as token ids to `/v1/completions`, so that no template or BOS comes in between; `chat`
and prompts with pictures send messages to `/v1/chat/completions`. Token ids are the truth of a
rollout file, and vLLM gives them (`return_token_ids`). Text alone is turned into ids only where the
caller asked for that, with reasoning that the server keeps beside it put back; the number of ids is
compared with `usage`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.rollouts.text import (
    REASONING_KEYS,
    TextCodec,
    TextProblem,
    lengths_agree,
    with_reasoning,
)
from lenvm_rl.sampling.encoding import messages_with_pictures
from lenvm_rl.sampling.run import OVER_CONTEXT, Failure, Request

RETRIED_ENDS = (None, "abort", "error")
"""Finish reasons that are no choice of the policy's. Asking again after others (tool calls, a
content filter) would leave only the completions that are unlike them."""
_SHOWN = 300  # characters of a server's answer that a message quotes


class Problem(Exception):
    """A request that brought no completions.

    Args:
        kind: short and without details, so that problems can be counted by it.
        detail: what the server said.
        retry: whether the same request may succeed later.
    """

    def __init__(self, kind: str, detail: str = "", *, retry: bool):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail, self.retry = kind, detail, retry


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a server is spoken to."""

    model: str
    """Name of the model at the server."""
    chat: bool = False
    """Messages to `/v1/chat/completions` instead of ids to `/v1/completions`."""
    codec: TextCodec | None = None
    """Turns text into ids; None takes ids from the server, and refuses answers without."""
    end_ids: Sequence[int] | None = None
    """Tokens that end a response; None: not known."""
    chat_template_args: Mapping[str, Any] = field(default_factory=dict)
    """What the server's chat template gets besides the messages."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request's body."""
    context: int | None = None
    """Tokens of prompt and response together, where the server says so. One that does knows the
    sampling fields of vLLM and SGLang. They are then always sent, because these servers put the
    model's `generation_config.json` in the place of what is left out."""

    def sends_messages(self, request: Request) -> bool:
        """Whether a request goes through the server's chat template."""
        return self.chat or bool(request.task.images)


def max_tokens_of(dialect: Dialect, request: Request) -> int:
    """Longest response that fits: the task's own limit, or what the context leaves.

    Raises:
        Problem: the prompt alone fills the context.
    """
    task = request.task
    if dialect.context is None:
        return task.max_tokens
    room = dialect.context - len(task.prompt_ids)
    if room < 1:
        detail = f"{len(task.prompt_ids)} tokens, the server's context is {dialect.context}"
        raise Problem(OVER_CONTEXT, detail, retry=False)
    return min(task.max_tokens, room)


def request_body(dialect: Dialect, requests: Sequence[Request]) -> dict[str, Any]:
    """One HTTP request for several samples of a prompt."""
    request, sampling = requests[0], requests[0].sampling
    body: dict[str, Any] = {
        "model": dialect.model,
        "max_tokens": max_tokens_of(dialect, request),
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        **dialect.fields,
    }
    if dialect.sends_messages(request):
        body["messages"] = messages_with_pictures(request.task)
        if dialect.chat_template_args:
            body["chat_template_kwargs"] = dict(dialect.chat_template_args)
    else:
        body["prompt"] = list(request.task.prompt_ids)
    if len(requests) > 1:
        body["n"] = len(requests)
    if sampling["seed"] is not None:
        assert len(requests) == 1, "a request has one seed"
        body["seed"] = sampling["seed"]
    if dialect.codec is None:
        body["return_token_ids"] = True
    top_k, min_p = sampling["top_k"], sampling["min_p"]
    if dialect.context is not None:
        body |= {"top_k": top_k or -1, "min_p": min_p, "repetition_penalty": 1.0}
    else:
        body |= {name: x for name, x in (("top_k", top_k), ("min_p", min_p)) if x}
    if request.guidance is not None:
        body["vllm_xargs"] = request.guidance.to_args()
    return body


def read_answer(
    content: bytes, dialect: Dialect, requests: Sequence[Request]
) -> list[Rollout | Failure]:
    """What became of `requests`, in order: completions, and failures that asking again would not
    mend. There may be fewer than asked.

    Raises:
        Problem: nothing can be taken from it.
    """
    try:
        body = json.loads(content)
        choices = list(body["choices"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _garbage(error, content) from error
    done: list[Rollout | Failure] = []
    again = Problem("fewer completions than asked", "no choices", retry=True)
    for choice in choices[: len(requests)]:
        request = requests[len(done)]
        try:
            done.append(_rollout(body, choice, dialect, request))
        except Problem as problem:
            if problem.retry:
                again = problem
            else:
                done.append(request.failure(problem.kind, problem.detail))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            again = _garbage(error, content)
    if not done:
        raise again
    made = [result for result in done if isinstance(result, Rollout)]
    if dialect.codec is not None and len(made) == len(choices):
        problem = _unlike_usage(body, made)
        if problem is not None:
            return [request.failure(*problem) for request, _ in zip(requests, made, strict=False)]
    return done


def refusal(status: int, text: str) -> Problem:
    """Why a server refused a request, once the SDK has tried again what may be tried again."""
    text, said = text[:_SHOWN], text.lower()
    if status in (400, 413, 422) and "context" in said and ("length" in said or "exceed" in said):
        return Problem(OVER_CONTEXT, text, retry=False)
    return Problem(f"status {status}", text, retry=status == 425)  # too early: the SDK gives up


def _garbage(error: Exception, content: bytes) -> Problem:
    text = content.decode(errors="replace")[:_SHOWN]
    return Problem("garbage answer", f"{type(error).__name__} in {text!r}", retry=True)


def _rollout(
    body: Mapping[str, Any], choice: Mapping[str, Any], dialect: Dialect, request: Request
) -> Rollout:
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise Problem(f"ended by {reason!r}", retry=reason in RETRIED_ENDS)
    if reason == "stop" and isinstance(choice.get("stop_reason"), str):
        detail = f"{choice['stop_reason']!r}: the server has stop strings of its own"
        raise Problem("ended by a stop string", detail, retry=False)
    if dialect.codec is None:
        ids = _token_ids(body, choice, request)
        _check_end(ids, reason, dialect, request)
    else:
        chat = dialect.sends_messages(request)
        ids = _ids_of_text(choice, dialect.codec, chat=chat, truncated=reason == "length")
    if not ids:
        raise Problem("empty completion", retry=True)
    return request.rollout(ids, reason)


def _check_end(ids: Sequence[int], reason: str, dialect: Dialect, request: Request) -> None:
    """Refuse lengths that are the server's doing, not the policy's."""
    allowed = max_tokens_of(dialect, request)
    if reason == "length" and dialect.context and len(ids) < allowed and not request.task.images:
        detail = (
            f"{len(ids)} tokens where {allowed} were allowed: its own "
            "limit (vLLM: --override-generation-config, or max_new_tokens of the model's "
            "generation config) hides the true lengths"
        )
        raise Problem("cut by the server below max_tokens", detail, retry=False)
    if reason == "stop" and ids and dialect.end_ids is not None and ids[-1] not in dialect.end_ids:
        detail = (
            f"finish_reason is stop and the last token is {ids[-1]}, none of "
            f"{list(dialect.end_ids)}. "
            "If the policy ends its responses with it, say so (--end-token); a server that "
            "leaves the end token out hides one token of every length"
        )
        raise Problem("stop without an end token", detail, retry=False)


def _token_ids(body: Mapping[str, Any], choice: Mapping[str, Any], request: Request) -> list[int]:
    ids = choice.get("token_ids")
    if ids is None:
        raise Problem(
            "no token ids",
            "the server returns text only; --token-ids text makes ids from it, and marks the file",
            retry=False,
        )
    prompt = choice.get("prompt_token_ids") or body.get("prompt_token_ids")
    task = request.task
    if prompt is not None and not task.images and list(prompt) != list(task.prompt_ids):
        raise Problem(
            "other prompt tokens",
            f"the server's chat template makes {len(prompt)} tokens of the prompt, the "
            f"tokenizer's {len(task.prompt_ids)}: give the server's own --tokenizer",
            retry=False,
        )
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise TypeError(f"token_ids are not numbers: {ids[:8]}")
    return list(ids)


def _ids_of_text(
    choice: Mapping[str, Any], codec: TextCodec, *, chat: bool, truncated: bool
) -> list[int]:
    """Ids of what the policy wrote, reasoning included."""
    message = choice["message"] if chat else {"content": choice["text"]}
    reasoning = any(message.get(key) for key in REASONING_KEYS)
    if message.get("content") is None and truncated and not reasoning:
        raise Problem(
            "text is missing",
            "the response was truncated, and the server returns nothing of it: its reasoning "
            "parser keeps reasoning to itself. Start it without, or take its token ids",
            retry=False,
        )
    try:
        return codec.completion(with_reasoning(codec, message), finished=not truncated)
    except TextProblem as problem:
        raise Problem(problem.kind, str(problem), retry=False) from problem


def _unlike_usage(body: Mapping[str, Any], rows: Sequence[Rollout]) -> tuple[str, str] | None:
    """Kind and detail where re-tokenised text has other lengths than the server counted."""
    usage = body.get("usage")
    said = usage.get("completion_tokens") if isinstance(usage, dict) else None
    made = sum(row.length for row in rows)
    if not isinstance(said, int) or said <= 0 or lengths_agree(made, said, len(rows)):
        return None
    return (
        "text unlike its token count",
        f"{len(rows)} completions have {made} tokens, the server counted {said}: part of "
        "what was generated is not in their text, or --tokenizer is not the policy's",
    )
