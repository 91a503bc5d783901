"""O1-Pruner: shorter than the reference policy, and no less accurate.

    r = clip((n_ref - n) / n + alpha * (c - c_ref), -2, 4)

n response tokens (an empty response counts as one), c task score; n_ref and c_ref mean tokens and
mean score of the reference policy on this prompt; alpha weight of accuracy: a larger one presses
less for length.

Source: Luo et al., "O1-Pruner", arXiv 2501.12570; official code StarDewXXX/O1-Pruner,
`o1_scripts/construct_dataset.py`, with alpha = 5 as in its README. There the number weighs
sequences sampled once from the reference policy, after z-normalisation over the data set. Here it
is the reward of an on-policy step, and normalising is left to the estimator. Without the columns
`reference_tokens` and `reference_accuracy` the group itself is the reference, as it is in the
source's first and only round of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward_fns.inputs import check_finite, check_positive, mean
from reward_fns.kinds import group_reward

LOWEST, HIGHEST = -2.0, 4.0


@group_reward
def group_rewards(
    correct: Sequence[float],
    tokens: Sequence[float],
    *,
    reference_tokens: float | None = None,
    reference_accuracy: float | None = None,
    alpha: float = 5.0,
) -> list[float]:
    """Whole rewards (task and length) of one prompt's samples.

    Args:
        correct: task scores in [0, 1].
        tokens: response tokens, EOS included.
        reference_tokens: mean tokens of the reference policy on this prompt; None for the group's.
        reference_accuracy: its mean score in [0, 1]; None for the group's.
        alpha: weight of the task score.

    Raises:
        ValueError: alpha or reference_accuracy is not finite, reference_tokens is not positive.
    """
    check_finite(alpha=alpha)
    if reference_tokens is None:
        reference_tokens = max(mean(tokens), 1.0)
    if reference_accuracy is None:
        reference_accuracy = mean(correct)
    check_positive(reference_tokens=float(reference_tokens))
    check_finite(reference_accuracy=float(reference_accuracy))
    rewards = []
    for score, count in zip(correct, tokens, strict=True):
        length = max(count, 1.0)
        saved = (reference_tokens - length) / length
        gained = alpha * (score - reference_accuracy)
        rewards.append(min(max(saved + gained, LOWEST), HIGHEST))
    return rewards
