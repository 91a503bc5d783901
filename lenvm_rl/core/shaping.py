"""Potentials of a length value: for reward shaping, and for a budget.

Shaping form (LenVM eq. 28-32): F_t = gamma Phi(s_{t+1}) - Phi(s_t) is added to the token rewards.
It leaves the order of policies alone only if returns are discounted with the same gamma.

The trap: an estimator that sums token rewards without discount, as GRPO does, sees

    sum_t F_t = (gamma - 1) sum_{t>=1} Phi_t - Phi_0

and with gamma < 1 and Phi < 0 that pays for length: a perfect value at gamma .997 pays exactly
(1 - gamma) L, 6.0 for 2,000 tokens. There use gamma = 1, which telescopes to -Phi_0, the same for
all samples of a prompt.

Budget form (this project's): with a budget of n* tokens, Phi_t = -|t + l(s_t) - n*| / n* predicts
the reward -|L - n*| / n* of the whole completion; its GAE spreads that reward over the tokens.

A completion truncated by the token limit ends in a state like any other, not in EOS: its end is its
own last potential. So in an undiscounted sum it keeps that potential as a penalty, Phi_end - Phi_0.

Shapes: B sequences, T response positions; position t is the state s_t before token t.
"""

import torch
from torch import Tensor

from lenvm_rl.core.advantages import check_scale
from lenvm_rl.core.checks import as_float, check_choice, check_fraction
from lenvm_rl.core.rows import Rows
from lenvm_rl.core.truncated import check_finished
from lenvm_rl.core.values import check_gamma

BUDGETS = ("equal", "at_most")


def shaping_rewards(
    potential: Tensor,
    mask: Tensor | Rows,
    finished: Tensor,
    *,
    gamma: float,
    scale: float,
    end_potential: Tensor | None = None,
) -> Tensor:
    """Potential-based shaping reward of every token.

        F_t = scale * (gamma * Phi_{t+1} - Phi_t),     Phi(EOS) = 0

    Args:
        potential: [B, T], Phi(s_t); treated as constant.
        mask: [B, T], non-zero at generated tokens.
        finished: [B] bool, True where the completion ended by itself.
        gamma: discount in (0, 1] with which the estimator discounts token rewards.
        scale: finite; > 0 shortens if Phi is a length value.
        end_potential: [B], Phi after the last token of truncated rows; None repeats their last Phi.
    Returns:
        [B, T] at least float32; 0 where masked.
    Raises:
        ValueError: gamma outside (0, 1], scale not finite, shapes that differ.
    Reference: LenVM eq. 28-32.
    """
    if gamma != 1.0:
        check_gamma(gamma)
    check_scale(scale)
    rows = Rows.of(mask, potential=potential)
    phi = rows.pack(as_float(potential, name="potential").detach())
    end = _end(phi, rows, finished, end_potential, after_eos=0.0)
    return rows.unpack(scale * (gamma * rows.following(phi, end) - phi))


def budget_potential(
    lengths_left: Tensor, mask: Tensor | Rows, budget: Tensor, *, kind: str = "equal"
) -> Tensor:
    """How far the expected total length is from the budget, at every state.

        equal     Phi_t = -|t + l(s_t) - n*| / n*
        at_most   Phi_t = -max(0, t + l(s_t) - n*) / n*

    Budgets and lengths count response tokens, EOS included. The potential of a predicted length
    is at least the expected one (|.| is convex): it is a baseline, not the reward.

    Args:
        lengths_left: [B, T], tokens l(s_t) still to come.
        mask: [B, T], non-zero at generated tokens; t counts these.
        budget: [B], n* > 0 in tokens.
        kind: one of `BUDGETS`.
    Returns:
        [B, T] at least float32, at most 0, in budgets; 0 where masked.
    """
    rows = Rows.of(mask, lengths_left=lengths_left)
    spent = rows.spread(rows.lengths) - rows.left
    total = spent + rows.pack(as_float(lengths_left, name="lengths_left"))
    _check_budget(budget, rows)
    return rows.unpack(-_deviation(total, rows.spread(as_float(budget, name="budget")), kind))


def budget_advantage(
    lengths_left: Tensor,
    mask: Tensor | Rows,
    finished: Tensor,
    budget: Tensor,
    *,
    kind: str = "equal",
    lam: float,
    end_left: Tensor | None = None,
) -> Tensor:
    """Advantage of every token for meeting the budget, not whitened.

        A_t = sum_k lam**k (Phi_{t+k+1} - Phi_t+k),     Phi_L = -|L - n*| / n* after EOS

    Undiscounted, so `A_t(lam=1) = Phi_L - Phi_t`: the sequence's own budget reward against what
    was expected of it. A truncated row ends in `end_left`, or repeats its last potential.

    Args:
        lengths_left, mask, budget, kind: as for `budget_potential`.
        finished: [B] bool, True where the completion ended by itself.
        lam: in [0, 1].
        end_left: [B], tokens still to come after the last token, read in truncated rows alone.
    Returns:
        [B, T] at least float32; 0 where masked.
    """
    check_fraction(lam, name="lam")
    rows = Rows.of(mask, lengths_left=lengths_left)
    flat = rows.flat
    phi = budget_potential(rows.pack(lengths_left), flat, budget, kind=kind)
    n, tokens = as_float(budget, name="budget"), rows.lengths.to(phi.dtype)
    after_eos = -_deviation(tokens, n, kind)
    end_phi = None
    if end_left is not None:
        end_phi = -_deviation(tokens + rows.per_row(end_left, name="end_left"), n, kind)
    end = _end(phi, flat, finished, end_phi, after_eos=after_eos)
    if lam == 1.0:
        return rows.unpack(flat.spread(end) - phi)
    delta = flat.following(phi, end) - phi
    return rows.unpack(flat.decayed(delta.double(), lam).to(phi.dtype))


def _end(
    phi: Tensor,
    rows: Rows,
    finished: Tensor,
    of_truncated: Tensor | None,
    *,
    after_eos: Tensor | float,
) -> Tensor:
    """Potential after the last token [B]: the terminal one after EOS, its own in truncated rows."""
    is_finished = check_finished(finished, rows)
    if of_truncated is None:
        of_truncated = rows.ends(phi)
    of_truncated = rows.per_row(of_truncated, name="end_potential")
    return torch.where(is_finished, after_eos, of_truncated).to(phi.dtype)


def _check_budget(budget: Tensor, rows: Rows) -> None:
    if budget.shape != rows.lengths.shape:
        raise ValueError(
            f"budget must have one entry per row, [{len(rows.lengths)}], got {tuple(budget.shape)}"
        )


def _deviation(total: Tensor, budget: Tensor, kind: str) -> Tensor:
    """Distance of total lengths from the budgets, in budgets; shapes that are alike."""
    check_choice(kind, name="budget kind", known=BUDGETS)
    over = total - budget
    return (over.abs() if kind == "equal" else over.clamp(min=0.0)) / budget
