"""Guidance of one segment of a response: where a request is in it, and what its row is there.

    prompt | <think> ... </think> | answer
    thinking: steered until the tag's first token, its end; the rest of the tag is walked; then free
    answer:   free until the tag is complete; then a response with the thinking in its prompt

For a LenVM of that segment (`lenvm segment`), and counted as it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lenvm_rl.guidance.guide import GuidedRow
from lenvm_rl.guidance.settings import GuidanceSettings
from lenvm_rl.rollouts.segments import ANSWER, ThinkTags

_NOW = GuidanceSettings(mode="at_most", target=0)
"""Forces the end of a row at once: the next token of a tag."""


class SegmentGuidance:
    """One request's way through its thinking and its answer.

    Args:
        segment: that the LenVM counts, see `rollouts.segments.described`.
        prompt: token ids; the chat template may have opened the thinking in it.
    """

    def __init__(self, segment: Mapping[str, Any], prompt: Sequence[int]):
        self._answer = segment["name"] == ANSWER
        self._tags = ThinkTags(tuple(segment["start"]), tuple(segment["end"]))
        self._thinks: bool | None = self._tags.opened_by(prompt) or None
        self._read = 0
        self._answer_at: int | None = None  # where the answer starts in the response

    def row(self, row: GuidedRow) -> GuidedRow | None:
        """The row as it is steered in this step; None where it is left alone."""
        output = row.history.output
        self._follow(output)
        if self._answer:
            start = self._answer_at
            return None if start is None else replace(row, prompt_length=row.prompt_length + start)
        if not self._thinks or self._answer_at is not None:
            return None
        end = self._tags.end
        begun = next((n for n in range(len(end) - 1, 0, -1) if tuple(output[-n:]) == end[:n]), 0)
        if not begun:
            return replace(row, ends=frozenset(end[:1]), own_ends=False)
        settings = row.settings  # a tag that was begun because it had to be is written to its end
        left = (settings.target or 0) - (row.generated - begun) - settings.count_eos
        if settings.target is None or left > 0 or not row.forces_eos:
            return None
        return replace(row, settings=_NOW, ends=frozenset(end[begun : begun + 1]), own_ends=False)

    def _follow(self, output: Sequence[int]) -> None:
        """Look at the tokens that are new."""
        opening, end = self._tags.start, self._tags.end
        if self._thinks is None:
            if len(output) < len(opening):
                return
            self._thinks = tuple(output[: len(opening)]) == opening
            self._answer_at = None if self._thinks else 0
        if self._answer_at is None:
            start = max(self._read - len(end) + 1, 0)
            close = self._tags.close(output[start:])
            self._answer_at = None if close is None else start + close + len(end)
        self._read = len(output)
