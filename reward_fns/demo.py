"""Grader of the demo policy's task: arithmetic (`lenvm_rl/demo/task.py`).

demo: 1 if the response states exactly one answer, at its very end, and it is the right one
"""

from __future__ import annotations

import re

from reward_fns.graders import verl_grader

# At most nine digits: a run of thousands of digits is garbage, and int() refuses it.
_ANSWER = re.compile(r"\banswer is (-?\d+)")
_FINAL = re.compile(r"\bthe answer is (0|-?[1-9]\d{0,8})\.?\s*\Z")


def states_answer(text: str, answer: int | str) -> bool:
    """Whether a response states one answer, at its very end, and that is `answer`.

    Never raises: no answer, two answers, text after the answer, leading zeros and garbage of any
    size are all wrong.
    """
    if not isinstance(text, str) or len(_ANSWER.findall(text)) != 1:
        return False
    final = _FINAL.search(text)
    return final is not None and final.group(1) == str(answer).strip()


def grade(text: str, answer: int | str) -> float:
    """1.0 where `states_answer`, else 0.0; no text raises.

    Raises:
        ValueError: `answer`, the ground truth, is no whole number.
    """
    if not re.fullmatch(r"-?\d{1,40}", str(answer).strip()):
        raise ValueError(
            f"the ground truth {str(answer)[:80]!r} is no whole number: the demo's answers are"
        )
    return float(states_answer(text, answer))


compute_score = verl_grader("demo", grade)
