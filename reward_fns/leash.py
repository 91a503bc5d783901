"""Leash: a price for going over a target length, tuned so that the mean meets the target.

    r      = clip(c - lambda * max(0, n / L - 1), -1, 1)
    lambda <- clip(lambda + step * (mean n / L - 1), 0, largest)        after every batch

c task score, n response tokens, L target of the *mean* length in tokens, lambda the multiplier of
the constraint E[n] <= L. Responses within the target neither gain nor lose.

Source: Li et al., "Leash", arXiv 2512.21540; no official code. The constrained problem, the
one-sided penalty and the clip to [-1, 1] are those of public summaries of the paper, which was not
read itself. First lambda, step and largest lambda are *ours*: the summaries give none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_fns.inputs import check_finite, check_positive, mean
from reward_fns.kinds import Stateful


class Leash(Stateful):
    """Stateful reward; `multiplier` is lambda.

    Args:
        target_tokens: mean length to reach, above 0.
        step: change of lambda per batch and unit of relative excess.
        multiplier: first lambda, at least 0.
        largest: upper end of lambda, at least its first value.

    Raises:
        ValueError: an argument is out of range or not finite.
    """

    def __init__(
        self,
        *,
        target_tokens: float = 4_000,
        step: float = 0.05,
        multiplier: float = 0.2,
        largest: float = 1.0,
    ) -> None:
        check_positive(target_tokens=target_tokens, largest=largest)
        check_finite(step=step, multiplier=multiplier)
        if step < 0.0 or not 0.0 <= multiplier <= largest:
            raise ValueError(
                f"step is {step}, multiplier {multiplier}, largest {largest}: set step >= 0 and "
                "0 <= multiplier <= largest"
            )
        self._target, self._step, self._largest = target_tokens, step, largest
        self.multiplier = multiplier

    def rewards(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_id: str | None
    ) -> list[float]:
        """Rewards at the current multiplier."""
        rewards = []
        for score, count in zip(correct, tokens, strict=True):
            excess = max(0.0, count / self._target - 1.0)
            rewards.append(min(max(score - self.multiplier * excess, -1.0), 1.0))
        return rewards

    def learn(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_ids: Sequence[str]
    ) -> dict[str, float]:
        """Dual ascent by the batch's mean length; returns `multiplier` and `excess`."""
        if not tokens:
            return {"multiplier": self.multiplier}
        excess = mean(tokens) / self._target - 1.0
        self.multiplier = min(max(self.multiplier + self._step * excess, 0.0), self._largest)
        return {"multiplier": self.multiplier, "excess": excess}

    def state_dict(self) -> dict[str, Any]:
        """The current multiplier."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.multiplier = float(state["multiplier"])
