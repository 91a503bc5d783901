"""Truncation: an answer counts only if it comes within the limit.

    r = c * 1[n <= L]

c task score, n response tokens, L limit in tokens.

Sources: ThinkPrune, arXiv 2504.01296 (UCSB-NLP-Chang/ThinkPrune), which tightens L in rounds of
4,000, 3,000 and 2,000; DLER, arXiv 2510.15110 (NVlabs/DLER), L = 4,000. Both set the rollout's own
limit (verl: `data.max_response_length=L`), which cuts the response and so costs it its answer, and
saves the tokens. This function is the same reward for rollouts with a longer limit: it leaves
lengths beyond L visible, and charts of lengths comparable. DLER's gain comes from its optimiser as
well (batch-wide normalisation of advantages, clip-high, dynamic sampling): settings of verl's
estimator, not of a reward.
"""

from __future__ import annotations

from reward_fns.inputs import check_positive
from reward_fns.kinds import sample_reward, verl_reward


@sample_reward
def truncation(correct: float, tokens: float, *, limit: float = 4_000) -> float:
    """`correct` if `tokens <= limit`, else 0.

    Args:
        correct: task score in [0, 1].
        tokens: response tokens, EOS included.
        limit: longest response that counts, in tokens.

    Raises:
        ValueError: limit is not positive.
    """
    check_positive(limit=limit)
    return correct if tokens <= limit else 0.0


compute_score = verl_reward(truncation)
