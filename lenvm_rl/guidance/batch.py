"""What is known of a step's steered requests before its logits are read, as tensors?

Most steps steer the same requests as the step before: what they ask for is turned into tensors
once, and only the number of tokens generated is new.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.core import RowNumbers, forbids_eos
from lenvm_rl.guidance.exact.key_values import to_device
from lenvm_rl.guidance.rows import GuidedRow, ends_of, numbers_of
from lenvm_rl.guidance.settings import TARGET_MODES


class Batch:
    """Requests that are steered together; R rows.

    Args:
        rows: of the first such step.
        device: of the logits.
        max_candidates: most candidates of a row.
        ends: tokens that end the response of rows that name none.
        size: tokens that the policy chooses among.
    """

    def __init__(
        self,
        rows: Sequence[GuidedRow],
        device: torch.device,
        *,
        max_candidates: int,
        ends: Collection[int],
        size: int,
    ):
        self.device = device
        self.size = size
        self._names = _names(rows)
        asked = [row.settings for row in rows]
        table = numbers_of(rows, device)
        self.mode = table["mode"].long()
        self.ends = to_device(ends_of(rows, ends, size), device)
        """[R, E] tokens that end each row's response, see `rows.ends_of`."""
        own_ends = np.array([row.own_ends for row in rows])
        self._own_ends = to_device(own_ends, device) if own_ends.any() else None
        self.present = {s.mode for s in asked}
        """Modes that occur."""
        self.has_targets = not self.present.isdisjoint(TARGET_MODES)
        self.numbers = {name: table[name] for name in RowNumbers._fields}
        """What the modes read, [R] each; `generated` is that of the newest step."""
        limits = [s.top_k if s.top_k > 0 else max_candidates for s in asked]
        self.width = min(max(limits), max_candidates)
        """Columns that the row with the most candidates needs."""
        self.limits = _limits(table, rows, narrower=min(limits) < self.width)
        """Keyword arguments of `select_candidates`; what changes nothing is left out."""
        self.min_entropy = table["min_entropy"] if any(s.min_entropy > 0 for s in asked) else None
        temperature = self.limits.get("temperature")
        self.scale: Tensor | None = None
        """[R, 1] what log-probabilities are written times; None is 1."""
        if temperature is not None:
            self.scale = torch.where(temperature > 0, temperature, 1.0).float()[:, None]
        self._place = [row.index for row in rows]
        first = self._place[0]
        self._adjacent = self._place == list(range(first, first + len(rows)))
        self._index = to_device(np.array(self._place), device)

    def is_of(self, rows: Sequence[GuidedRow], device: torch.device, size: int) -> bool:
        """Whether these are the requests, in these rows of the logits."""
        return (self.device, self.size) == (device, size) and self._names == _names(rows)

    def take(self, logits: Tensor) -> Tensor:
        """[R, V] the rows of `logits` (or of anything with a row for each of theirs): themselves
        where they lie together, else a copy."""
        if self._adjacent:
            return logits[self._place[0] : self._place[0] + len(self._place)]
        return logits.index_select(0, self._index)

    def put(self, logits: Tensor, taken: Tensor) -> None:
        """Write what `take` gave back to where it was taken from."""
        if not self._adjacent:
            logits.index_copy_(0, self._index, taken)

    def fill(self, logits: Tensor, value: float) -> None:
        """Set these rows of `logits`, whole."""
        if self._adjacent:
            self.take(logits).fill_(value)
        else:
            logits.index_fill_(0, self._index, value)

    def begin_step(self, rows: Sequence[GuidedRow]) -> Tensor | None:
        """Take over how far the rows are. Returns [R] bool, those whose tokens are used up; None
        where there is none."""
        if not self.has_targets:
            return None
        wide = self.numbers["generated"].dtype
        generated = to_device(np.array([row.generated for row in rows]), self.device)
        self.numbers["generated"] = generated.to(wide)
        used_up = np.array([row.used_up for row in rows])
        return to_device(used_up, self.device) if used_up.any() else None

    def is_end(self, ids: Tensor) -> Tensor:
        """[R, K] bool: candidates [R, K] that end their row's response."""
        if self.ends.shape[1] == 1:
            return ids == self.ends
        return (ids[:, :, None] == self.ends[:, None]).any(-1)

    def forbidden(self) -> Tensor | None:
        """[R] bool, rows that may not end yet; None where no mode says so."""
        if "at_least" not in self.present and self._own_ends is None:
            return None
        n = self.numbers
        forbids = forbids_eos(
            self.mode,
            n["generated"],
            n["target"],
            count_eos=n["count_eos"],
            own_ends=False if self._own_ends is None else self._own_ends,
        )
        return forbids & (self.ends[:, 0] >= 0)


def _names(rows: Sequence[GuidedRow]) -> list[tuple]:
    return [
        (row.index, row.key, row.settings, row.temperature, row.ends, row.own_ends) for row in rows
    ]


def _limits(
    table: dict[str, Tensor], rows: Sequence[GuidedRow], *, narrower: bool
) -> dict[str, Tensor]:
    limits, asked = {}, [row.settings for row in rows]
    has_top_p = any(s.top_p < 1 for s in asked)
    if any(row.temperature not in (0, 1) for row in rows):
        limits["temperature"] = table["temperature"]
    if narrower or has_top_p:  # the mass of top-p is counted among the top k
        limits["top_k"] = table["top_k"].long()
    if has_top_p:
        limits["top_p"] = table["top_p"]
    if any(s.min_p > 0 for s in asked):
        limits["min_p"] = table["min_p"]
    return limits
