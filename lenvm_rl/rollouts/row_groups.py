"""Where does a row group end?

Row groups are what a reader decodes at a time, so they are bounded in tokens and in rows. They end
between prompts wherever the completions of a prompt are adjacent, so that a reader of whole groups
sees a prompt whole.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.columns import list_lengths, run_starts
from lenvm_rl.rollouts.record import SCHEMA

ROW_GROUP_TOKENS = 1 << 18
"""A row group is closed at this many tokens (1 MiB of ids) ..."""
ROW_GROUP_ROWS = 1024
"""... or at this many rows, whichever comes first."""


class RowGroupBuffer:
    """Rows on their way into row groups.

    Args:
        max_rows: bound on the rows of a group, below `ROW_GROUP_ROWS`.
    Attributes:
        rows: rows held back.
    """

    def __init__(self, max_rows: int) -> None:
        self.rows = 0
        self._max_rows = min(ROW_GROUP_ROWS, max_rows)
        self._batches: list[pa.RecordBatch] = []
        self._tokens = 0

    def add(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take rows in, and hand out the groups that are complete.

        The rows of the last prompt wait for its other completions, unless they fill a group alone.
        """
        self._hold(batch)
        if self._tokens >= ROW_GROUP_TOKENS or self.rows >= self._max_rows:
            return self._groups(everything=False)
        return []

    def drain(self) -> list[pa.RecordBatch]:
        """Hand out all rows that are left, in groups."""
        return self._groups(everything=True) if self._batches else []

    def _groups(self, *, everything: bool) -> list[pa.RecordBatch]:
        table = pa.Table.from_batches(self._batches, schema=SCHEMA).combine_chunks()
        batch = table.to_batches()[0]
        ends = np.cumsum(_row_tokens(batch))
        starts = run_starts(batch.column("prompt_id"))
        closed = batch.num_rows if everything else int(starts[-1])
        groups, done = [], 0
        while True:
            end = closed if closed > done else batch.num_rows
            if end == done or not (everything or self._full(ends[:end], done)):
                break
            cut = self._cut(ends[:end], starts, done)
            groups.append(batch.slice(done, cut - done))
            done = cut
        self._batches, self.rows, self._tokens = [], 0, 0
        if done < batch.num_rows:
            # A copy, so that what is left does not keep the whole concatenation alive.
            self._hold(batch.take(pa.array(np.arange(done, batch.num_rows))))
        return groups

    def _hold(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self.rows += batch.num_rows
        self._tokens += int(_row_tokens(batch).sum())

    def _full(self, ends: np.ndarray, done: int) -> bool:
        tokens = ends[-1] - (ends[done - 1] if done else 0)
        return tokens >= ROW_GROUP_TOKENS or len(ends) - done >= self._max_rows

    def _cut(self, ends: np.ndarray, starts: np.ndarray, done: int) -> int:
        """Row at which the group that begins at row `done` ends.

        Args:
            ends: cumulative tokens of the rows to be written, [N].
            starts: rows at which a new prompt begins, [R].
            done: rows already written.
        """
        before = ends[done - 1] if done else 0
        by_tokens = int(np.searchsorted(ends, before + ROW_GROUP_TOKENS)) + 1
        cut = min(max(by_tokens, done + 1), done + self._max_rows, len(ends))
        if cut == len(ends):
            return cut
        boundary = int(starts[np.searchsorted(starts, cut, side="right") - 1])
        # A prompt that alone overfills the group is split.
        return boundary if boundary > done else cut


def _row_tokens(batch: pa.RecordBatch) -> np.ndarray:
    return list_lengths(batch.column("prompt_ids")) + list_lengths(batch.column("response_ids"))
