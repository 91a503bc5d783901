"""A-DLP: a price per token that rises while accuracy is above its reference, and falls below it.

    r      = c - lambda * n
    lambda <- max(0, lambda + step * (accuracy - reference))        after every batch

c task score, n response tokens, lambda reward per token, accuracy share of correct answers in the
batch.

Source: Su and Cardie, "Thinking Fast and Right", arXiv 2505.18298; official code JinyanSu1/A-DLP,
`verl/verl/trainer/main_ppo.py` and `ppo/ray_trainer.py`: lambda starts at 1e-3, step 1e-3,
reference 0.62 (`scripts/train.sh`; the accuracy of DeepScaleR-1.5B on its training data: use your
policy's own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_fns.inputs import check_finite, is_correct, mean
from reward_fns.kinds import Stateful


class ADlp(Stateful):
    """Stateful reward; `price` is lambda, reward per token.

    Args:
        reference: accuracy in [0, 1] to hold; a lower one presses harder for length.
        step: change of lambda per batch and unit of accuracy.
        price: first lambda, at least 0.

    Raises:
        ValueError: an argument is out of range or not finite.
    """

    def __init__(self, *, reference: float = 0.62, step: float = 1e-3, price: float = 1e-3) -> None:
        check_finite(reference=reference, step=step, price=price)
        if not 0.0 <= reference <= 1.0:
            raise ValueError(f"reference is {reference}, but is an accuracy: set it in [0, 1]")
        if step < 0.0 or price < 0.0:
            raise ValueError(
                f"step is {step} and price {price}: negative ones would pay for length; set >= 0"
            )
        self._reference, self._step = reference, step
        self.price = price

    def rewards(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_id: str | None
    ) -> list[float]:
        """Rewards at the current price."""
        return [score - self.price * count for score, count in zip(correct, tokens, strict=True)]

    def learn(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_ids: Sequence[str]
    ) -> dict[str, float]:
        """Move the price by the batch's accuracy; returns `price` and `accuracy`."""
        if not correct:
            return {"price": self.price}
        accuracy = mean([1.0 if is_correct(score) else 0.0 for score in correct])
        self.price = max(0.0, self.price + self._step * (accuracy - self._reference))
        return {"price": self.price, "accuracy": accuracy}

    def state_dict(self) -> dict[str, Any]:
        """The current price."""
        return {"price": self.price}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.price = float(state["price"])
