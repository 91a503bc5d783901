"""Response lengths collected batch by batch: their distribution, exactly, and spread in prompts.

A length is a small integer, so counting how often each occurs keeps everything that order
statistics and moments need: memory follows the longest response (8 bytes per token of it), not the
number of rows. Completions of a prompt are taken together where they are adjacent in the file,
which needs no memory per prompt. Producers that append the completions of a prompt together get a
file in which all are; of a file in another order only adjacent ones count, `rows` says how many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.columns import run_starts


class LengthHistogram:
    """Counts of every length seen."""

    def __init__(self) -> None:
        self._counts = np.zeros(1024, dtype=np.int64)

    @classmethod
    def sum_of(cls, *parts: LengthHistogram) -> LengthHistogram:
        """All lengths of several histograms."""
        total = cls()
        for part in parts:
            total._add_counts(part.counts)
        return total

    def add(self, lengths: np.ndarray) -> None:
        """Count lengths in tokens, [N] integers >= 0."""
        if len(lengths):
            self._add_counts(np.bincount(lengths))

    @property
    def counts(self) -> np.ndarray:
        """How often each length occurs, [longest + 1] int64."""
        seen = np.flatnonzero(self._counts)
        return self._counts[: seen[-1] + 1 if len(seen) else 0]

    @property
    def rows(self) -> int:
        """Number of lengths counted."""
        return int(self._counts.sum())

    @property
    def tokens(self) -> int:
        """Sum of all lengths."""
        return int(self.counts @ np.arange(len(self.counts)))

    @property
    def min(self) -> int:
        """Shortest length."""
        return int(np.flatnonzero(self._counts)[0])

    @property
    def max(self) -> int:
        """Longest length."""
        return len(self.counts) - 1

    @property
    def mean(self) -> float:
        """Mean length in tokens."""
        return self.tokens / self.rows

    @property
    def std(self) -> float:
        """Population standard deviation in tokens."""
        distance = np.arange(len(self.counts)) - self.mean
        return float(np.sqrt((self.counts @ distance**2) / self.rows))

    def percentile(self, q: float) -> float:
        """The q-th percentile, 0 <= q <= 100, as `numpy.percentile` (linear) of all lengths."""
        rank = (self.rows - 1) * q / 100.0
        low, high = int(np.floor(rank)), int(np.ceil(rank))
        ends = np.cumsum(self.counts)
        below, above = np.searchsorted(ends, [low, high], side="right").tolist()
        return below + (above - below) * (rank - low)

    def _add_counts(self, counts: np.ndarray) -> None:
        if len(counts) > len(self._counts):
            grown = np.zeros(max(len(counts), 2 * len(self._counts)), dtype=np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        self._counts[: len(counts)] += counts


@dataclass(frozen=True)
class WithinPrompt:
    """Spread of response lengths between completions of the same prompt."""

    prompts: int
    """Runs of at least two adjacent completions of one prompt."""
    rows: int
    """Completions in those runs."""
    std: float
    """sqrt(mean over prompts of the sample variance) in tokens. Variances have no bias, so this
    does not depend on how many completions a prompt has; a mean of deviations would."""
    relative_std: float
    """std / sqrt(mean over prompts of the squared mean length, its sampling variance taken out),
    unitless."""


class AdjacentRuns:
    """Collect the spread of lengths over runs of equal `prompt_id`, batch by batch."""

    def __init__(self) -> None:
        self._open_id: str | None = None
        self._open = np.zeros((3, 1))
        self._prompts = self._rows = 0
        self._variance = self._squared_mean = 0.0

    def add(self, prompt_id: pa.Array, lengths: np.ndarray) -> None:
        """Add the next rows of the file.

        Args:
            prompt_id: strings, [N], N >= 1.
            lengths: response lengths in tokens, [N].
        """
        starts = run_starts(prompt_id)
        counts = np.diff(np.append(starts, len(lengths)))
        x = lengths.astype(np.float64)
        sums = np.stack([counts, np.add.reduceat(x, starts), np.add.reduceat(x * x, starts)])
        if prompt_id[0].as_py() == self._open_id:
            sums[:, 0] += self._open[:, 0]
        else:
            self._count(self._open)
        self._count(sums[:, :-1])
        self._open, self._open_id = sums[:, -1:], prompt_id[len(lengths) - 1].as_py()

    def result(self) -> WithinPrompt | None:
        """The spread so far; None when no prompt has two adjacent completions. Call it once."""
        self._count(self._open)
        self._open_id, self._open = None, np.zeros((3, 1))
        if not self._prompts:
            return None
        return WithinPrompt(
            prompts=self._prompts,
            rows=self._rows,
            std=(self._variance / self._prompts) ** 0.5,
            relative_std=(self._variance / self._squared_mean) ** 0.5
            if self._squared_mean > 0
            else float("nan"),
        )

    def _count(self, sums: np.ndarray) -> None:
        """Take in closed runs: rows, sum and sum of squares, [3, R]."""
        n, total, squares = sums[:, sums[0] >= 2]
        mean = total / n
        variance = np.maximum(squares - total * mean, 0.0) / (n - 1)
        self._prompts += len(n)
        self._rows += int(n.sum())
        self._variance += float(variance.sum())
        self._squared_mean += float((mean * mean - variance / n).sum())
