"""What is the length advantage of each token, and how does it join a task advantage?

Objective form of length-aware RL (LenVM appendix C, eq. 19-27):

    A_total = A_task + scale * A_len,     A_len = GAE over r = -(1 - gamma) with LenVM as baseline

A_len has its own gamma (the checkpoint's) and its own lambda, and is never whitened together with
the task advantage: whitening the sum would let one term set the unit of the other. scale > 0
shortens, scale < 0 lengthens.

lambda = 1 is unbiased however stale the values are and carries the noise of the whole future;
lambda -> 0 credits this one token, with the bias of the values.

Shapes: B sequences, T response positions; position t is the state s_t before token t, as in
`returns`. Masked positions may lie anywhere; their content never matters.
"""

import math

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_choice, check_same_shape, per_row
from lenvm_rl.core.cuts import check_finished
from lenvm_rl.core.horizon import check_gamma
from lenvm_rl.core.masked import masked_sum
from lenvm_rl.core.returns import gae, length_rewards, remaining_length

NORMALISATIONS = ("none", "batch_std")

_FLAT = 1e-6  # a spread below this share of the largest entry is round-off, not signal


def length_advantage(
    values: Tensor,
    response_mask: Tensor,
    finished: Tensor,
    *,
    gamma: float,
    lam: float,
    end_value: Tensor | None = None,
) -> Tensor:
    """Generalised advantage of every token for the length reward, not whitened.

        delta_t = -(1 - gamma) + gamma V_{t+1} - V_t,     A_t = sum_k (gamma lam)**k delta_{t+k}

    After EOS, V_L = 0. A completion cut by the token limit did not end: V_L is `end_value` where
    given, else what Bellman's equation asks of its last state, so that its last delta is 0:

        V_L = clip((V_{L-1} + (1 - gamma)) / gamma, -1, 0)

    With the true values of a certain length A is 0 everywhere; in general
    `A_t(lam=1) = G_t - V_t` and `sum_t gamma**t A_t(lam=0) = G_0 - V_0`.

    Args:
        values: [B, T], V(s_t) in [-1, 0].
        response_mask: [B, T], non-zero at generated tokens.
        finished: [B] bool, True where the completion ended by itself (EOS).
        gamma: per-token discount in (0, 1), the one the values were trained with.
        lam: in [0, 1].
        end_value: [B], V after the last generated token, read in cut rows alone.
    Returns:
        [B, T] at least float32, in [-1, 1]; 0 where masked.
    Raises:
        ValueError: illegal gamma or lam; shapes that differ.
    Reference: LenVM eq. 19-25.
    """
    check_same_shape(values=values, response_mask=response_mask)
    v = as_float(values, name="values")
    is_finished = check_finished(finished, response_mask)
    if end_value is None:
        last = torch.where(remaining_length(response_mask) == 1, v, 0.0).sum(1)
        end = ((last + (1.0 - check_gamma(gamma))) / gamma).clamp(-1.0, 0.0)
    else:
        end = per_row(end_value, like=v, name="end_value")
    rewards = length_rewards(response_mask, gamma=gamma).to(v.dtype)
    bootstrap = torch.where(is_finished, 0.0, end)
    return gae(rewards, v, response_mask, gamma=gamma, lam=lam, bootstrap_value=bootstrap)


def normalise_advantage(advantage: Tensor, mask: Tensor, *, how: str = "none") -> Tensor:
    """Bring a length advantage to a unit of its own, without moving its zero.

        none        as it is
        batch_std   divided by the standard deviation over the tokens of the batch, not centred:
                    centring would reward every token of a batch that is too long

    A batch without spread (all entries equal up to round-off) is returned as it is.

    Args:
        advantage: [B, T].
        mask: [B, T], non-zero at generated tokens.
        how: one of `NORMALISATIONS`.
    Returns:
        [B, T] at least float32; 0 where masked.
    """
    check_choice(how, name="normalise", known=NORMALISATIONS)
    check_same_shape(advantage=advantage, mask=mask)
    counted = mask != 0
    a = torch.where(counted, as_float(advantage, name="advantage"), 0.0)
    tokens = counted.sum()
    if how == "none" or not tokens:
        return a
    mean = a.double().sum() / tokens
    std = (masked_sum((a.double() - mean) ** 2, counted) / tokens).sqrt()
    flat = std <= _FLAT * a.abs().max()
    return torch.where(flat, a, (a / torch.where(flat, 1.0, std)).to(a.dtype))


def combine(task: Tensor, length: Tensor, mask: Tensor, *, scale: Tensor | float) -> Tensor:
    """`task + scale * length` at the tokens of the mask, each in its own unit.

    Args:
        task: [B, T], the estimator's advantage: whitened, group-centred or neither.
        length: [B, T], a length advantage.
        mask: [B, T], non-zero at generated tokens.
        scale: a finite number, or one per row [B, 1].
    Returns:
        [B, T] at least float32; 0 where masked.
    Raises:
        ValueError: shapes that differ; a scale that is NaN or infinite.
    """
    check_same_shape(task=task, length=length, mask=mask)
    if isinstance(scale, Tensor):
        if scale.shape not in ((), (task.shape[0], 1)):
            raise ValueError(
                f"scale must be a number or have shape [{task.shape[0]}, 1], "
                f"got {tuple(scale.shape)}: one scale per row"
            )
        if not scale.isfinite().all():
            raise ValueError(f"scale must be finite, got {scale.flatten().tolist()}")
    else:
        check_scale(scale)
    total = as_float(task, name="task") + scale * as_float(length, name="length")
    return torch.where(mask != 0, total, 0.0)


def check_scale(scale: float, *, name: str = "scale") -> float:
    """Return a finite `scale` as a float.

    Raises:
        ValueError: NaN, infinite or not a number.
    """
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale):
        raise ValueError(
            f"{name} must be a finite number, got {scale!r}: 0 leaves the length alone, above 0 "
            "shortens, below 0 lengthens"
        )
    return float(scale)
