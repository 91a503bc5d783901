"""What a client may ask a predictor, and which tokens it means.

The body of a request for a completion is a question as it stands: fields that are no business of
a predictor are ignored.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from lenvm_rl.rollouts.text import REASONING_KEYS, prompt_ids, reasoning_of

TokenIds = list[Annotated[int, Field(ge=0)]]
Quantile = Annotated[float, Field(gt=0, lt=1)]


class Asked(BaseModel):
    """One prompt, with the part of its response that is there already."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    """Chat messages as in /v1/chat/completions; pictures are refused."""
    text: str | None = None
    """Or one user's message."""
    prompt: str | TokenIds | None = None
    """Or a prompt as in /v1/completions: raw text, or token ids."""
    token_ids: TokenIds | None = None
    """Or token ids of the rendered prompt."""
    response: str | dict[str, Any] | None = None
    """What has been generated so far: text, or an assistant's message."""
    response_ids: TokenIds | None = None
    """Or its token ids."""
    model: str | None = None
    """Policy, by a name that the predictor knows; left out, it is the predictor's."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Limit on the response's tokens, for `p_truncated`."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The same by its newer name."""
    tools: list[dict[str, Any]] | None = None
    """Tools that the chat template renders."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Arguments of the chat template, such as enable_thinking."""
    quantiles: list[Quantile] | None = None
    """Further quantiles to answer."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Asked:
        given = (self.messages, self.text, self.prompt, self.token_ids)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of messages, text, prompt and token_ids")
        if self.response is not None and self.response_ids is not None:
            raise ValueError("give response or response_ids, not both")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of the response, where the client says it."""
        return self.max_completion_tokens or self.max_tokens


class CalibratedFor(BaseModel):
    """Whose lengths these are: nobody else's."""

    policy: str | None
    sampling: dict[str, Any] | None
    """Settings that the policy was sampled with, None where the checkpoint does not know."""


class Predicted(BaseModel):
    """Tokens that are still to come, EOS included, if nothing cuts the response."""

    p10: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    """Quantiles; null where the LenVM has one gamma and no distribution."""
    mean: float
    """Mean; of a LenVM with one gamma, the inverse of the mean discounted length (a bit less)."""
    p_truncated: float | None
    """Probability that max_tokens cuts the response; null without a limit, or without quantiles."""
    quantiles: dict[str, float] | None = None
    """Those that were asked for."""
    prompt_tokens: int
    response_tokens: int
    """Tokens of the response that were given."""
    attributes: dict[str, str]
    """Request attributes of llm-d: osl-bucket is SHORT (< 500), LONG (>= 2,000) or UNKNOWN."""
    calibrated_for: CalibratedFor
    model_ms: float
    """Time of the forward pass that this prediction was part of."""


class Several(BaseModel):
    """Prompts of one call."""

    requests: Annotated[list[Asked], Field(min_length=1)]


class NotPredicted(BaseModel):
    index: int
    error: str


class PredictedSeveral(BaseModel):
    """Answers in the order of the questions."""

    predictions: list[Predicted | None]
    errors: list[NotPredicted]


class Encoder:
    """Questions as token ids.

    Args:
        tokenizer: of the policy, with its chat template.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._reasoning = reasoning_of(tokenizer)
        taken = inspect.signature(tokenizer.apply_chat_template).parameters
        self._reserved = {"kind", "function", *taken} - {"tools", "documents", "kwargs"}

    def __call__(self, asked: Asked) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and of what is there of the response.

        Raises:
            ValueError: pictures, an empty prompt, or what tokenizer and template do not take.
        """
        prompt = self._prompt(asked)
        if not prompt:
            raise ValueError(
                "the prompt has no token: a state ends with one, so give at least one."
            )
        if asked.response is None:
            return prompt, asked.response_ids or []
        text = asked.response if isinstance(asked.response, str) else self._written(asked.response)
        return prompt, list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt(self, asked: Asked) -> list[int]:
        if asked.token_ids is not None:
            return asked.token_ids
        if isinstance(asked.prompt, list):
            return asked.prompt
        if asked.prompt is not None:
            return prompt_ids(self._tokenizer, asked.prompt)
        arguments = dict(asked.chat_template_kwargs or {})
        if wrong := sorted(self._reserved & set(arguments)):
            raise ValueError(f"chat_template_kwargs may not hold {', '.join(wrong)}.")
        if asked.tools:
            arguments["tools"] = asked.tools
        messages = asked.messages or [{"role": "user", "content": asked.text}]
        return prompt_ids(self._tokenizer, [_plain(m) for m in messages], **arguments)

    def _written(self, message: Mapping[str, Any]) -> str:
        """What the policy wrote of an assistant's message; where nothing says how it writes its
        reasoning, the reasoning stands before the content as it is."""
        thoughts = [message.get(key) for key in REASONING_KEYS]
        thought = next((t for t in thoughts if isinstance(t, str) and t), "")
        content = str(message.get("content") or "")
        if not thought or self._reasoning is None:
            return thought + content
        return self._reasoning.joined(thought, content)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is text: OpenAI's parts are joined."""
    content = message.get("content")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"a message has no role: {str(message)[:80]}.")
    if not isinstance(content, list):
        return dict(message)
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "a message holds parts that are no text (pictures, sound): this predictor reads text "
            "alone, and their tokens would be missing."
        )
    return {**message, "content": "".join(map(str, texts))}
