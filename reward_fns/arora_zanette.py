"""Arora and Zanette: correct answers lose up to a share alpha, by their length among correct
answers.

    r = c * (1 - alpha * sigmoid((n - mean) / (std + 1e-7)))

c task score, n response tokens; mean and std (divisor: number of samples) of the tokens of the
prompt's correct answers. A single correct answer earns c * (1 - alpha / 2); wrong ones earn 0.

Source: Arora and Zanette, "Training Language Models to Reason Efficiently", arXiv 2502.04463;
official code Zanette-Labs/efficient-reasoning, `reward_server/math_server.py`, with alpha = 0.1 as
in `run_rloo_1.5B.sh`. The code scores a response without EOS as wrong: let the grader do that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from reward_fns.inputs import check_finite, is_correct, mean, population_std
from reward_fns.kinds import group_reward

EPSILON = 1e-7  # tokens


@group_reward
def group_rewards(
    correct: Sequence[float], tokens: Sequence[float], *, alpha: float = 0.1
) -> list[float]:
    """Whole rewards (task and length) of one prompt's samples.

    Args:
        correct: task scores in [0, 1].
        tokens: response tokens, EOS included.
        alpha: largest share of the task score that length costs, in [0, 1].

    Raises:
        ValueError: alpha is outside [0, 1].
    """
    check_finite(alpha=alpha)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}, but it is a share of the reward: set it in [0, 1]")
    right = [count for score, count in zip(correct, tokens, strict=True) if is_correct(score)]
    if not right:
        return [0.0] * len(tokens)
    centre, spread = mean(right), population_std(right) + EPSILON
    return [
        score * (1.0 - alpha * sigmoid((count - centre) / spread)) if is_correct(score) else 0.0
        for score, count in zip(correct, tokens, strict=True)
    ]


def sigmoid(x: float) -> float:
    """`1 / (1 + exp(-x))` without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
