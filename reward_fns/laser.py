"""LASER: a bonus for right answers within a target length.

    r = c + bonus * 1[n <= L_T]       right answers
    r = wrong                         wrong answers

c task score, n response tokens, L_T target length in tokens.

Source: Liu et al., "Learn to Reason Efficiently with Adaptive Length-based Reward Shaping", arXiv
2505.15612; official code hkust-nlp/Laser, `verl/utils/reward_score/length_penalty.py` (type
"reward"), with bonus 0.5, wrong -0.5 and L_T = 4,096 as in `laser-1.5b-l4096.sh` (2,048 and 8,192
in its siblings).
"""

from __future__ import annotations

from reward_fns.inputs import check_finite, check_positive, is_right, sample_reward
from reward_fns.sample_score import verl_reward


@sample_reward
def laser(
    correct: float,
    tokens: float,
    *,
    target_tokens: float = 4_096,
    bonus: float = 0.5,
    wrong: float = -0.5,
) -> float:
    """`correct + bonus * (tokens <= target_tokens)` if right, else `wrong`.

    Args:
        correct: task score in [0, 1].
        tokens: response tokens, EOS included.
        target_tokens: longest response that earns the bonus.
        bonus: added to right answers within the target.
        wrong: reward of a wrong answer of any length.

    Raises:
        ValueError: target_tokens is not positive, bonus or wrong is not finite.
    """
    check_positive(target_tokens=target_tokens)
    check_finite(bonus=bonus, wrong=wrong)
    if not is_right(correct):
        return wrong
    return correct + (bonus if tokens <= target_tokens else 0.0)


compute_score = verl_reward(laser)
