"""Cosine: correct answers earn more when short, wrong ones lose less when long.

    r = r_L + (r_0 - r_L) / 2 * (1 + cos(pi * min(n / L_max, 1)))

n response tokens, L_max longest response; (r_0, r_L) rewards at 0 and at L_max tokens: (1, 0.5) for
correct answers, (-1, -0.5) for wrong ones. Beyond L_max the reward stays at r_L (a bare cosine
would rise again).

Sources: Yeo et al., "Demystifying Long Chain-of-Thought Reasoning", arXiv 2502.03373 (other end
points, and a penalty beyond L_max); the end points are those of `get_cosine_scaled_reward` in
huggingface/open-r1, `src/open_r1/rewards.py` (of characters there, L_max = 1,000). This reward
presses wrong answers to grow: it is meant to stabilise length, not to shorten everything.
"""

from __future__ import annotations

import math

from reward_fns.inputs import check_finite, check_positive, is_correct
from reward_fns.kinds import sample_reward, verl_reward


@sample_reward
def cosine(
    correct: float,
    tokens: float,
    *,
    max_tokens: float = 1_000,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
) -> float:
    """Cosine from the `_short` to the `_long` reward over `max_tokens`.

    Args:
        correct: task score in [0, 1]; only whether it is right counts.
        tokens: response tokens, EOS included.
        max_tokens: tokens at which the `_long` rewards are reached.
        right_short: reward of a correct answer of 0 tokens.
        right_long: reward of a correct answer of `max_tokens` or more.
        wrong_short: reward of a wrong answer of 0 tokens.
        wrong_long: reward of a wrong answer of `max_tokens` or more.

    Raises:
        ValueError: max_tokens is not positive, a reward is not finite.
    """
    check_positive(max_tokens=max_tokens)
    check_finite(right_short=right_short, right_long=right_long)
    check_finite(wrong_short=wrong_short, wrong_long=wrong_long)
    short, long = (right_short, right_long) if is_correct(correct) else (wrong_short, wrong_long)
    progress = min(tokens / max_tokens, 1.0)
    return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * progress))


compute_score = verl_reward(cosine)
