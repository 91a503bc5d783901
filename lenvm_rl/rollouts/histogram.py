"""How are lengths distributed, exactly, without keeping them?

A length is a small integer, so counting how often each occurs keeps everything that order
statistics and moments need: memory follows the longest response (8 bytes per token of it), not the
number of rows.
"""

from __future__ import annotations

import numpy as np


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
