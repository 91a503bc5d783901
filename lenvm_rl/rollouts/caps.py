"""What share of the answers would a limit on tokens cut, silently?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lenvm_rl.core import interval, resampled_means
from lenvm_rl.rollouts.record import Rollout


@dataclass(frozen=True)
class CutShare:
    """Share of completions that a limit cuts, over prompts."""

    max_tokens: int
    """The limit, EOS included."""
    prompts: int
    completions: int
    cut: float
    """Share longer than the limit, or truncated at all."""
    low: float
    """Lower end of its 95 % interval, by resampling prompts; NaN of one prompt."""
    high: float
    """Upper end."""
    prompts_cut: float
    """Share of prompts of which at least one completion is cut."""
    unknown: float
    """Share that a lower limit had truncated: they are counted as cut."""

    def sentence(self) -> str:
        """One line for people."""
        text = (
            f"a limit of {self.max_tokens:,} tokens cuts {self.cut:.1%} of the answers "
            f"(95 % interval {self.low:.1%} to {self.high:.1%}), of {self.prompts_cut:.1%} of the "
            "prompts"
        )
        if self.unknown:
            text += f"; {self.unknown:.1%} were truncated below it already and count as cut"
        return text

    def to_dict(self) -> dict[str, Any]:
        """All figures; ends that are not known are None."""
        return {key: None if x != x else x for key, x in asdict(self).items()}


def cut_share(rows: Iterable[Rollout], max_tokens: int, *, seed: int = 0) -> CutShare:
    """Count the completions that do not end within `max_tokens`; two numbers a prompt are kept.

    Args:
        rows: completions; a truncated one is longer than it is.
        max_tokens: limit on response tokens, EOS included, at least 1.
        seed: of the interval.
    Raises:
        ValueError: a limit that nothing meets, or no completion.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}: nothing would be said.")
    prompts: dict[str, list[int]] = {}
    unknown = 0
    for row in rows:
        counts = prompts.setdefault(row.prompt_id, [0, 0])
        counts[0] += row.length > max_tokens or row.truncated
        counts[1] += 1
        unknown += row.truncated and row.length < max_tokens
    if not prompts:
        raise ValueError("no completion to count: give a rollout file that is not empty.")
    cut, of = (torch.tensor(x, dtype=torch.float64) for x in zip(*prompts.values(), strict=True))
    low, high = share_interval((cut / of).tolist(), seed=seed, weights=of.tolist())
    completions = int(of.sum())
    return CutShare(
        max_tokens=max_tokens,
        prompts=len(prompts),
        completions=completions,
        cut=float(cut.sum()) / completions,
        low=low,
        high=high,
        prompts_cut=float((cut > 0).double().mean()),
        unknown=unknown / completions,
    )


def share_interval(
    shares: Sequence[float], *, seed: int = 0, weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """95 % interval of a mean share over prompts, by resampling them; NaN of one prompt.

    Args:
        shares: [P] in [0, 1], of each prompt.
        seed: of the draws.
        weights: [P] completions of each; None means equal.
    """
    if len(shares) < 2:
        return float("nan"), float("nan")
    x = torch.tensor(shares, dtype=torch.float64)
    w = torch.ones_like(x) if weights is None else torch.tensor(weights, dtype=torch.float64)
    return interval(resampled_means(x * w, w, seed=seed))
