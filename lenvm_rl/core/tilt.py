"""Tilting of a distribution along the discounted length u, and how far for a given mean.

Shapes: R rows, K candidates, G grid points.

The tilt `p'(x) ~ p(x) exp(beta u(x))` is the distribution closest to p (in KL divergence) with
its mean of u, and that mean grows with beta from the smallest to the largest u. Every mean in
between is therefore reached by exactly one beta, which is found inside a bracket that is refined
a fixed number of times: no step depends on the data, so nothing waits for the device.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lenvm_rl.core.checks import check_rank, check_same_shape, per_row

_NO_FLOAT64 = frozenset({"mps"})
_GRID = 32  # G: points at which the mean is known after each refinement ...
_REFINEMENTS = 4  # ... each of which divides the bracket by G - 1
_CLOSE = 1e-7  # of the range: how near to its ends the bracket reaches


def working_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, otherwise float32."""
    return torch.float32 if device.type in _NO_FLOAT64 else torch.float64


def tilt(log_probs: Tensor, u: Tensor, beta: Tensor | float) -> Tensor:
    """Exponential tilt of a distribution over candidates.

        p'(x) = p(x) exp(beta u(x)) / sum_y p(y) exp(beta u(y))

    beta < 0 moves mass to small u (shorter), beta > 0 to large u (longer). (LenVM eq. 10 prints
    the value v = -u and calls beta < 0 shorter, which is a sign slip: its figure 2 and its code
    use u.)

    Args:
        log_probs: [R, K], -inf at what is no candidate; need not be normalised.
        u: [R, K] discounted lengths, unitless; anything where log_probs is -inf.
        beta: number or [R], finite. Rows at 0 are returned as they are, bit for bit.
    Returns:
        [R, K] normalised log-probabilities, the dtype of `log_probs`.
    """
    _check(log_probs, u=u)
    wide = working_dtype(log_probs.device)
    base = log_probs.to(wide)
    beta = per_row(beta, like=base, name="beta").to(wide)[:, None]
    support = log_probs > -torch.inf
    tilted = base + beta * u.to(wide)
    tilted = torch.log_softmax(tilted.masked_fill(~support, -torch.inf), dim=-1)
    return torch.where(beta == 0, log_probs, tilted.to(log_probs.dtype))


