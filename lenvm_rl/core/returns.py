"""What is the target of each response token?

Shapes: B sequences, T response positions, N packed tokens. Position t of a response is the state
s_t *before* token t was emitted (verl's shifted `values`), so the first response position is s_0
and a response of L tokens, EOS included, has remaining lengths L, L - 1, ..., 1.

`mask` [B, T] is non-zero at generated tokens. Padding may lie on either side and, as observation
tokens of multi-turn rollouts, in between: masked positions cost nothing, are skipped, and what
other tensors hold there never matters. Results are 0 there.

Every generated token costs `r = -(1 - gamma)`; with lambda = 1 the return has the closed form
`G_t = -(1 - gamma**(L - t))` (LenVM eq. 1-3), and the functions below use it.

A completion cut by the token limit is not finished. With n tokens seen, the remaining length at
state t is only known to be longer than n - t. Three ways to treat it (`CUTS`):

    drop        its states get weight 0; short responses are then over-represented
    bootstrap   lambda-returns that end in the model's own value of its last state
    censored    the bound n - t is the label, for a loss that is one-sided (`losses.censor`)
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import (
    as_float,
    check_choice,
    check_fraction,
    check_rank,
    check_same_shape,
)
from lenvm_rl.core.horizon import check_gamma, length_to_value

CUTS = ("drop", "bootstrap", "censored")


def remaining_length(mask: Tensor) -> Tensor:
    """Tokens still to come at each state, L - t, counting the token about to be emitted.

    Args:
        mask: [B, T], non-zero at generated tokens.
    Returns:
        [B, T] float32, exact below 2**24 tokens; 0 where masked.
    """
    check_rank(mask, name="mask", axes="BT")
    counted = mask != 0
    tokens_from_here = counted.flip(1).cumsum(1).flip(1)  # int64: exact at any length
    return (tokens_from_here * counted).to(torch.float32)


def discounted_returns(response_mask: Tensor, *, gamma: float) -> Tensor:
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


def length_rewards(mask: Tensor, *, gamma: float) -> Tensor:
    """Reward `-(1 - gamma)` at each generated token, [B, T] float32 (LenVM eq. 1)."""
    check_rank(mask, name="mask", axes="BT")
    return (mask != 0).to(torch.float32) * -(1.0 - check_gamma(gamma))


def lambda_returns(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
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
        O(B T log T) work in log2 T vectorised rounds, no loop over T; float64 inside.
    """
    check_gamma(gamma)
    check_fraction(lam, name="lam")
    check_rank(mask, name="mask", axes="BT")
    check_same_shape(rewards=rewards, values=values, mask=mask)
    counted = mask != 0
    r, v = as_float(rewards, name="rewards"), as_float(values, name="values")
    dtype = torch.promote_types(r.dtype, v.dtype)
    # Products of many gammas need float64: gamma rounded to float32 is off by 0.3 % after 100k.
    r, v = torch.where(counted, r, 0.0).double(), torch.where(counted, v, 0.0).double()
    last = _per_row(bootstrap_value, like=v).double()

    # Masked positions pass on what follows them: y_t = 0 + 1 * y_{t+1}.
    skipped, kept = (~counted).double(), counted.double()
    next_values = _reverse_scan(v, skipped, last)[:, 1:]
    step = r + kept * (gamma * (1.0 - lam)) * next_values
    returns = _reverse_scan(step, skipped + kept * (gamma * lam), last)[:, :-1].to(dtype)
    return torch.where(counted, returns, 0.0)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
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
    returns = lambda_returns(
        rewards, values, mask, gamma=gamma, lam=lam, bootstrap_value=bootstrap_value
    )
    return torch.where(mask != 0, returns - as_float(values, name="values"), 0.0)


def length_targets(
    response_mask: Tensor, finished: Tensor, *, cut: str = "drop"
) -> tuple[Tensor, Tensor, Tensor]:
    """Remaining lengths with the weights that cut completions deserve.

    For the parameterisations of `targets` other than `return`: pass the lengths to
    `targets.label`. Bootstrapping needs values, hence `value_targets`.

    Args:
        response_mask: [B, T], non-zero at generated tokens.
        finished: [B] bool, True where the completion ended by itself (EOS).
        cut: "drop" or "censored".
    Returns:
        lengths: [B, T] float32 tokens; the lower bound n - t where censored.
        weights: [B, T] float32, 0 or 1; multiply the loss by it and sum it for the denominator.
        censored: [B, T] bool, True where the length is a lower bound.
    """
    check_choice(cut, name="cut", known=("drop", "censored"))
    lengths = remaining_length(response_mask)
    cut_B = ~_finished_rows(finished, response_mask)
    counted = response_mask != 0
    if cut == "drop":
        return lengths, (counted & ~cut_B[:, None]).float(), torch.zeros_like(counted)
    return lengths, counted.float(), counted & cut_B[:, None]


