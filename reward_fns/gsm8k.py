r"""Grader of GSM8K and other word problems with a number as answer.

    gsm8k: 1 if the response's number equals the true one, else 0

The response's number is the first one after its last `####`; without `####` the one inside its
last `\boxed{}`; otherwise there is none. Of several answers the last counts. Numbers are compared
as numbers: `1,000`, `$1000` and `1000.0` are the same. The true answer may be the number alone or
the whole solution that GSM8K comes with (`... #### 72`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from reward_fns.boxed import last_boxed

MARK = "####"
# At most 40 digits: a longer run is garbage.
_NUMBER = re.compile(r"(-?)\s?\$?\s?(\d[\d,]{0,40}(?:\.\d{1,20})?|\.\d{1,20})(?!\d)")


def grade(text: str, answer: str | int | float) -> float:
    """1.0 if the last stated number is `answer`, else 0.0; no text raises.

    Raises:
        ValueError: `answer`, the ground truth, holds no number.
    """
    expected = stated_number(str(answer), anywhere=True)
    if expected is None:
        raise ValueError(f"the ground truth {answer!r} has no number: gsm8k grades numbers only")
    return float(isinstance(text, str) and stated_number(text) == expected)


def stated_number(text: str, *, anywhere: bool = False) -> Decimal | None:
    """The number that a text states as its answer, or None; `anywhere`: unmarked ones too."""
    marked = text.rfind(MARK)
    if marked >= 0:
        # an answer follows its mark closely: do not search a megabyte
        return _first_number(text[marked + len(MARK) :][:200])
    boxed = last_boxed(text)
    if boxed is not None:
        return _first_number(boxed[:200])
    return _first_number(text[:200]) if anywhere else None


def _first_number(text: str) -> Decimal | None:
    found = _NUMBER.search(text)
    if found is None:
        return None
    sign, digits = found.groups()
    return Decimal(sign + digits.replace(",", ""))


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | int | float,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> float:
    """verl's reward function: the grade alone."""
    return grade(solution_str, ground_truth)
