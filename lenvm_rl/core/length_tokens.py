"""Which single tokens change the length that is to be expected?

A token that the value model foresaw leaves the discounted length u on its own course: one token is
spent, and nothing else. What a token does beyond that is the one-step temporal difference of u.
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float
from lenvm_rl.core.values import check_gamma


def td_scores(u: Tensor, *, gamma: float, ended: bool = True) -> Tensor:
    """One-step TD score of every response token; positive: the token made the rest longer.

        s_t = gamma u_t - u_{t-1} + (1 - gamma),   t = 1 .. L,   u_L = 0

    A model that knows the remaining length scores 0 everywhere; over many samples a perfect mean
    u scores 0 on average at every state. It is minus the residual of eq. 16, which written
    with V has the opposite sign to its own text.

    Args:
        u: [..., L] discounted lengths at the states s_0 .. s_{L-1}, in [0, 1]: before each response
            token.
        gamma: per-token discount in (0, 1).
        ended: the last token is an EOS, after which u = 0. False (cut by the token limit): the
            state after the last token is not known, and its score is NaN.
    Returns:
        [..., L] unitless, in [-gamma, 1], float64 (the difference of two u near 1 cancels).
    Reference: LenVM section 5.4, eq. 16.
    """
    g = check_gamma(gamma)
    u = as_float(u, name="u").double()
    after = torch.zeros_like(u[..., :1]) if ended else torch.full_like(u[..., :1], torch.nan)
    return g * torch.cat([u[..., 1:], after], dim=-1) - u + (1.0 - g)
