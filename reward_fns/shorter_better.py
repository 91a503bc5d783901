"""ShorterBetter: as long as the shortest correct answer of the group.

    r = alpha * c - beta * |n - n_sol|

c task score, n response tokens; n_sol tokens of the shortest correct answer, or the group's mean
where none is right; beta reward per token of distance.

Source: Yi, Wang and Li, "ShorterBetter", arXiv 2504.21370; alpha = 2 and beta = 0.001 are the
defaults that its repository (JingyangYi/ShorterBetter, README) states. The formula is confirmed by
public summaries of the paper; the repository's own reward code was not read.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward_fns.inputs import check_finite, is_correct, mean
from reward_fns.kinds import group_reward


@group_reward
def group_rewards(
    correct: Sequence[float],
    tokens: Sequence[float],
    *,
    beta: float = 0.001,
    alpha: float = 2.0,
) -> list[float]:
    """Whole rewards (task and length) of one prompt's samples.

    Args:
        correct: task scores in [0, 1].
        tokens: response tokens, EOS included.
        beta: reward per token of distance from the shortest correct answer.
        alpha: weight of the task score.

    Raises:
        ValueError: a parameter is not finite.
    """
    check_finite(alpha=alpha, beta=beta)
    right = [count for score, count in zip(correct, tokens, strict=True) if is_correct(score)]
    optimum = min(right) if right else mean(tokens)
    return [
        alpha * score - beta * abs(count - optimum)
        for score, count in zip(correct, tokens, strict=True)
    ]
