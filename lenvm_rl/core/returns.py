"""Returns of each response token: length rewards, closed form, lambda-returns, GAE.

Shapes: B sequences, T response positions. Position t of a response is the state
s_t *before* token t was emitted (verl's shifted `values`), so the first response position is s_0
and a response of L tokens, EOS included, has remaining lengths L, L - 1, ..., 1.

`mask` [B, T] is non-zero at generated tokens. Padding may lie on either side and, as observation
tokens of multi-turn rollouts, in between: masked positions cost nothing, are skipped, and what
other tensors hold there never matters. Results are 0 there.

Every generated token costs `r = -(1 - gamma)`; with lambda = 1 the return has the closed form
`G_t = -(1 - gamma**(L - t))` (LenVM eq. 1-3), and the functions of that name use it.
Completions truncated by the token limit are the subject of `truncated`.
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_fraction
from lenvm_rl.core.rows import Rows
from lenvm_rl.core.values import check_gamma, length_to_value


def remaining_length(mask: Tensor | Rows) -> Tensor:
    """Tokens still to come at each state, L - t, counting the token about to be emitted.

    Args:
        mask: [B, T], non-zero at generated tokens.
    Returns:
        [B, T] float32, exact below 2**24 tokens; 0 where masked.
    """
    rows = Rows.of(mask)
    return rows.unpack(rows.left.to(torch.float32))


def discounted_returns(response_mask: Tensor | Rows, *, gamma: float) -> Tensor:
    """Discounted length return at each state, in closed form.

        G_t = -(1 - gamma**(L - t))

    Equal to `lambda_returns` of `length_rewards` at lambda = 1, whatever the values.

    Args:
        response_mask: [B, T], non-zero at generated tokens of finished completions.
        gamma: per-token discount in (0, 1).
    Returns:
        [B, T] float32 in [-1, 0]; 0 where masked.
    Reference: LenVM eq. 2.
    """
    return length_to_value(remaining_length(response_mask), gamma=gamma)


def length_rewards(mask: Tensor | Rows, *, gamma: float) -> Tensor:
    """Reward `-(1 - gamma)` at each generated token, [B, T] float32 (LenVM eq. 1)."""
    rows = Rows.of(mask)
    return rows.unpack(torch.full((len(rows),), -(1.0 - check_gamma(gamma)), device=rows.device))


def lambda_returns(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | Rows,
    *,
    gamma: float,
    lam: float,
    bootstrap_value: Tensor | float = 0.0,
) -> Tensor:
    """Lambda-returns of any token rewards.

        G_t = r_t + gamma * ((1 - lam) * V_{t+1} + lam * G_{t+1}),   G_L = V_L = bootstrap_value

    lam = 1 is the Monte Carlo return and ignores `values`; lam = 0 is the one-step TD target.

    Args:
        rewards: [B, T], reward of emitting token t.
        values: [B, T], V(s_t) before token t.
        mask: [B, T], non-zero at generated tokens.
        gamma: per-token discount in (0, 1).
        lam: in [0, 1].
        bootstrap_value: value after the last generated token: 0 after EOS; [B] or a number.
    Returns:
        [B, T], at least float32; 0 where masked. Gradients flow to rewards and values.
    Complexity:
        O(N) in the tokens of the mask, see `Rows.decayed`; float64 inside.
    """
    rows = Rows.of(mask, rewards=rewards, values=values)
    r, v = as_float(rewards, name="rewards"), as_float(values, name="values")
    dtype = torch.promote_types(r.dtype, v.dtype)
    returns = _lambda_returns(rows, r, v, gamma=gamma, lam=lam, end=bootstrap_value)
    return rows.unpack(returns.to(dtype))


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | Rows,
    *,
    gamma: float,
    lam: float,
    bootstrap_value: Tensor | float = 0.0,
) -> Tensor:
    """Generalised advantage estimates, not whitened.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1}

    computed as `lambda_returns - values`, which is the same sum with less round-off; so the value
    target is `values + gae(...)`. Arguments, shapes and errors as for `lambda_returns`.

    Returns:
        [B, T]; 0 where masked.
    """
    rows = Rows.of(mask, rewards=rewards, values=values)
    r, v = as_float(rewards, name="rewards"), as_float(values, name="values")
    dtype = torch.promote_types(r.dtype, v.dtype)
    returns = _lambda_returns(rows, r, v, gamma=gamma, lam=lam, end=bootstrap_value)
    return rows.unpack(returns.to(dtype) - rows.pack(v))


def _lambda_returns(
    rows: Rows, rewards: Tensor, values: Tensor, *, gamma: float, lam: float, end: Tensor | float
) -> Tensor:
    """[N] float64: products of many gammas rounded to float32 are off by 0.3 % after 100k."""
    check_gamma(gamma)
    check_fraction(lam, name="lam")
    last = rows.per_row(end, name="bootstrap_value").double()
    step = rows.pack(rewards).double()
    if lam != 1.0:
        step = step + gamma * (1.0 - lam) * rows.following(rows.pack(values).double(), last)
    return rows.decayed(step, gamma * lam, last)


def td_scores(u: Tensor, *, gamma: float, ended: bool = True) -> Tensor:
    """One-step TD score of every response token; positive: the token made the rest longer.

        s_t = gamma u_t - u_{t-1} + (1 - gamma),   t = 1 .. L,   u_L = 0

    A token that the value model foresaw leaves u on its own course: one token is spent, and nothing
    else. A model that knows the remaining length scores 0 everywhere; over many samples a perfect
    mean u scores 0 on average at every state. It is minus the residual of eq. 16, which written
    with V has the opposite sign to its own text.

    Args:
        u: [..., L] discounted lengths at the states s_0 .. s_{L-1}, in [0, 1]: before each response
            token.
        gamma: per-token discount in (0, 1).
        ended: the last token is an EOS, after which u = 0. False (truncated by the token limit):
            the state after the last token is not known, and its score is NaN.
    Returns:
        [..., L] unitless, in [-gamma, 1], float64 (the difference of two u near 1 cancels).
    Reference: LenVM section 5.4, eq. 16.
    """
    g = check_gamma(gamma)
    u = as_float(u, name="u").double()
    after = torch.zeros_like(u[..., :1]) if ended else torch.full_like(u[..., :1], torch.nan)
    return g * torch.cat([u[..., 1:], after], dim=-1) - u + (1.0 - g)
