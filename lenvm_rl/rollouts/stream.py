"""Rollouts as training visits them: shuffled, for many epochs, and resumed to the row.

Every epoch permutes all row groups of the file, reads them in windows of about `window_rows` rows,
and permutes the rows of a window. Memory is one window, whatever the file's size. The position is
three integers, so a run that was killed in the middle of an epoch continues with the very next row
after reading a single window again.

Shuffle quality. Rows of one row group (by default at most 1,024 rows or 262,144 tokens, so about
1024/G prompts with G completions each) always share a window; which groups share one changes each
epoch. In a batch of B rows from a window of W rows, a completion meets on average (G - 1) * B / W
others of its own prompt: with G = 16, B = 1,024 and the default W = 16,384, about one. A global
shuffle would have almost none; `grouped=True` has all G - 1 (the ablation of LenVM section 5.2, in
which such batches train worse). A larger window costs memory only.

Of what is at hand in libraries, `datasets` mapped into memory under torchdata's StatefulDataLoader
resumes as exactly at the same CPU time, but copies every file to Arrow first (twice its size), and
streamed with a shuffle buffer it is neither exact nor flat in memory (`scripts.bench stream`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.reader import RolloutReader, check_columns
from lenvm_rl.rollouts.record import Rollout, batch_to_dicts, check_all_generated

CORE_COLUMNS = (
    *("prompt_id", "sample_id", "prompt_ids", "response_ids", "finish_reason", "loss_mask"),
    "pictures",
)
"""Columns that the stream always loads."""
_BLOCK = 128
"""Rows turned into Python objects at a time."""


class RolloutStream:
    """Iterate over shuffled rollouts, epoch after epoch.

        stream = RolloutStream("runs/rollouts", seed=0)
        while rows := stream.batch(1024):
            train(rows)
            save(stream.state_dict())

    Args:
        path: rollout file or directory.
        seed: fixes the order of every epoch.
        epoch: number of the first epoch.
        epochs: how many epochs to run; None runs for ever.
        window_rows: rows shuffled together; sets memory and shuffle quality (see the module).
        window_bytes: cap on a window's uncompressed size, for files of very long rows.
        grouped: keep the completions of a prompt together (those in one window: all of them, when
            they are adjacent in the file) and shuffle prompts.
        columns: columns to load besides `CORE_COLUMNS`; None loads all. A field that is not loaded
            holds the default of `Rollout`.
        prompt_filter: given the prompt's token ids; rows whose prompt it refuses are skipped, and
            counted in `skipped`.
        tokenizer_sha: fingerprint the file must have; None accepts any.
    Attributes:
        reader: the `RolloutReader` below (metadata, number of rows).
        skipped: rows refused by `prompt_filter` since the stream was made or loaded.
    Raises:
        ValueError: as `RolloutReader`; `window_rows` or `epochs` below 1; while reading, a row with
            context tokens in its response, see `check_all_generated`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        seed: int = 0,
        epoch: int = 0,
        epochs: int | None = None,
        window_rows: int = 16_384,
        window_bytes: int = 256 << 20,
        grouped: bool = False,
        columns: Sequence[str] | None = None,
        prompt_filter: Callable[[list[int]], bool] | None = None,
        tokenizer_sha: str | None = None,
    ) -> None:
        for name, value in (("window_rows", window_rows), ("window_bytes", window_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be at least 1 or None for endless, got {epochs}.")
        self.reader = RolloutReader(path, tokenizer_sha=tokenizer_sha)
        extra = [name for name in check_columns(columns) if name not in CORE_COLUMNS]
        self.skipped = 0
        self._columns = [*CORE_COLUMNS, *extra]
        self._seed, self._grouped, self._filter = seed, grouped, prompt_filter
        self._window_rows, self._window_bytes = window_rows, window_bytes
        self._epoch = self._first_epoch = epoch
        self._epochs = epochs
        self._window = self._offset = 0
        self._refused = 0  # rows refused in a row
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None
        self._rows: Iterator[Rollout | None] | None = None
        largest = int(self.reader.row_groups.bytes.max())
        if largest > window_bytes:
            warnings.warn(
                f"{path} has a row group of {largest >> 20} MiB, above window_bytes: memory "
                "follows it. Rewrite the file with RolloutWriter, whose row groups are small.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Rows in an epoch, those that `prompt_filter` skips included."""
        return len(self.reader)

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next row belongs to."""
        return self._epoch

    def __iter__(self) -> Iterator[Rollout]:
        """Rows from the current position on, to the end of the last epoch."""
        while (row := self._next()) is not None:
            yield row

    def batch(self, size: int) -> list[Rollout]:
        """The next `size` rows, across the border of an epoch if need be.

        Shorter only at the end of the last epoch, and empty after it.
        """
        if size < 1:
            raise ValueError(f"a batch has at least 1 row, got size {size}.")
        rows: list[Rollout] = []
        while len(rows) < size and (row := self._next()) is not None:
            rows.append(row)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Position of the next row, as JSON-able values."""
        return {
            "epoch": self._epoch,
            "window": self._window,
            "offset": self._offset,
            "order": self._order(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position; reads one window, not the rows that were already seen.

        Raises:
            ValueError: the file, seed, window or grouping differ from those of the saved stream.
        """
        mine = self._order()
        for key, saved in state["order"].items():
            if mine[key] != saved:
                raise ValueError(
                    f"cannot resume: the stream was saved with {key} {saved}, this one has "
                    f"{mine[key]}, so its rows come in another order. Use the same file and "
                    "settings, or start a new run."
                )
        self._epoch, self._window, self._offset = state["epoch"], state["window"], state["offset"]
        self._plan = self._rows = None
        self.skipped = self._refused = 0

    # Position: (epoch, window, offset) always names the row that comes next.

    def _next(self) -> Rollout | None:
        while not self._finished():
            if self._rows is None:
                self._rows = self._window_rows_from(self._offset)
            try:
                row = next(self._rows)
            except StopIteration:
                self._advance()
                continue
            self._offset += 1
            if row is not None:
                self._refused = 0
                return row
            self.skipped += 1
            self._refused += 1
        return None

    def _finished(self) -> bool:
        return self._epochs is not None and self._epoch >= self._first_epoch + self._epochs

    def _advance(self) -> None:
        self._rows = None
        self._window, self._offset = self._window + 1, 0
        if self._window >= len(self._epoch_plan()[1]) - 1:
            if self._refused >= len(self):
                raise ValueError(
                    f"prompt_filter refused every row of {self.reader.path} ({len(self)} rows): "
                    "nothing is left to train on. Check its limit."
                )
            self._epoch, self._window = self._epoch + 1, 0

    def _epoch_plan(self) -> tuple[np.ndarray, np.ndarray]:
        """Visiting order of the row groups, [R], and bounds of the windows in it, [W + 1]."""
        if self._plan is None or self._plan[0] != self._epoch:
            groups = self.reader.row_groups
            order = shuffled(len(groups.rows), self._seed, self._epoch)
            bounds = windows(
                groups.rows[order],
                groups.bytes[order],
                max_rows=self._window_rows,
                max_bytes=self._window_bytes,
            )
            self._plan = (self._epoch, order, bounds)
        return self._plan[1:]

    def _window_rows_from(self, offset: int) -> Iterator[Rollout | None]:
        """Rows of the current window from `offset` on; None stands for a refused row."""
        order, bounds = self._epoch_plan()
        groups = order[bounds[self._window] : bounds[self._window + 1]]
        table = self.reader.read_groups(groups, self._columns).combine_chunks()
        stream = (self._seed, self._epoch, 1 + self._window)
        if self._grouped:
            keys = table.column("prompt_id").combine_chunks().dictionary_encode().indices.to_numpy()
            rows = by_group(keys, *stream)
        else:
            rows = shuffled(table.num_rows, *stream)
        for start in range(offset, len(rows), _BLOCK):
            block = table.take(pa.array(rows[start : start + _BLOCK])).combine_chunks()
            for cells in batch_to_dicts(block.to_batches()[0]):
                row = self.reader.with_media(Rollout(**cells))
                check_all_generated(row)
                yield row if self._filter is None or self._filter(row.prompt_ids) else None

    def _order(self) -> dict[str, Any]:
        """All that fixes the order of the rows."""
        layout = blake2b(self.reader.row_groups.rows.astype("<i8").tobytes(), digest_size=8)
        layout.update(self.reader.row_groups.bytes.astype("<i8").tobytes())
        return {
            "seed": self._seed,
            "window_rows": self._window_rows,
            "window_bytes": self._window_bytes,
            "grouped": self._grouped,
            "rows": len(self),
            "layout": layout.hexdigest(),
        }


# The order of rows is a function of (seed, epoch, index) by a fixed integer hash, not of a
# generator's history or a library's version: a run can be continued anywhere, years later.


def shuffled(count: int, *stream: int) -> np.ndarray:
    """A permutation of `0..count-1`, [count] int64, fixed by the integers `stream`.

    Indices are sorted by a 64-bit hash (splitmix64) of `stream` and the index.
    """
    key = np.zeros(1, dtype=np.uint64)
    for number in stream:
        key = _splitmix64(key ^ np.uint64(number % (1 << 64)))
    return np.argsort(_splitmix64(key ^ np.arange(count, dtype=np.uint64)), kind="stable")


def windows(rows: np.ndarray, sizes: np.ndarray, *, max_rows: int, max_bytes: int) -> np.ndarray:
    """Cut a sequence of row groups into windows that fit in memory.

    A window takes groups until it holds at least `max_rows` rows, or until the next group would
    take it above `max_bytes`; it has at least one group.

    Args:
        rows: rows of each group in visiting order, [R].
        sizes: bytes of each group in visiting order, [R].
    Returns:
        Bounds [W + 1]: window w is the groups `bounds[w] .. bounds[w + 1] - 1`.
    """
    bounds = [0]
    held_rows = held_bytes = 0
    for group, (n, size) in enumerate(zip(rows.tolist(), sizes.tolist(), strict=True)):
        if held_rows and (held_rows >= max_rows or held_bytes + size > max_bytes):
            bounds.append(group)
            held_rows = held_bytes = 0
        held_rows += n
        held_bytes += size
    return np.asarray([*bounds, len(rows)], dtype=np.int64)


def by_group(keys: np.ndarray, *stream: int) -> np.ndarray:
    """A permutation that shuffles groups of equal keys and keeps each group together, in order.

    Args:
        keys: group number of each row, [N], values 0..G-1.
    """
    rank = np.empty(int(keys.max()) + 1, dtype=np.int64)
    rank[shuffled(len(rank), *stream)] = np.arange(len(rank))
    return np.argsort(rank[keys], kind="stable")


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Finaliser of the SplitMix64 generator (Steele, Lea, Flood 2014), a bijection of 64 bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
