"""DAPO: a soft punishment that starts a buffer before the length limit.

    r = c + factor * clip((L_max - L_buffer - n) / L_buffer, -1, 0)

c task score, n response tokens, L_max longest response, L_buffer tokens before it over which the
punishment grows from 0 to `factor`.

Source: Yu et al., "DAPO", arXiv 2503.14476, soft overlong punishment: L_max = 20,480, L_buffer =
4,096. In verl: `verl/experimental/reward_loop/reward_manager/dapo.py`, which does not stop at
-factor; the two differ only for n > L_max, which a rollout limit of L_max rules out. DAPO's own
task score is -1 or 1; c here is in [0, 1], half that range. The default buffer is DAPO's share of
the limit, one fifth.
"""

from __future__ import annotations

from reward_fns.inputs import check_finite, check_positive
from reward_fns.kinds import sample_reward, verl_reward

BUFFER_SHARE = 0.2  # 4,096 of 20,480


@sample_reward
def dapo_overlong(
    correct: float,
    tokens: float,
    *,
    max_tokens: float = 20_480,
    buffer: float | None = None,
    factor: float = 1.0,
) -> float:
    """`correct + factor * clip((max_tokens - buffer - tokens) / buffer, -1, 0)`.

    Args:
        correct: task score in [0, 1].
        tokens: response tokens, EOS included.
        max_tokens: tokens from which on the whole `factor` is lost.
        buffer: tokens before `max_tokens` over which the punishment grows; None for a fifth of it.
        factor: largest punishment.

    Raises:
        ValueError: max_tokens or buffer is not positive, the buffer is longer than max_tokens, or
            factor is not finite.
    """
    check_positive(max_tokens=max_tokens)
    width = BUFFER_SHARE * max_tokens if buffer is None else buffer
    check_positive(buffer=width)
    check_finite(factor=factor)
    if width > max_tokens:
        raise ValueError(
            f"buffer is {width} tokens, longer than max_tokens {max_tokens}: every response would "
            "be punished; set a buffer within max_tokens"
        )
    excess = (max_tokens - width - tokens) / width
    return correct + factor * min(max(excess, -1.0), 0.0)


compute_score = verl_reward(dapo_overlong)
