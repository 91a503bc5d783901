r"""Grader of multiple-choice questions with options A to J.

    multiple_choice: 1 if the response's letter is the true one, else 0

The response's letter is, in this order: what stands in its last `\boxed{}`; the last statement
like `answer is (B)` or `Answer: B`; the whole response, where it is one letter. Of several answers
the last counts. Only capital letters count in prose ("the answer is a number" names no option).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reward_fns.boxed import last_boxed

_STATED = re.compile(
    r"\b[Aa][Nn][Ss][Ww][Ee][Rr]\s{0,3}(?:[Ii][Ss]|[:=])[\s*_$({\[\"']{0,9}"
    r"(?:[Oo]ption\s{1,3}\(?)?([A-J])(?![A-Za-z0-9])"
)
_ALONE = re.compile(r"[\s*_$({\[\"']{0,9}([A-Ja-j])[\s*_$)}\].,:\"']{0,9}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{(.*)\}", re.DOTALL)


def grade(text: str, answer: str) -> float:
    """1.0 if the last chosen letter is `answer`, else 0.0; no text raises.

    Raises:
        ValueError: `answer`, the ground truth, is not one letter from A to J.
    """
    expected = _letter(str(answer))
    if expected is None:
        raise ValueError(f"the ground truth {answer!r} is no option: give one letter from A to J")
    return float(isinstance(text, str) and chosen_letter(text) == expected)


def chosen_letter(text: str) -> str | None:
    """The option that a text chooses, as a capital letter, or None."""
    boxed = last_boxed(text)
    if boxed is not None:
        wrapped = _WRAPPED.fullmatch(boxed)
        return _letter(wrapped.group(1) if wrapped else boxed)
    stated = _STATED.findall(text)
    return stated[-1] if stated else _letter(text)


def _letter(text: str) -> str | None:
    """The letter of a text that is one letter with decoration, or None."""
    alone = _ALONE.fullmatch(text) if len(text) <= 20 else None
    return alone.group(1).upper() if alone else None


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> float:
    """verl's reward function: the grade alone."""
    return grade(solution_str, ground_truth)
