"""L1-Max: stay within the number of tokens that the prompt allows.

    r = c * clip(alpha * (n* - n) + delta, 0, 1)

c task score, n response tokens, n* the allowed tokens (a column of the data), alpha reward per
token, delta the reward of a correct answer that ends exactly at n*. A wrong answer earns 0 at any
length; a right one is paid for tokens left over, up to 1.

Source: Aggarwal and Welleck, "L1", arXiv 2503.04697 (LCPO-Max), alpha = 3e-4 and delta = 0.5. The
official code (cmu-l3/l1, `math_reward.py`) has `c * (clip(a * (n* - n), -1, 1) + 1) / 2`: the same
function at alpha = a / 2. Its repository has no launch script for L1-Max, so which of the two
slopes was trained is open; here alpha is the paper's.
"""

from __future__ import annotations

from reward_fns.inputs import check_finite
from reward_fns.kinds import sample_reward, verl_reward
from reward_fns.l1_exact import check_target


@sample_reward
def l1_max(
    correct: float,
    tokens: float,
    target: float | None = None,
    *,
    alpha: float = 3e-4,
    delta: float = 0.5,
) -> float:
    """`correct * clip(alpha * (target - tokens) + delta, 0, 1)`.

    Args:
        correct: task score in [0, 1].
        tokens: response tokens, EOS included.
        target: tokens allowed, above 0.
        alpha: reward per token left over.
        delta: share of the reward at exactly `target` tokens.

    Raises:
        ValueError: target is missing or not positive, a parameter is not finite.
    """
    check_target(target)
    check_finite(alpha=alpha, delta=delta)
    return correct * min(max(alpha * (target - tokens) + delta, 0.0), 1.0)


compute_score = verl_reward(l1_max, columns=("target",))
