"""Grader of the shipped policy's task: chains of additions and subtractions.

    demo: 1 if the response states exactly one answer, at its very end, and it is the right one

The rule itself is the task's own, `lenvm_rl.demo.task.grade`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lenvm_rl.demo import task


def grade(text: str, answer: int | str) -> float:
    """1.0 where `task.grade` accepts the response, else 0.0; no text raises.

    Raises:
        ValueError: `answer`, the ground truth, is no whole number.
    """
    if not re.fullmatch(r"-?\d{1,40}", str(answer).strip()):
        raise ValueError(
            f"the ground truth {str(answer)[:80]!r} is no whole number: the demo's task is sums"
        )
    return float(task.grade(text, answer))


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: int | str,
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> float:
    """verl's reward function: the grade alone."""
    return grade(solution_str, ground_truth)
