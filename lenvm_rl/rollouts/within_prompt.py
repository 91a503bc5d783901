"""How much do the lengths of one prompt's completions differ?

Completions of a prompt are taken together where they are adjacent in the file, which needs no
memory per prompt. Producers that append the completions of a prompt together get a file in which
all are adjacent; of a file in another order only the adjacent ones count, `rows` says how many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.columns import run_starts


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