def value_targets(
    response_mask: Tensor,
    finished: Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
    cut: str = "drop",
    values: Tensor | None = None,
    bootstrap_value: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value targets of the length reward, with cut completions dropped, bootstrapped or censored.

    Finished completions get lambda-returns (closed form at lam = 1). Cut completions:

        drop        weight 0
        bootstrap   lambda-returns that end in V of the last state. `values` stops one state
                    early, at s_{n-1}: V(s_{n-1}) is then the end, and s_{n-1} itself has no
                    target (weight 0). With `bootstrap_value` = V(s_n) every state has one.
        censored    the bound `-(1 - gamma**(n - t))`, whatever lam

    Args:
        response_mask: [B, T], non-zero at generated tokens.
        finished: [B] bool, True where the completion ended by itself (EOS).
        gamma: per-token discount in (0, 1).
        lam: in [0, 1]; 1 is best in the paper and needs no values unless cut = "bootstrap".
        cut: one of `CUTS`.
        values: [B, T], V(s_t); treated as constant.
        bootstrap_value: [B], V after the last seen token, for cut = "bootstrap".
    Returns:
        targets: [B, T] float32 or better.
        weights: [B, T] float32, 0 or 1; multiply the loss by it and sum it for the denominator.
        censored: [B, T] bool, True where the loss must be one-sided.
    Raises:
        ValueError: illegal gamma, lam or cut; shapes; values missing where needed.
    """
    check_choice(cut, name="cut", known=CUTS)
    check_fraction(lam, name="lam")
    closed = discounted_returns(response_mask, gamma=gamma)
    is_finished = _finished_rows(finished, response_mask)[:, None]
    trained = response_mask != 0
    weights, censored = trained.float(), torch.zeros_like(trained)
    end: Tensor | float = 0.0
    if cut != "bootstrap":
        _, weights, censored = length_targets(response_mask, finished, cut=cut)
        if lam == 1.0:
            return closed, weights, censored

    # From here on the model's own values enter the targets, as constants.
    if values is None:
        raise ValueError(
            f"values are missing: lam={lam:g} with cut={cut!r} needs V(s_t) [B, T]. Give them, "
            f"or use lam=1 with cut='drop' or cut='censored'"
        )
    check_same_shape(values=values, response_mask=response_mask)
    v = as_float(values, name="values").detach()
    if cut == "bootstrap":
        trained, end = _bootstrap_end(v, trained, ~is_finished, bootstrap_value)
        weights = trained.float()
    rewards = length_rewards(trained, gamma=gamma)
    returns = lambda_returns(rewards, v, trained, gamma=gamma, lam=lam, bootstrap_value=end)
    if cut == "bootstrap" and lam < 1.0:
        return returns, weights, censored
    # The closed form holds for finished rows at lam = 1, and is the bound of censored rows.
    exact = is_finished if cut == "bootstrap" else ~is_finished
    return torch.where(exact, closed.to(returns.dtype), returns), weights, censored


def packed_remaining_lengths(lengths: Tensor, *, total: int | None = None) -> Tensor:
    """`remaining_length` for responses laid end to end without padding (nested tensors).

    Args:
        lengths: [B] integer, tokens of each response, EOS included; 0 is allowed.
        total: N = sum of lengths; given, no GPU has to be waited for.
    Returns:
        [N] float32: L_1, ..., 1, L_2, ..., 1, ...
    """
    check_rank(lengths, name="lengths", axes="B")
    if lengths.is_floating_point() or lengths.is_complex():
        raise ValueError(f"lengths must be integers, got {lengths.dtype}: pass token counts")
    ends_N = lengths.cumsum(0).repeat_interleave(lengths, output_size=total)
    positions_N = torch.arange(ends_N.numel(), device=lengths.device)
    return (ends_N - positions_N).to(torch.float32)


def packed_discounted_returns(lengths: Tensor, *, gamma: float, total: int | None = None) -> Tensor:
    """`discounted_returns` for responses laid end to end: [N] float32 in (-1, 0)."""
    return length_to_value(packed_remaining_lengths(lengths, total=total), gamma=gamma)


def _bootstrap_end(
    values: Tensor, counted: Tensor, is_cut: Tensor, bootstrap_value: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States that get a target [B, T], and the value after the last of them [B] (0 after EOS)."""
    if bootstrap_value is not None:
        end = _per_row(bootstrap_value, like=values).detach()
        return counted, torch.where(is_cut[:, 0], end, 0.0)
    is_end = is_cut & (remaining_length(counted) == 1)
    return counted & ~is_end, torch.where(is_end, values, 0.0).sum(1)


def _finished_rows(finished: Tensor, mask: Tensor) -> Tensor:
    """Check `finished` against the mask [B, T] and return it as bool [B]."""
    check_rank(mask, name="response_mask", axes="BT")
    if finished.shape != mask.shape[:1]:
        raise ValueError(
            f"finished must have one entry per row of response_mask, [{mask.shape[0]}], "
            f"got {tuple(finished.shape)}"
        )
    return finished.bool()


def _per_row(x: Tensor | float, *, like: Tensor) -> Tensor:
    """A number or a [B] tensor as [B] on the device of `like` [B, T]."""
    row = as_float(x, name="bootstrap_value").to(like.device)
    if row.dim() == 0:
        return row.to(like.dtype).expand(like.shape[0])
    if row.shape != like.shape[:1]:
        raise ValueError(
            f"bootstrap_value must be a number or have shape [{like.shape[0]}], "
            f"got {tuple(row.shape)}"
        )
    return row


def _reverse_scan(add: Tensor, decay: Tensor, last: Tensor) -> Tensor:
    """Solve `y_t = add_t + decay_t * y_{t+1}` with `y_T = last`, returned as [B, T + 1].

    Doubling: after round k each position holds the composition of the 2**k maps that start at it.
    All factors are at most 1, so nothing overflows, and sums are formed as a balanced tree.
    """
    y = torch.cat([add, last[:, None]], dim=1)
    factor = torch.cat([decay, torch.zeros_like(last)[:, None]], dim=1)
    step = 1
    while step < y.shape[1]:
        composed = y[:, :-step] + factor[:, :-step] * y[:, step:]
        y = torch.cat([composed, y[:, -step:]], dim=1)
        # Beyond the end nothing is left to multiply: y_T has decay 0.
        factor = torch.cat(
            [factor[:, :-step] * factor[:, step:], torch.zeros_like(factor[:, -step:])], dim=1
        )
        step *= 2
    return y
