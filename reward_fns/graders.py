"""Which graders are there? Each is a file with `grade(text, answer) -> float` in [0, 1].

A grader is imported when it is first asked for, so that the ones with a requirement of their own
(`math` needs math-verify) cost nothing to those who do not use them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

GRADERS = {
    "demo": "reward_fns.demo",
    "gsm8k": "reward_fns.gsm8k",
    "math": "reward_fns.math_answer",
    "multiple_choice": "reward_fns.multiple_choice",
    "mathvista": "reward_fns.mathvista",
    "code": "reward_fns.code_tests",
}


def get_grader(name: str) -> Callable[[Any, Any], float]:
    """The `grade` function of a grader.

    Raises:
        ValueError: no grader has that name.
        ImportError: its requirement is not installed.
    """
    if name not in GRADERS:
        raise ValueError(f"there is no grader {name!r}: choose one of {', '.join(GRADERS)}")
    return importlib.import_module(GRADERS[name]).grade
