"""Targets of completions, some of which the token limit may have truncated.

Shapes: B sequences, T response positions; position t is the state s_t before token t, as in
`returns`.

A truncated completion is not finished. With n tokens seen, the remaining length at state t is only
known to be longer than n - t. Three ways to treat it (`TRUNCATIONS`):

    drop        its states get weight 0; short responses are then over-represented
    bootstrap   lambda-returns that end in the model's own value of its last state
    censored    the bound n - t is the label, for a loss that is one-sided (`losses.censor`)

Always report the share of truncated completions beside the choice.
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import (
    as_float,
    check_choice,
    check_fraction,
    check_rank,
    check_same_shape,
    per_row,
)
from lenvm_rl.core.returns import (
    discounted_returns,
    lambda_returns,
    length_rewards,
    remaining_length,
)
from lenvm_rl.core.rows import Rows

TRUNCATIONS = ("drop", "bootstrap", "censored")


def length_targets(
    response_mask: Tensor, finished: Tensor, *, truncated: str = "drop"
) -> tuple[Tensor, Tensor, Tensor]:
    """Remaining lengths with the weights that truncated completions deserve.

    For the parameterisations of `targets` other than `return`: pass the lengths to
    `targets.label`. Bootstrapping needs values, hence `value_targets`.

    Args:
        response_mask: [B, T], non-zero at generated tokens.
        finished: [B] bool, True where the completion ended by itself (EOS).
        truncated: "drop" or "censored".
    Returns:
        lengths: [B, T] float32 tokens; the lower bound n - t where censored.
        weights: [B, T] float32, 0 or 1; multiply the loss by it and sum it for the denominator.
        censored: [B, T] bool, True where the length is a lower bound.
    """
    check_choice(truncated, name="truncated", known=("drop", "censored"))
    lengths = remaining_length(response_mask)
    truncated_B = ~check_finished(finished, response_mask)
    counted = response_mask != 0
    if truncated == "drop":
        return lengths, (counted & ~truncated_B[:, None]).float(), torch.zeros_like(counted)
    return lengths, counted.float(), counted & truncated_B[:, None]


def value_targets(
    response_mask: Tensor,
    finished: Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
    truncated: str = "drop",
    values: Tensor | None = None,
    bootstrap_value: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value targets of the length reward, with truncated completions dropped, bootstrapped or
    censored.

    Finished completions get lambda-returns (closed form at lam = 1). Truncated completions:

        drop        weight 0
        bootstrap   lambda-returns that end in V of the last state. `values` stops one state
                    early, at s_{n-1}: V(s_{n-1}) is then the end, and s_{n-1} itself has no
                    target (weight 0). With `bootstrap_value` = V(s_n) every state has one.
        censored    the bound `-(1 - gamma**(n - t))`, whatever lam

    Args:
        response_mask: [B, T], non-zero at generated tokens.
        finished: [B] bool, True where the completion ended by itself (EOS).
        gamma: per-token discount in (0, 1).
        lam: in [0, 1]; 1 is best in the paper and needs no values unless truncated = "bootstrap".
        truncated: one of `TRUNCATIONS`.
        values: [B, T], V(s_t); treated as constant.
        bootstrap_value: [B], V after the last seen token, for truncated = "bootstrap".
    Returns:
        targets: [B, T] float32 or better.
        weights: [B, T] float32, 0 or 1; multiply the loss by it and sum it for the denominator.
        censored: [B, T] bool, True where the loss must be one-sided.
    Raises:
        ValueError: illegal gamma, lam or truncated; shapes; values missing where needed.
    """
    check_choice(truncated, name="truncated", known=TRUNCATIONS)
    check_fraction(lam, name="lam")
    closed = discounted_returns(response_mask, gamma=gamma)
    is_finished = check_finished(finished, response_mask)[:, None]
    if truncated == "bootstrap":
        v = _constants(values, response_mask, lam=lam, truncated=truncated)
        trained, end = _bootstrap_end(v, response_mask != 0, ~is_finished, bootstrap_value)
        weights, censored = trained.float(), torch.zeros_like(trained)
    else:
        _, weights, censored = length_targets(response_mask, finished, truncated=truncated)
        if lam == 1.0:
            return closed, weights, censored
        v = _constants(values, response_mask, lam=lam, truncated=truncated)
        trained, end = response_mask != 0, 0.0

    rewards = length_rewards(trained, gamma=gamma)
    returns = lambda_returns(rewards, v, trained, gamma=gamma, lam=lam, bootstrap_value=end)
    # The closed form is exact for finished rows at lam = 1, and the bound of censored rows.
    use_closed = (is_finished & (lam == 1.0)) | censored
    return torch.where(use_closed, closed.to(returns.dtype), returns), weights, censored


def boundary_weights(response_mask: Tensor, *, boundary_weight: float) -> Tensor:
    """Weight of every state when s_0, the state at the prompt's end, counts for more than one.

    Only one state of a completion is at the prompt's end, so of a loss that weighs tokens equally
    it has the share 1/L, and the length predicted before the first token is learnt last. A weight
    that depends on t alone, and not on what is still to come, moves no target: the minimiser is
    E[G | s] whatever it is (weights such as 1/L do move it, LenVM appendix E).

    Args:
        response_mask: [B, T], non-zero at generated tokens.
        boundary_weight: of s_0, > 0; 1 weighs all states alike.
    Returns:
        [B, T] float32: boundary_weight at the first token of the mask, 1 at the others, else 0.
    Raises:
        ValueError: a weight that is not a positive number.
    """
    check_rank(response_mask, name="response_mask", axes="BT")
    if not 0.0 < boundary_weight < float("inf"):
        raise ValueError(
            f"boundary_weight must be a positive number, got {boundary_weight}; 1 weighs all "
            "states alike"
        )
    counted = response_mask != 0
    first = counted & (counted.long().cumsum(1) == 1)
    return counted.float() + first.float() * (boundary_weight - 1.0)


def _constants(values: Tensor | None, mask: Tensor, *, lam: float, truncated: str) -> Tensor:
    """The model's own values where they enter the targets, without gradient."""
    if values is None:
        raise ValueError(
            f"values are missing: lam={lam:g} with truncated={truncated!r} needs V(s_t) [B, T]. "
            f"Give them, or use lam=1 with truncated='drop' or truncated='censored'"
        )
    check_same_shape(values=values, response_mask=mask)
    return as_float(values, name="values").detach()


def _bootstrap_end(
    values: Tensor, counted: Tensor, is_truncated: Tensor, bootstrap_value: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States that get a target [B, T], and the value after the last of them [B] (0 after EOS)."""
    if bootstrap_value is not None:
        end = per_row(bootstrap_value, like=values, name="bootstrap_value").detach()
        return counted, torch.where(is_truncated[:, 0], end, 0.0)
    is_end = is_truncated & (remaining_length(counted) == 1)
    return counted & ~is_end, torch.where(is_end, values, 0.0).sum(1)


def check_finished(finished: Tensor, mask: Tensor | Rows) -> Tensor:
    """Return `finished` as bool [B]; raise ValueError unless it fits the rows of the mask."""
    count = len(Rows.of(mask, name="response_mask").lengths)
    if finished.shape != (count,):
        raise ValueError(
            f"finished must have one entry per row of response_mask, [{count}], "
            f"got {tuple(finished.shape)}"
        )
    return finished.bool()
