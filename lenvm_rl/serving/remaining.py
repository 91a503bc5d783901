"""The remaining length of a response, said between the events of its stream.

    : lenvm {"generated": 64, "remaining": 400, "low": 200, "high": 900,
             "text": "about 400 more tokens (200 to 900)"}

on one line: a comment of server-sent events, which clients skip unless they look for it. low and
high are the 10 and 90 % quantiles, null where the LenVM has one gamma. What the server sends is
passed on unchanged; comments stand between whole events alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Protocol

_END = re.compile(rb"\r?\n\r?\n")


def whole_events(text: bytes) -> int:
    """Where the last whole event of a piece of a stream ends."""
    ends = [text.rfind(end) + len(end) for end in (b"\n\n", b"\n\r\n") if end in text]
    return max(ends, default=0)


class Predict(Protocol):
    """Answers questions of a predictor, in this process or elsewhere."""

    async def __call__(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """A question, fields of `asked.Asked`, to an answer, fields of `asked.Predicted`.

        Raises:
            ValueError: the question has no answer; anything else: it cannot answer now.
        """
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...


class Remaining:
    """Comments for one stream.

    Args:
        question: what the predictor is asked, without the response.
        predict: answers it.
        every: events with text from one prediction to the next.
        first: answer at the prompt, where it is known.
    """

    def __init__(
        self,
        question: Mapping[str, Any],
        predict: Predict,
        *,
        every: int,
        first: Mapping[str, Any] | None = None,
    ):
        self._question, self._predict, self._every = question, predict, every
        self._answer = first
        self._message: dict[str, str] = {}
        self._events = 0
        self._task: asyncio.Task[Mapping[str, Any]] | None = None

    def after(self, events: bytes) -> bytes:
        """A comment to stand after whole events if there is news, else nothing."""
        if self._task is not None and self._task.done():
            if not self._task.cancelled() and self._task.exception() is None:
                self._answer = self._task.result()
            self._task = None  # one that failed is left out: the next one may do
        self._events += sum(map(self._took, _END.split(events)))
        if self._events >= self._every and self._task is None:
            self._events = 0
            self._task = asyncio.create_task(self._ask())
        if self._answer is None:
            return b""
        said, self._answer = comment_of(self._answer), None
        return said

    def close(self) -> None:
        """Stop asking."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self) -> Mapping[str, Any]:
        return await self._predict({**self._question, "response": dict(self._message)})

    def _took(self, event: bytes) -> bool:
        """Whether an event added to the first choice's text: its content, its reasoning by any
        name."""
        data = b"".join(
            line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")
        )
        try:
            choice = json.loads(data)["choices"][0]
            delta = choice.get("delta") or {"content": choice.get("text")}
            said = {k: v for k, v in delta.items() if k != "role" and v and isinstance(v, str)}
            other = choice.get("index", 0) != 0
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
        if other or not said:
            return False
        for name, text in said.items():
            self._message[name] = self._message.get(name, "") + text
        return True


def comment_of(answer: Mapping[str, Any]) -> bytes:
    """An answer of a predictor as a comment of server-sent events."""
    low, high = answer.get("p10"), answer.get("p90")
    middle = answer["mean"] if answer.get("p50") is None else answer["p50"]
    band = None if low is None or high is None else (about(low), about(high))
    said = {
        "generated": answer.get("response_tokens", 0),
        "remaining": about(middle),
        "low": band and band[0],
        "high": band and band[1],
        "text": in_words(middle, band),
    }
    return b": lenvm " + json.dumps(said).encode() + b"\n\n"


def about(tokens: float) -> int:
    """A number of tokens to two digits."""
    whole = round(tokens)
    if whole < 100:
        return whole
    step = 10 ** (int(math.log10(whole)) - 1)
    return round(whole / step) * step


def in_words(tokens: float, band: tuple[int, int] | None) -> str:
    """E.g. "about 400 more tokens (200 to 900)"."""
    return f"about {about(tokens):,} more tokens" + (
        f" ({band[0]:,} to {band[1]:,})" if band else ""
    )
