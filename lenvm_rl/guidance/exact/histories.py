"""How do the slots of a step's rows come to hold their histories?

A history may be any number of tokens ahead of its slot: a new prompt, steps without guidance, a
preempted row. Few tokens are run beside the step itself; many are copied from another slot that
holds them, or run in passes of bounded size, once where several rows lack the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lenvm_rl.guidance.exact.attention import Pass, Segment
from lenvm_rl.guidance.exact.key_values import to_device
from lenvm_rl.guidance.exact.slots import common_prefix
from lenvm_rl.guidance.exact.trunk import CachedTrunk
from lenvm_rl.guidance.interface import History
from lenvm_rl.model import LengthValueModel

_WORTH_COPYING = 16  # shared tokens; for fewer, waiting for another row's prompt does not pay


@dataclass
class HistoryRow:
    """One row of a step, in the order of the slots."""

    index: int
    slot: int
    history: History
    missing: list[int] = field(default_factory=list)
    """Tokens of the history that the slot lacks."""


class HistoryTrunk(CachedTrunk):
    """A cached trunk whose slots catch up with the histories of their rows.

    Args:
        chunk_tokens: most tokens per pass over prompts; bounds the memory of activations.
        others: see `CachedTrunk`.
    Raises:
        ValueError: see `CachedTrunk`.
    """

    _inline_tokens = 16  # a row that lacks more of its history is caught up in passes of its own

    def __init__(self, model: LengthValueModel, *, chunk_tokens: int, **others: Any):
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}.")
        super().__init__(model, **others)
        self.chunk_tokens = chunk_tokens

    def _rows(self, slots: Sequence[int], histories: Sequence[History]) -> list[HistoryRow]:
        """The rows of a step by slot: neighbours in the store are read together."""
        rows = zip(slots, histories, strict=True)
        found = [HistoryRow(index, slot, history) for index, (slot, history) in enumerate(rows)]
        return sorted(found, key=lambda row: row.slot)

    def _read_histories(self, rows: list[HistoryRow]) -> None:
        for row in rows:
            row.missing = row.history.tail(int(self._table.lengths[row.slot]))
        self._check_ids(np.array([x for row in rows for x in row.missing], dtype=np.int64))

    def _catch_up(self, rows: list[HistoryRow], *, leave: int = 0) -> None:
        """Fill the slots of rows that lack much of their history: from other slots where those
        hold it, once where several rows lack the same, in passes of bounded size. The last
        `leave` tokens are left to the step itself."""
        if leave:
            kept = [row.missing[-leave:] for row in rows]
            for row in rows:
                row.missing = row.missing[:-leave]
            self._catch_up(rows)
            for row, last in zip(rows, kept, strict=True):
                row.missing += last
            return
        waiting = [row for row in rows if len(row.missing) > self._inline_tokens]
        tokens = {row.slot: self._wanted(row) for row in waiting}
        while waiting:
            first, later = [], []
            for row in waiting:
                self._copy_shared(row, tokens[row.slot])
                alone = len(tokens[row.slot]) - len(row.missing) + _WORTH_COPYING
                alike = any(
                    common_prefix(tokens[row.slot], tokens[other.slot]) >= alone for other in first
                )
                (later if alike else first).append(row)
            self._prefill([row for row in first if len(row.missing) > self._inline_tokens])
            waiting = later

    def _wanted(self, row: HistoryRow) -> np.ndarray:
        """The tokens that the slot shall hold: those it has and those that are missing."""
        size = int(self._table.lengths[row.slot]) + len(row.missing)
        return np.array(row.history.tail(0)[:size], dtype=np.int32)

    def _copy_shared(self, row: HistoryRow, tokens: np.ndarray) -> None:
        start = len(tokens) - len(row.missing)
        source, shared = self._table.longest_prefix(tokens, but=row.slot)
        if shared - start >= _WORTH_COPYING:
            self._store.copy(source, row.slot, start, shared)
            self._table.append(row.slot, tokens[start:shared])
            row.missing = tokens[shared:].tolist()
            self.stats.copied += shared - start

    def _prefill(self, rows: list[HistoryRow]) -> None:
        for pieces in self._chunks(rows):
            segments = [
                Segment(row.slot, int(self._table.lengths[row.slot]), len(piece), 0)
                for row, piece in pieces
            ]
            ids = np.concatenate([piece for _, piece in pieces])
            self._forward(to_device(ids, self.device), Pass(self._store, segments))
            for row, piece in pieces:
                self._table.append(row.slot, piece)
                row.missing = row.missing[len(piece) :]
            self.stats.prefilled += len(ids)

    def _chunks(self, rows: list[HistoryRow]) -> Iterator[list[tuple[HistoryRow, list[int]]]]:
        """What the rows lack, in pieces of at most `chunk_tokens` together, rows in order."""
        pieces, room = [], self.chunk_tokens
        for row in rows:
            start, missing = 0, row.missing
            while start < len(missing):
                piece = missing[start : start + room]
                pieces.append((row, piece))
                start += len(piece)
                room -= len(piece)
                if not room:
                    yield pieces
                    pieces, room = [], self.chunk_tokens
        if pieces:
            yield pieces
