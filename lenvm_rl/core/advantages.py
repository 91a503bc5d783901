"""Length advantage of each token, and how it joins a task advantage.

Objective form of length-aware RL (LenVM appendix C, eq. 19-27):

    A_total = A_task + scale * A_len,     A_len = GAE over r = -(1 - gamma) with LenVM as baseline

A_len has its own gamma (the checkpoint's) and its own lambda, and is never whitened together with
the task advantage: whitening the sum would let one term set the unit of the other. scale > 0
shortens, scale < 0 lengthens.

In all answers, lambda = 1 is unbiased however stale the values are (V is a baseline of the state,
and drops out) and carries the noise of the whole future; lambda -> 0 credits this one token, with
the bias of the values. Stale values still cost: what they are off by moves every token's advantage
the same way (`recalibration`). In correct answers alone a baseline does not drop out, and the
values have to be those of correct answers (`correct_answers`).

Shapes: B sequences, T response positions; position t is the state s_t before token t, as in
`returns`. Masked positions may lie anywhere; their content never matters.
"""

import math

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_choice
from lenvm_rl.core.meeting import ALONE, Meeting
from lenvm_rl.core.returns import gae, length_rewards
from lenvm_rl.core.rows import Rows
from lenvm_rl.core.truncated import check_finished
from lenvm_rl.core.values import check_gamma

NORMALISATIONS = ("none", "batch_std")

_FLAT = 1e-6  # a spread below this, or this share of the largest entry, is round-off, not signal
REACH = 0.3
"""alpha of `lam_for_length`: 1 / (1 - lambda) tokens as a share of the mean length."""


def length_advantage(
    values: Tensor,
    response_mask: Tensor | Rows,
    finished: Tensor,
    *,
    gamma: float,
    lam: float,
    end_value: Tensor | None = None,
) -> Tensor:
    """Generalised advantage of every token for the length reward, not whitened.

        delta_t = -(1 - gamma) + gamma V_{t+1} - V_t,     A_t = sum_k (gamma lam)**k delta_{t+k}

    After EOS, V_L = 0. A completion truncated by the token limit did not end: V_L is `end_value`
    where given, else what Bellman's equation asks of its last state, so that its last delta is 0:

        V_L = clip((V_{L-1} + (1 - gamma)) / gamma, -1, 0)

    With the true values of a certain length A is 0 everywhere; in general
    `A_t(lam=1) = G_t - V_t` and `sum_t gamma**t A_t(lam=0) = G_0 - V_0`.

    Args:
        values: [B, T], V(s_t) in [-1, 0].
        response_mask: [B, T], non-zero at generated tokens.
        finished: [B] bool, True where the completion ended by itself (EOS).
        gamma: per-token discount in (0, 1), the one the values were trained with.
        lam: in [0, 1].
        end_value: [B], V after the last generated token, read in truncated rows alone.
    Returns:
        [B, T] at least float32, in [-1, 1]; 0 where masked.
    Raises:
        ValueError: illegal gamma or lam; shapes that differ.
    Reference: LenVM eq. 19-25.
    """
    rows = Rows.of(response_mask, name="response_mask", values=values)
    v = rows.pack(as_float(values, name="values"))
    is_finished = check_finished(finished, rows)
    if end_value is None:
        end = ((rows.ends(v) + (1.0 - check_gamma(gamma))) / gamma).clamp(-1.0, 0.0)
    else:
        end = rows.per_row(end_value, name="end_value")
    bootstrap = torch.where(is_finished, 0.0, end)
    flat = rows.flat
    rewards = length_rewards(flat, gamma=gamma).to(v.dtype)
    return rows.unpack(gae(rewards, v, flat, gamma=gamma, lam=lam, bootstrap_value=bootstrap))


