"""A distribution of the remaining length: bins over log length, and everything read off them.

A head of K outputs o gives `p_b = softmax(o)_b`, the probability that the remaining length l lies
in bin b: 1 to 9 tokens singly, then bins spaced in log length. Inside a bin all whole lengths are
equally likely. The last bin is open: it takes every longer length, and is read as if it ended
where its last edge is; choose bins that reach beyond the longest response (`LengthBins.up_to`).

One gamma sees one moment of l: `1 + V_gamma = E[gamma**l]` is its Laplace transform at -ln gamma.
The bins give all of them, for any gamma chosen at use:

    u_gamma = sum_b p_b ubar_b,   ubar_b = 1 - gamma**e_b (1 - gamma**n_b) / (n_b (1 - gamma))

for a bin of n_b lengths from e_b on, the mean length (without the bias of an inverted mean value),
`P(l <= n)`, quantiles, and proper scores. The logit of u needs no u near 1:

    z_gamma = logsumexp_b(o_b + ln ubar_b) - logsumexp_b(o_b + ln(1 - ubar_b)),   u = sigmoid(z)

so whatever reads the z of a single-gamma head reads a distribution's as well (`core.values`).

Shapes: outputs [..., K]; results and lengths [...], at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_fraction, check_same_shape
from lenvm_rl.core.values import check_gamma, logit_to_u

SINGLE = 9
"""Lengths from 1 on that have a bin of their own."""
RATIO = 1.12
"""Of neighbouring edges beyond them: a length is known to about 6 %."""


@dataclass(frozen=True)
class LengthBins:
    """K bins of remaining lengths in tokens: bin b holds e_b <= l < e_{b+1}, the last one all
    l >= e_K. Hashable; `edges` is what a configuration stores.

    Args:
        edges: K + 1 rising whole numbers from 1 on; the last is where the open bin is read to end.
    Raises:
        ValueError: edges that do not rise from 1, or fewer than two bins.
    """

    edges: tuple[int, ...]

    def __post_init__(self) -> None:
        edges = tuple(int(e) for e in self.edges)
        object.__setattr__(self, "edges", edges)
        rising = all(a < b for a, b in zip(edges, edges[1:], strict=False))
        if len(edges) < 3 or edges[0] != 1 or not rising:
            raise ValueError(
                f"bins of lengths need at least three rising edges from 1 on, got {edges}: use "
                "LengthBins.up_to(longest) with the longest response in tokens."
            )

    @classmethod
    def up_to(cls, longest: float, *, ratio: float = RATIO) -> LengthBins:
        """Bins for lengths up to `longest` tokens, and the open one behind them.

        Args:
            longest: the longest response in tokens, >= 1.
            ratio: of neighbouring edges beyond the single lengths, > 1.
        """
        if not (1 <= longest < math.inf and ratio > 1):
            raise ValueError(
                f"bins need a longest response of at least 1 token and a ratio above 1, got "
                f"{longest} and {ratio}."
            )
        edges = list(range(1, SINGLE + 2))
        while edges[-1] <= longest:
            edges.append(max(edges[-1] + 1, round(edges[-1] * ratio)))
        return cls((*edges, max(edges[-1] + 1, round(edges[-1] * ratio))))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def index(self, lengths: Tensor) -> Tensor:
        """Bin of each length >= 1, int64."""
        inner = _starts(self, lengths.device)[1:]
        return torch.bucketize(as_float(lengths, name="lengths").double(), inner, right=True)

    def of(self, outputs: Tensor) -> LengthDistribution:
        """Read head outputs [..., K]."""
        return LengthDistribution(outputs, self)


@dataclass(frozen=True, eq=False)
class LengthDistribution:
    """What K head outputs say of the remaining length at every state.

    Args:
        outputs: [..., K] raw outputs o; any constant may be added.
        bins: their meaning.
    Raises:
        ValueError: another number of outputs than of bins.
    """

    outputs: Tensor
    bins: LengthBins

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", as_float(self.outputs, name="outputs"))
        if self.outputs.dim() == 0 or self.outputs.shape[-1] != len(self.bins):
            raise ValueError(
                f"{len(self.bins)} bins need as many outputs in the last dimension, got "
                f"{tuple(self.outputs.shape)}."
            )

    def __getitem__(self, which: Any) -> LengthDistribution:
        """The distributions at some of the states."""
        return LengthDistribution(self.outputs[which], self.bins)

    @property
    def probabilities(self) -> Tensor:
        """p_b [..., K], adding up to 1."""
        return self.outputs.softmax(-1)

    def logit(self, gamma: float) -> Tensor:
        """z with sigmoid(z) = u_gamma, for any gamma in (0, 1); exact far beyond where u is 1."""
        log_u, log_rest = _log_tables(self.bins, check_gamma(gamma), self.outputs.device)
        o = self.outputs
        return (o + log_u.to(o)).logsumexp(-1) - (o + log_rest.to(o)).logsumexp(-1)

    def u(self, gamma: float) -> Tensor:
        """Mean discounted length E[1 - gamma**l]."""
        return logit_to_u(self.logit(gamma))

    def mean(self) -> Tensor:
        """Mean length E[l] in tokens."""
        starts, counts = self._tables()
        return (self.probabilities * (starts + (counts - 1) / 2)).sum(-1)

    def at_most(self, n: Tensor | float) -> Tensor:
        """P(l <= n), linear in n inside a bin: n in tokens, a number or [...] of any sign."""
        starts, counts = self._tables()
        bound = as_float(n, name="n").to(starts)[..., None]
        share = ((bound - (starts - 1)) / counts).clamp(0.0, 1.0)
        return (self.probabilities * share).sum(-1)

    def longer_than(self, n: Tensor | float) -> Tensor:
        """P(l > n): for n the tokens that may still be written, the chance of being truncated."""
        return 1.0 - self.at_most(n)

    def quantile(self, level: float) -> Tensor:
        """The fewest whole tokens n with P(l <= n) >= level.

        Interpolated inside its bin, whose lengths are equally likely, and rounded up.

        Args:
            level: in [0, 1].
        """
        check_fraction(level, name="level")
        starts, counts = self._tables()
        p = self.probabilities.double()
        below = p.cumsum(-1)
        b = (below < level - 1e-9).sum(-1, keepdim=True).clamp(max=len(self.bins) - 1)
        mass = p.gather(-1, b)[..., 0]
        missing = level - (below.gather(-1, b)[..., 0] - mass)
        n, start = counts[b[..., 0]].double(), starts[b[..., 0]].double()
        inside = (missing / mass.clamp(min=1e-30) * n - 1e-6).ceil()
        return (start - 1 + torch.minimum(inside.clamp(min=1.0), n)).to(self.outputs.dtype)

    def pit(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """P(l < length) and P(l <= length): the step of the distribution at what happened.

        Calibrated: a number drawn evenly between the two is even in [0, 1] over many outcomes,
        whatever the distributions (randomised PIT).
        """
        x = as_float(lengths, name="lengths")
        return self.at_most(x - 1.0), self.at_most(x)

    def coverage(self, lengths: Tensor, share: float) -> Tensor:
        """`interval_coverage` of what happened, in [0, 1]."""
        low, high = (x.double() for x in self.pit(lengths))
        return interval_coverage(low, high, share).to(self.outputs.dtype)

    def nll(self, lengths: Tensor, censored: Tensor | None = None) -> Tensor:
        """Cross entropy of each state, with the exact likelihood of truncated completions.

            -ln p_b(l)                          where the length l is known
            -ln P(l > t)                        where it is only known to exceed t

        with the part of t's own bin that lies above t counted by its share of lengths; the open
        bin counts whole. Bins all of whose lengths are possible lose nothing: at t = 0 the second
        is 0.

        Args:
            lengths: [...] tokens; >= 1, or the bound t >= 0 where censored.
            censored: [...] bool; None means all lengths are known.
        """
        logp = self.outputs.log_softmax(-1)
        index = self.bins.index(lengths.clamp(min=1))
        known = -logp.gather(-1, index[..., None])[..., 0]
        if censored is None:
            return known
        starts, counts = self._tables()
        share = ((starts + counts - 1 - lengths.to(starts)[..., None]) / counts).clamp(0.0, 1.0)
        share = torch.cat([share[..., :-1], torch.ones_like(share[..., -1:])], dim=-1)
        return torch.where(censored, -(logp + share.log()).logsumexp(-1), known)

    def pinball(self, lengths: Tensor, level: float) -> Tensor:
        """Pinball loss of a quantile in tokens: `(level - 1{L < q}) (L - q)`, >= 0."""
        error = as_float(lengths, name="lengths") - self.quantile(level)
        return torch.maximum(level * error, (level - 1.0) * error)

    def crps(self, lengths: Tensor) -> Tensor:
        """Continuous ranked probability score in tokens: sum over n of (P(l <= n) - 1{L <= n})**2.

        The absolute error of a distribution that knows the length; smaller is better, and smallest
        on average for the true distribution. With F = c + s k at the k-th of a bin's n lengths,
        j of which are below L, a bin gives sum_k (1 - F)**2 + sum_{k <= j} (2 F - 1).
        """
        starts, n = (x.double() for x in self._tables())
        p = self.probabilities.double()
        before = p.cumsum(-1) - p
        a, s = 1.0 - before, p / n
        j = (as_float(lengths, name="lengths").double()[..., None] - starts).clamp(min=0.0)
        j = torch.minimum(j, n)
        above = n * a * a - a * s * n * (n + 1) + s * s * n * (n + 1) * (2 * n + 1) / 6
        below = j * (2.0 * before - 1.0) + s * j * (j + 1)
        return (above + below).sum(-1).to(self.outputs.dtype)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """First length and number of lengths of each bin, [K], in the dtype of the outputs."""
        starts = _starts(self.bins, self.outputs.device)
        counts = _counts(self.bins, self.outputs.device)
        return starts.to(self.outputs.dtype), counts.to(self.outputs.dtype)


def interval_coverage(low: Tensor, high: Tensor, share: float) -> Tensor:
    """How much of each outcome lies in the central interval of probability `share`, [0, 1].

    An interval of whole lengths rarely has exactly that probability: at its two ends a coin
    decides, and this is the mean over the coin, `|[low, high] n I| / (high - low)` with I =
    [(1 - share) / 2, (1 + share) / 2]. Its mean over outcomes is `share` where calibrated.

    Args:
        low: [...] P(l < L) of the outcome L, see `LengthDistribution.pit`.
        high: [...] P(l <= L).
        share: in [0, 1].
    """
    check_fraction(share, name="share")
    check_same_shape(low=low, high=high)
    inside = high.clamp(max=(1 + share) / 2) - low.clamp(min=(1 - share) / 2)
    width = high - low
    middle = ((low - 0.5).abs() <= share / 2).to(low.dtype)  # of a step of no width
    return torch.where(width > 1e-12, inside.clamp(min=0.0) / width.clamp(min=1e-12), middle)


def read_outputs(outputs: Tensor, *, bins: LengthBins | None, gamma: float | None) -> Tensor:
    """The value logit z of raw head outputs: themselves [...], or of K outputs [..., K] z_gamma.

    Args:
        bins: of a distribution; None means that the outputs are z already.
        gamma: what a distribution is read with.
    Raises:
        ValueError: a distribution without gamma.
    """
    if bins is None:
        return outputs
    if gamma is None:
        raise ValueError(
            "gamma is missing: a distribution of lengths has a value for every gamma in (0, 1). "
            "Give one, e.g. gamma=.997."
        )
    return bins.of(outputs).logit(gamma)


def bins_of(edges: Sequence[int] | None) -> LengthBins | None:
    """Bins of a configuration's edges; None where there are none."""
    return None if edges is None else LengthBins(tuple(edges))


@lru_cache(maxsize=64)
def _starts(bins: LengthBins, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(bins.edges[:-1], dtype=torch.float64, device=device)


@lru_cache(maxsize=64)
def _counts(bins: LengthBins, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(bins.edges, dtype=torch.float64, device=device).diff()


@lru_cache(maxsize=256)
def _log_tables(bins: LengthBins, gamma: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """ln ubar_b and ln(1 - ubar_b), [K] float64."""
    with torch.inference_mode(False):
        rate = math.log(gamma)
        start, n = _starts(bins, device), _counts(bins, device)
        log_rest = start * rate + torch.log(-torch.expm1(n * rate)) - torch.log(n)
        log_rest = log_rest - math.log(-math.expm1(rate))
        return torch.log(-torch.expm1(log_rest)), log_rest