def tilt_to_mean(
    log_probs: Tensor,
    u: Tensor,
    target: Tensor | float,
    *,
    statistic: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The tilt along u under which the mean of `statistic` is `target`.

    Met to 1e-6 of the statistic's range (so to 1e-6 for u) wherever the target lies inside
    the range. Outside, the nearest reachable distribution: p restricted to the candidates with
    the smallest or largest statistic.

    Args:
        log_probs: [R, K]; need not be normalised. Candidates at -inf cannot be reached.
        u: [R, K] direction of the tilt.
        target: number or [R], the mean to reach; infinite ones are out of range.
        statistic: [R, K], a non-decreasing function of u within each row, such as the length;
            u itself when None.
        mask: [R, K] bool, True at candidates; all when None.
    Returns:
        log_probs: [R, K] normalised, -inf outside, the dtype of `log_probs`.
        beta: [R], float64 where the device has it; infinite where the target is out of range, 0
            where all u are equal (nothing can be tilted, p is returned).
    """
    statistic = u if statistic is None else statistic
    _check(log_probs, u=u, statistic=statistic)
    wide = working_dtype(log_probs.device)
    support = log_probs > -torch.inf if mask is None else mask & (log_probs > -torch.inf)
    base = torch.log_softmax(log_probs.to(wide).masked_fill(~support, -torch.inf), dim=-1)

    goal = per_row(target, like=base, name="target").to(wide)[:, None]
    direction = _Span.of(u.to(wide), support)
    measure = _Span.of(statistic.to(wide), support)
    share = ((goal - measure.low) / measure.width).clamp(0.0, 1.0)
    spread = -base.masked_fill(~support, 0.0).amin(-1, keepdim=True)
    inside, steepness = _solve(base, direction, measure.from_low, share, spread)

    longest = measure.from_high == 0
    at_end = torch.where(share >= 1, longest, measure.from_low == 0) & support
    end = torch.log_softmax(base.masked_fill(~at_end, -torch.inf), dim=-1)
    out_of_range = (share <= 0) | (share >= 1)
    is_point = ~direction.varies | ~measure.varies
    beta = torch.where(out_of_range, (share - 0.5) * math.inf, steepness / direction.width)
    result = torch.where(is_point, base, torch.where(out_of_range, end, inside))
    result = result.masked_fill(~support, -torch.inf).to(log_probs.dtype)
    return result, torch.where(is_point, 0.0, beta)[:, 0]


class _Span(NamedTuple):
    """A [R, K] quantity on the scale of its row, seen from either end: 0..1 and -1..0.

    Both differences keep their relative precision near the end that they start from, which is
    where a steep tilt looks. Outside the support both are 0.
    """

    low: Tensor  # [R, 1]
    width: Tensor  # [R, 1], 1 where nothing varies
    varies: Tensor  # [R, 1] bool
    from_low: Tensor  # [R, K]
    from_high: Tensor  # [R, K]

    @classmethod
    def of(cls, x: Tensor, support: Tensor) -> "_Span":
        low = x.masked_fill(~support, torch.inf).amin(-1, keepdim=True)
        high = x.masked_fill(~support, -torch.inf).amax(-1, keepdim=True)
        varies = high > low
        width = torch.where(varies, high - low, torch.ones_like(low))
        from_low = ((x - low) / width).masked_fill(~support, 0.0)
        from_high = ((x - high) / width).masked_fill(~support, 0.0)
        return cls(low, width, varies, from_low, from_high)


def _solve(
    base: Tensor, direction: _Span, measure: Tensor, share: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """log p' [R, K] with mean `share` [R, 1] of `measure` [R, K], and its b [R, 1] (beta * width).

    The bracket is [-B, B] with the mean within `_CLOSE` of its ends: a candidate further than
    that from the end keeps weight below K exp(spread - B _CLOSE), with `spread` [R, 1] the largest
    -log p. Its grid is even in asinh(b), so that b of any size has the same relative precision.
    What remains of the bracket is bridged by mixing the tilts at its two ends, which meets the
    mean to rounding however steep it is in between.
    """
    reach = torch.asinh((spread + math.log(base.shape[1] / _CLOSE)) / _CLOSE)
    low, high = -reach, reach
    for _ in range(_REFINEMENTS - 1):
        low, high, _, _ = _refine(low, high, base, direction, measure, share)
    low, high, mean, weights = _refine(low, high, base, direction, measure, share)

    gap = mean[:, 1:] - mean[:, :1]
    part = torch.where(gap > 0, (share - mean[:, :1]) / gap, 0.5).clamp(0.0, 1.0)
    mixed = torch.lerp(weights[..., 0], weights[..., 1], part)
    return mixed.log(), torch.sinh(torch.lerp(low, high, part))


def _refine(
    low: Tensor, high: Tensor, base: Tensor, direction: _Span, measure: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The grid cell [R, 1] x 2 that holds the root, with mean [R, 2] and p' [R, K, 2] there."""
    steps = torch.linspace(0.0, 1.0, _GRID, dtype=base.dtype, device=base.device)
    grid = torch.lerp(low, high, steps)  # [R, G]
    b = torch.sinh(grid)[:, None]
    # Relative to the end that the tilt favours: its candidates have exponents near 0.
    exponent = torch.addcmul(base[..., None], b.clamp(max=0.0), direction.from_low[..., None])
    exponent = torch.addcmul(exponent, b.clamp(min=0.0), direction.from_high[..., None])
    weights = torch.softmax(exponent, dim=1)  # [R, K, G]
    means = (weights * measure[..., None]).sum(1)
    above = (means < share).sum(-1, keepdim=True).clamp(1, _GRID - 1)
    ends = torch.cat([above - 1, above], dim=1)  # [R, 2]
    at_ends = weights.gather(2, ends[:, None].expand(-1, base.shape[1], -1))
    return grid.gather(1, ends[:, :1]), grid.gather(1, ends[:, 1:]), means.gather(1, ends), at_ends


def _check(log_probs: Tensor, **others: Tensor) -> None:
    check_rank(log_probs, name="log_probs", axes="RK")
    check_same_shape(log_probs=log_probs, **others)
