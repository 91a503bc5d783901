"""L1-Exact: end as close as possible to the number of tokens that the prompt asks for.

    r = c - alpha * |n* - n|

c task score, n response tokens, n* target tokens (a column of the data: the prompt names it),
alpha reward per token of deviation.

Source: Aggarwal and Welleck, "L1", arXiv 2503.04697 (LCPO-Exact); official code cmu-l3/l1,
`math_reward.py`, with alpha = 3e-4 as in `scripts/train/run_l1_exact.sh`.
"""

from __future__ import annotations

from reward_fns.inputs import check_finite, check_positive
from reward_fns.kinds import sample_reward, verl_reward


@sample_reward
def l1_exact(
    correct: float, tokens: float, target: float | None = None, *, alpha: float = 3e-4
) -> float:
    """`correct - alpha * |target - tokens|`.

    Args:
        correct: task score in [0, 1].
        tokens: response tokens, EOS included.
        target: tokens asked for, above 0.
        alpha: reward per token of deviation. The source's value is for budgets of 100 to 4,000
            tokens; shorter responses need a larger one.

    Raises:
        ValueError: target is missing or not positive, alpha is not finite.
    """
    check_target(target)
    check_finite(alpha=alpha)
    return correct - alpha * abs(target - tokens)


def check_target(target: float | None) -> None:
    """Raise ValueError unless the prompt has a usable token budget."""
    if target is None:
        raise ValueError(
            "this prompt has no target: add a column with the number of tokens it asks for, or "
            "pass one target for all prompts"
        )
    check_positive(target=float(target))


compute_score = verl_reward(l1_exact, columns=("target",))
