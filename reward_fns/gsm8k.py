r"""Grader of GSM8K and other word problems with a number as answer.

    gsm8k: 1 if the response's number equals the true one, else 0

The response's number stands after a `####` or inside a `\boxed{}`; of several answers the last
counts. A heading with words (`#### Step 2: the total`) is no answer, and an answer that is not one
number (a list, a range, a formula) is wrong. Numbers are compared as numbers: `1,000`, `$1000`,
`1{,}000` and `1000.0` are the same (`stated.py`). The true answer may be the number alone or
the whole solution that GSM8K comes with (`... #### 72`).
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

from reward_fns.graders import verl_grader
from reward_fns.stated import last_box, one_number

_MARKED = re.compile(r"#{4,}(?:[ \t]*\n)?[ \t]*([^\n]{0,200})")
_ANNOUNCED = re.compile(
    r"[\s*_:=]*(?:(?:the\s+)?(?:final\s+|correct\s+)?answer\b[\s*_]*(?:is\b)?[\s*_:=]*)?"
    r"(?:[a-z]\s*=)?\s*",
    re.IGNORECASE,
)
# a word, or a number that counts the steps: "2. Cost of the shirts", "3) Total"
_HEADING = re.compile(r"(?!(?:US|USD|EUR|Rs)\b)[^\W\d]|\d{1,2}[.):]\s+[^\W\d]|$")


def grade(text: str, answer: str | int | float) -> float:
    """1.0 if the last stated number is `answer`, else 0.0; no text raises.

    Raises:
        ValueError: `answer`, the ground truth, is not one number.
    """
    expected = _true_number(answer)
    return float(isinstance(text, str) and stated_number(text) == expected)


def stated_number(text: str) -> Fraction | None:
    """The number that a text states as its answer, or None where it states none, or not one."""
    position, boxed = last_box(text)
    for marked in reversed(list(_MARKED.finditer(text))):
        if marked.start() < position:
            break
        stated = marked[1][_ANNOUNCED.match(marked[1]).end() :]
        if not _HEADING.match(stated):
            return one_number(stated)
    return None if boxed is None else one_number(boxed)


def _true_number(answer: Any) -> Fraction:
    """The number of a ground truth; a JSON list of one number, however often, is that number."""
    listed = answer
    if isinstance(answer, str) and answer.lstrip().startswith("["):
        try:
            listed = json.loads(answer)
        except ValueError:
            listed = answer
    readings = {_number(one) for one in (listed if isinstance(listed, list) else [listed])}
    number = readings.pop() if len(readings) == 1 else None
    if number is None:
        raise ValueError(
            f"the ground truth {str(answer)[:80]!r} has no number, or not one: gsm8k grades "
            "answers that are one number"
        )
    return number


def _number(truth: Any) -> Fraction | None:
    text = str(truth)
    if "####" in text or "\\boxed" in text:
        return stated_number(text)
    return one_number(text.strip())


compute_score = verl_grader("gsm8k", grade)