def lam_for_length(mean_length: float, *, alpha: float = REACH) -> float:
    """The lambda whose credit reaches a fixed share of a response.

        lambda = 1 - 1 / (alpha * mean length),     at least 0

    A fixed lambda does not carry over: credit reaches 1 / (1 - gamma lambda) tokens, which at .95
    is at most 20, a quarter of a response of 70 tokens and .25 % of one of 8,000. At alpha = .3 and
    a gamma chosen by the 99th percentile of the lengths (here 5.6 times their mean) it is 24 % of
    a response, at 70 tokens (lambda .952) as at 8,000 (.9996).

    Args:
        mean_length: tokens, > 0, of the completions that get the term.
        alpha: > 0.
    Returns:
        In [0, 1).
    Raises:
        ValueError: a length or an alpha that is not positive.
    Reference: length-adaptive GAE of VAPO (arXiv 2504.05118), there per response.
    """
    if not 0.0 < mean_length < math.inf or not 0.0 < alpha < math.inf:
        raise ValueError(
            f"mean_length and alpha must be positive numbers, got {mean_length} and {alpha}"
        )
    return max(0.0, 1.0 - 1.0 / (alpha * mean_length))


def normalise_advantage(
    advantage: Tensor,
    mask: Tensor | Rows,
    *,
    how: str = "none",
    counted: Tensor | None = None,
    meet: Meeting = ALONE,
) -> Tensor:
    """Bring a length advantage to a unit of its own, without moving its zero.

        none        as it is
        batch_std   divided by the standard deviation over the tokens of the batch, not centred:
                    centring would reward every token of a batch that is too long

    A batch without spread (up to the round-off of values in [-1, 0]) is returned as it is.

    Args:
        advantage: [B, T].
        mask: [B, T], non-zero at generated tokens.
        how: one of `NORMALISATIONS`.
        counted: [B] bool, rows that decide the unit and get a term; None: all. Others get 0.
        meet: with the workers that hold the other rows of the batch.
    Returns:
        [B, T] at least float32; 0 where masked.
    """
    check_choice(how, name="normalise", known=NORMALISATIONS)
    rows = Rows.of(mask, advantage=advantage)
    a = rows.pack(as_float(advantage, name="advantage"))
    if counted is not None:
        a = torch.where(rows.spread(counted), a, 0.0)
    return rows.unpack(a if how == "none" else _in_own_unit(a, rows, counted, meet))


def _in_own_unit(a: Tensor, rows: Rows, counted: Tensor | None, meet: Meeting) -> Tensor:
    """[N] in units of its standard deviation over the rows that count, where `a` is not 0."""
    lengths = rows.lengths if counted is None else rows.lengths * counted
    tokens, total = meet.sum(torch.stack([lengths.sum().double(), a.sum(dtype=torch.float64)]))
    if not tokens:
        return a
    off = a.double() - total / tokens
    if counted is not None:
        off = torch.where(rows.spread(counted), off, 0.0)
    std = (meet.sum(off.square().sum()) / tokens).sqrt()
    largest = meet.max(a.abs().max().double() if len(a) else tokens.new_zeros(()))
    if std <= _FLAT * largest.clamp(min=1.0):  # advantages are of size 1 at most
        return a
    return (a / std).to(a.dtype)


def combine(task: Tensor, length: Tensor, mask: Tensor | Rows, *, scale: Tensor | float) -> Tensor:
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
    rows = Rows.of(mask, task=task, length=length)
    if isinstance(scale, Tensor):
        count = len(rows.lengths)
        if scale.shape not in ((), (count, 1)):
            raise ValueError(
                f"scale must be a number or have shape [{count}, 1], "
                f"got {tuple(scale.shape)}: one scale per row"
            )
        if not scale.isfinite().all():
            raise ValueError(f"scale must be finite, got {scale.flatten().tolist()}")
        scale = scale if scale.dim() == 0 else rows.spread(scale[:, 0])
    else:
        check_scale(scale)
    total = rows.pack(as_float(task, name="task"))
    return rows.unpack(total + scale * rows.pack(as_float(length, name="length")))


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
