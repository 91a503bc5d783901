"""GRPO-LEAD: correct answers decay with their length among correct answers; wrong ones cost 1.

    z = (n - mean) / (std + 1e-6)
    r = c * exp(-alpha * z)      correct answers
    r = -1                       wrong answers

c task score, n response tokens; mean and std (divisor: number of samples less one; 1 for a single
correct answer) of the tokens of the prompt's correct answers.

Source: Zhang and Zuo, "GRPO-LEAD", arXiv 2504.09696; official code aeroplanepaper/GRPO-LEAD,
`verl/verl/trainer/main_ppo.py`, with alpha = 0.05. The code leaves prompts alone whose three
shortest samples average at most 4,000 tokens; `min_tokens` is that threshold, 0 here because it
belongs to 8k to 32k contexts. exp is cut off at +-20 so that a reward stays finite for any alpha.
The paper's third part, weights of *advantages* by difficulty (0.4 + 1.1 / (1 + exp(10 (p - 0.75)))
with p the share of correct answers, 1 - p for negative advantages), belongs to an estimator and is
not part of this reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from reward_fns.inputs import check_finite, is_correct, mean, population_std
from reward_fns.kinds import group_reward

EPSILON = 1e-6  # tokens
WRONG = -1.0
SHORTEST = 3  # samples that decide whether a prompt is long enough
LARGEST_EXPONENT = 20.0


@group_reward
def group_rewards(
    correct: Sequence[float],
    tokens: Sequence[float],
    *,
    alpha: float = 0.05,
    min_tokens: float = 0.0,
) -> list[float]:
    """Whole rewards (task and length) of one prompt's samples.

    Args:
        correct: task scores in [0, 1].
        tokens: response tokens, EOS included.
        alpha: decay per standard deviation of length.
        min_tokens: mean of the three shortest samples up to which length is left alone; 0 never.

    Raises:
        ValueError: a parameter is not finite.
    """
    check_finite(alpha=alpha, min_tokens=min_tokens)
    right = [count for score, count in zip(correct, tokens, strict=True) if is_correct(score)]
    shortest = mean(sorted(tokens)[:SHORTEST])
    shaped = bool(right) and (min_tokens <= 0 or shortest > min_tokens)
    centre, spread = _centre_and_spread(right) if shaped else (0.0, 1.0)
    rewards = []
    for score, count in zip(correct, tokens, strict=True):
        exponent = -alpha * (count - centre) / spread if shaped else 0.0
        bounded = min(max(exponent, -LARGEST_EXPONENT), LARGEST_EXPONENT)
        rewards.append(score * math.exp(bounded) if is_correct(score) else WRONG)
    return rewards


def _centre_and_spread(counts: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation plus epsilon; deviation 1 for a single count."""
    size = len(counts)
    bessel = math.sqrt(size / (size - 1)) if size > 1 else 0.0
    deviation = population_std(counts) * bessel if size > 1 else 1.0
    return mean(counts), deviation + EPSILON
