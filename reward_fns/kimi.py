"""Kimi k1.5: reward by the rank of a response's length between the shortest and the longest.

    lambda = 1/2 - (n - n_min) / (n_max - n_min)         0 where n_max = n_min
    r = c + weight * lambda              correct answers
    r = c + weight * min(0, lambda)      wrong answers

n response tokens, n_min and n_max over all samples of the prompt, right or wrong; c task score.
A wrong answer is never paid for being short. At weight 1 the longest correct answer earns 1/2, the
longest wrong one -1/2.

Source: Kimi Team, "Kimi k1.5", arXiv 2501.12599, section 2.3.3 (no official code). The same
formula, of characters and without c, is `len_reward` of huggingface/open-r1, `rewards.py`. The
weight is the report's weighting parameter, whose value it does not give; hkust-nlp/Laser
reimplements it with 0.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward_fns.inputs import check_finite, is_correct
from reward_fns.kinds import group_reward


@group_reward
def group_rewards(
    correct: Sequence[float], tokens: Sequence[float], *, weight: float = 1.0
) -> list[float]:
    """Whole rewards (task and length) of one prompt's samples.

    Args:
        correct: task scores in [0, 1].
        tokens: response tokens, EOS included.
        weight: of the length term; 0 leaves the task score.

    Raises:
        ValueError: weight is not finite.
    """
    check_finite(weight=weight)
    shortest, spread = min(tokens), max(tokens) - min(tokens)
    rewards = []
    for score, count in zip(correct, tokens, strict=True):
        rank = 0.5 - (count - shortest) / spread if spread > 0 else 0.0
        rewards.append(score + weight * (rank if is_correct(score) else min(0.0, rank)))
    return rewards
