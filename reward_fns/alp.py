"""ALP: tokens cost in proportion to how often the prompt is solved.

    r = c - beta * n * max(p, 1 / K)

c task score, n response tokens, p share of correct answers among the prompt's K samples, beta
reward per token of a prompt that is always solved. A prompt nobody solves keeps the price of one in
K.

Source: Xiang et al., "Just Enough Thinking", arXiv 2506.05256, beta = 1e-7; no official code.
Summaries of the paper differ in one factor: some divide beta by a constant N, the longest trace.
With 1 / N as well, beta = 1e-7 would be far below float precision beside c, so it is left out; N
only rescales beta. So small a beta still trains under an estimator that divides by the group's
standard deviation, where every sample is right: there length alone is left, at any scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward_fns.inputs import check_finite, is_correct, mean
from reward_fns.kinds import group_reward


@group_reward
def group_rewards(
    correct: Sequence[float], tokens: Sequence[float], *, beta: float = 1e-7
) -> list[float]:
    """Whole rewards (task and length) of one prompt's samples.

    Args:
        correct: task scores in [0, 1].
        tokens: response tokens, EOS included.
        beta: reward per token at a solve rate of 1. The default is the paper's; responses under
            1,000 tokens and estimators without division by the group's deviation need more.

    Raises:
        ValueError: beta is not finite.
    """
    check_finite(beta=beta)
    solved = mean([1.0 if is_correct(score) else 0.0 for score in correct])
    price = beta * max(solved, 1.0 / len(correct))
    return [score - price * count for score, count in zip(correct, tokens, strict=True)]
