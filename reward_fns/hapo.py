"""HAPO: shorter than the shortest correct answer this prompt has ever had.

    f = cos(pi / 2 * min(n / h, 2))
    r = c + weight * max(f, -0.7)      correct answers
    r = c + weight * min(f, 0)         wrong answers
    r = c                              while h is unknown

c task score, n response tokens, h tokens of the shortest correct answer to the prompt so far. With
weight <= 1 every correct answer stays above every wrong one.

Source: Huang, Zhang and Cardie, "HAPO", arXiv 2505.11225; official code HCY123902/HAPO, `utils.py`
and `grpo_trainer.py` (mode "min", type "cosine", weight 1). As there, a batch is rewarded by the
history before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reward_fns.inputs import check_finite, is_correct
from reward_fns.kinds import Stateful

LOWEST_RIGHT = -0.7


class Hapo(Stateful):
    """Stateful reward; `shortest` maps a prompt to the tokens of its shortest correct answer.

    Args:
        weight: of the length term, in [0, 1].

    Raises:
        ValueError: weight is outside [0, 1].
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        check_finite(weight=weight)
        if not 0.0 <= weight <= 1.0:
            raise ValueError(
                f"weight is {weight}, outside [0, 1]: above 1 a wrong answer can beat a right one"
            )
        self._weight = weight
        self.shortest: dict[str, float] = {}

    def rewards(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_id: str | None
    ) -> list[float]:
        """Rewards by the prompt's history.

        Raises:
            ValueError: prompt_id is missing: without it there is no history.
        """
        if prompt_id is None:
            raise ValueError(
                "HAPO remembers prompts across epochs, but this group has no prompt_id: pass one "
                "that stays the same in every epoch (a data column or a hash of the prompt)"
            )
        history = self.shortest.get(str(prompt_id))
        return [
            score + self._weight * _length_reward(count, history, right=is_correct(score))
            for score, count in zip(correct, tokens, strict=True)
        ]

    def learn(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_ids: Sequence[str]
    ) -> dict[str, float]:
        """Remember the batch's shortest correct answers.

        Returns:
            `prompts_with_history`, the number of prompts ever answered right.
        """
        for score, count, name in zip(correct, tokens, prompt_ids, strict=True):
            if is_correct(score):
                self.shortest[name] = min(count, self.shortest.get(name, count))
        return {"prompts_with_history": float(len(self.shortest))}

    def state_dict(self) -> dict[str, Any]:
        """The history of every prompt."""
        return {"shortest": dict(self.shortest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.shortest = {str(name): float(count) for name, count in state["shortest"].items()}


def _length_reward(count: float, history: float | None, *, right: bool) -> float:
    """f, cut off below for correct answers and above for wrong ones; 0 without a history.

    A history of 0 tokens (an empty response that was graded right) counts as none, as in the
    official code.
    """
    if not history:
        return 0.0
    f = math.cos(math.pi / 2 * min(count / history, 2.0))
    return max(f, LOWEST_RIGHT) if right else min(f, 0.0)
