"""Keys by which a scheduler ranks requests, of the predicted distribution of their length.

Who has the smallest key runs first. The mean and quantiles are those of `LengthDistribution`; here
are the two that need the whole distribution:

    tail-inflated     E[l] + weight * E[l | l is among the longest 1 - level]
    expectation       Two requests of one mean are told apart by their tails. TIE (arXiv
                      2604.00499) has level .9 and a weight of .1 to .5 that grows with the queue,
                      on a log-t distribution; here it is read off the bins.

    Gittins index     min over D > t of   E[min(l, D) - min(l, t)] / P(t < l <= D)
                      of a request that has written t tokens: the fewest tokens to spend per
                      request that ends. With one server, Poisson arrivals and preemption that costs
                      nothing the order by it has the least mean latency that a distribution can
                      buy (Gittins 1979; Aalto et al. 2009); a sure length gives back shortest
                      remaining time first. D runs over the ends of the bins.

Shapes: as in `distribution`, outputs [..., K], results [...].
"""

from __future__ import annotations

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float
from lenvm_rl.core.distribution import LengthBins, LengthDistribution

TAIL = 0.9
"""Level of TIE's tail."""
TAIL_WEIGHT = 0.5
"""TIE's weight of the tail with five waiting requests or more per slot."""


def tail_mean(distribution: LengthDistribution, level: float = TAIL) -> Tensor:
    """Mean of the longest 1 - level of the lengths, in tokens (conditional value at risk).

    The bin in which the level falls counts with the part of its probability above it.

    Args:
        distribution: at every state.
        level: share below the tail, in [0, 1).
    """
    if not 0 <= level < 1:
        raise ValueError(f"level must be in [0, 1), got {level}: the tail is what lies above it.")
    starts, ends = _first_and_last(distribution.bins, distribution.outputs)
    p = distribution.probabilities.double()
    above = (p.cumsum(-1) - level).clamp(min=0.0).minimum(p)
    # of n equally likely lengths the upper part `above / p` counts
    counted = (ends - starts + 1) * above / p.clamp(min=1e-30)
    middle = torch.minimum(ends + (1 - counted) / 2, ends)
    return ((above * middle).sum(-1) / above.sum(-1)).to(distribution.outputs.dtype)


def tail_inflated(
    distribution: LengthDistribution, *, level: float = TAIL, weight: float = TAIL_WEIGHT
) -> Tensor:
    """Tail-inflated expectation in tokens.

    Args:
        distribution: at every state.
        level: share below the tail, in [0, 1).
        weight: of the tail's mean, at least 0.
    """
    return distribution.mean() + weight * tail_mean(distribution, level)


def gittins(distribution: LengthDistribution, attained: Tensor | float = 0.0) -> Tensor:
    """Gittins index in tokens; infinite where nothing is expected to be left.

    Args:
        distribution: of the whole length, known before the first token; or of what remains, known
            at every token, with `attained` 0.
        attained: [...] or one number: tokens written since the distribution was predicted, t >= 0.
    """
    bins, outputs = distribution.bins, distribution.outputs
    t = as_float(attained, name="attained").to(outputs)
    t = t.expand(outputs.shape[:-1])[..., None].double()
    starts, ends = _first_and_last(bins, outputs)
    p = distribution.probabilities.double()[..., None, :]
    stops = torch.cat([t.expand(*outputs.shape[:-1], 1), ends.expand(outputs.shape)], dim=-1)
    # [..., K + 1, K]: at most D, and min(l, D), of every bin
    n = (stops[..., None].clamp(min=starts - 1).minimum(ends) - (starts - 1)).floor()
    share = n / (ends - starts + 1)
    mean_below = starts + (n - 1) / 2
    spent = (p * (share * mean_below + (1 - share) * stops[..., None])).sum(-1)
    done = (p * share).sum(-1)
    ratio = (spent[..., 1:] - spent[..., :1]) / (done[..., 1:] - done[..., :1])
    possible = (stops[..., 1:] > t) & (done[..., 1:] - done[..., :1] > 1e-9)
    return torch.where(possible, ratio, torch.inf).min(-1).values.to(outputs.dtype)


def _first_and_last(bins: LengthBins, like: Tensor) -> tuple[Tensor, Tensor]:
    """First and last length of each bin, [K] float64."""
    edges = torch.tensor(bins.edges, dtype=torch.float64, device=like.device)
    return edges[:-1], edges[1:] - 1
