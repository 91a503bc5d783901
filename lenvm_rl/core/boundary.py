"""Length of the response to a prompt, and how well samples tell it.

Shapes: P prompts, G samples per prompt. The ground truth at the prompt boundary s_0 is the length
of the mean discounted length, not the mean length: the same average that the value is trained on
(LenVM eq. 13-15). It is itself an estimate from G samples, so its noise floor belongs beside
every mean relative error (MRE).
"""

import math

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_rank, check_same_shape
from lenvm_rl.core.values import check_gamma


def prompt_boundary_length(lengths: Tensor, *, gamma: float, mask: Tensor | None = None) -> Tensor:
    """Length of the mean discounted length of the samples of each prompt, L_GT.

        u(L) = 1 - gamma**L,   L_GT = ln(1 - mean u) / ln gamma = ln(mean gamma**L) / ln gamma

    taken as a log-sum-exp, so that long samples do not saturate.

    Args:
        lengths: [P, G] response lengths in tokens, EOS included.
        gamma: per-token discount in (0, 1).
        mask: [P, G], non-zero at samples that exist; all when None.
    Returns:
        [P] tokens, between the shortest and the mean sample; NaN for a prompt without samples.
    Reference: LenVM eq. 14.
    """
    check_rank(lengths, name="lengths", axes="PG")
    rate = -math.log(check_gamma(gamma))
    exists = torch.ones_like(lengths, dtype=torch.bool) if mask is None else mask != 0
    check_same_shape(lengths=lengths, mask=exists)
    log_discount = as_float(lengths, name="lengths").double() * -rate
    total = torch.logsumexp(log_discount.masked_fill(~exists, -math.inf), dim=1)
    boundary = (exists.sum(1).double().log() - total) / rate
    return torch.where(exists.any(1), boundary, math.nan).to(torch.float32)


def noise_floor(lengths: Tensor, *, gamma: float, mask: Tensor | None = None) -> float:
    """Mean relative error that sampling alone puts into L_GT.

        mean over prompts of |L_a - L_b| / L_GT / 2

    with L_a, L_b the `prompt_boundary_length` of every other sample: two halves of N / 2 samples
    differ by twice the error of N. The samples of a prompt must come in random order.

    Args:
        lengths: [P, G] response lengths in tokens.
        gamma: per-token discount in (0, 1).
        mask: [P, G], non-zero at samples that exist; all when None.
    Raises:
        ValueError: no prompt, or a prompt with fewer than two samples.
    """
    whole = prompt_boundary_length(lengths, gamma=gamma, mask=mask)
    exists = torch.ones_like(lengths, dtype=torch.bool) if mask is None else mask != 0
    fewest = int(exists.sum(1).min().item()) if lengths.shape[0] else 0
    if fewest < 2:
        raise ValueError(
            f"the noise floor needs two samples of every prompt, got {fewest} for the poorest of "
            f"{lengths.shape[0]}: sample more, or leave such prompts out"
        )
    is_odd = exists.cumsum(1) % 2 == 1
    half_a = prompt_boundary_length(lengths, gamma=gamma, mask=exists & is_odd)
    half_b = prompt_boundary_length(lengths, gamma=gamma, mask=exists & ~is_odd)
    return ((half_a - half_b).abs() / whole).mean().item() / 2


def noise_corrected_mre(mre: float, floor: float) -> float:
    """MRE with the noise of the ground truth taken out, `sqrt(max(0, mre**2 - floor**2))`.

    Args:
        mre: `metrics.mean_relative_error` against `prompt_boundary_length`, >= 0.
        floor: `noise_floor` of the same samples, >= 0.
    """
    if not (mre >= 0.0 and floor >= 0.0):
        raise ValueError(f"mre and floor must be >= 0, got {mre} and {floor}")
    return math.sqrt(max(0.0, mre * mre - floor * floor))
