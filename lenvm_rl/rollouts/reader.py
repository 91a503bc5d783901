"""The reader of rollout files, with memory that does not grow with the data set.

Only the footers' row counts are kept (16 bytes per row group); data is decoded one row group at a
time, in the calling thread, and checked as it is read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.rollouts.columns import list_lengths
from lenvm_rl.rollouts.files import (
    DECODING_ERRORS,
    DERIVED_METADATA,
    damaged,
    find_shards,
    open_parquet,
    read_metadata,
)
from lenvm_rl.rollouts.media import MediaReader
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.rollouts.record import (
    SCHEMA,
    Rollout,
    batch_to_dicts,
    batch_to_rows,
    check_batch,
    guidance_text,
)


@dataclass(frozen=True)
class RowGroups:
    """The row groups of all shards, in order; arrays of shape [R]."""

    shard: np.ndarray
    """Index into `RolloutReader.shards`."""
    index: np.ndarray
    """Number of the group within its shard."""
    rows: np.ndarray
    """Rows in the group."""
    bytes: np.ndarray
    """Uncompressed size of the group in bytes, all columns."""


class RolloutReader:
    """Read a rollout file: one `.parquet`, or a directory of shards.

        reader = RolloutReader("runs/rollouts", tokenizer_sha=sha)
        for row in reader.iter_rows(): ...

    Args:
        path: file or directory.
        tokenizer_sha: fingerprint the file must have; None accepts any.
        batch_rows: most rows per record batch.
    Attributes:
        shards: paths of the whole shards.
        leftovers: `*.tmp` files of killed writers: ignored, with a warning.
        metadata: dict with version, tokenizer_sha, vocab_size, eos_ids, and retokenized,
            chat_template_args, answers, segment and processor if any.
        row_groups: sizes of all row groups.
    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: no whole shard, no rows, a damaged or foreign file (named), a missing column,
            shards of different tokenizers, another tokenizer than asked for; while reading, a
            malformed row (file, row, reason).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer_sha: str | None = None,
        batch_rows: int = 1024,
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, got {batch_rows}.")
        self.path = Path(path)
        self.batch_rows = batch_rows
        found = find_shards(self.path)
        self.shards, self.leftovers = found.paths, found.leftovers
        if not self.shards:
            raise ValueError(_no_shards(self.path, self.leftovers))
        if self.leftovers:
            names = ", ".join(leftover.name for leftover in self.leftovers)
            warnings.warn(
                f"{self.path}: ignored unfinished {names} (a writer was killed or is at work)",
                stacklevel=2,
            )
        self._guidance: dict[Path, str] = {}  # of version 1, where it is one for all rows
        self.metadata, self.row_groups = self._read_footers()
        if not len(self):
            raise ValueError(f"{self.path} holds no rows: nothing was sampled into it.")
        if tokenizer_sha is not None and tokenizer_sha != self.metadata["tokenizer_sha"]:
            raise ValueError(
                f"{self.path} was written with tokenizer {self.metadata['tokenizer_sha']}, but "
                f"tokenizer {tokenizer_sha} was asked for: its ids would mean other text. Use the "
                "tokenizer of the policy that sampled the file, or sample again."
            )

    def __len__(self) -> int:
        return int(self.row_groups.rows.sum())

    def iter_batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        check: bool = True,
        bar: str | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Record batches of at most `batch_rows` rows, in file order.

        Args:
            columns: names to read (in this order); None reads all.
            check: raise ValueError on malformed rows, as far as the read columns tell.
            bar: what a progress bar says is being done; None shows none.
        """
        everything = np.arange(len(self.row_groups.rows))
        with progress_bar(bar or "", len(self), shown=bar is not None) as advance:
            for batch in self._batches(everything, check_columns(columns), check=check):
                yield batch
                advance(batch.num_rows)

    def iter_rows(self, columns: Sequence[str] | None = None) -> Iterator[Rollout | dict[str, Any]]:
        """Rows in file order: `Rollout` objects, or dicts of the given columns."""
        for batch in self.iter_batches(columns):
            if columns is not None:
                yield from batch_to_dicts(batch)
                continue
            for row in batch_to_rows(batch):
                yield self.with_media(row)

    def with_media(self, row: Rollout) -> Rollout:
        """The row, which knows where its pictures lie."""
        if row.pictures:
            row.media = self.media
        return row

    @cached_property
    def media(self) -> MediaReader:
        """The pictures that rows name: `reader.media[hash]` is one's type and bytes."""
        return MediaReader(self.path)

    def lengths(self) -> np.ndarray:
        """Response length of every row in tokens, [N] int32 (4 bytes per row; the rest streams)."""
        out = np.empty(len(self), dtype=np.int32)
        done = 0
        for batch in self.iter_batches(["response_ids"]):
            out[done : done + batch.num_rows] = list_lengths(batch.column(0))
            done += batch.num_rows
        return out

    def read_groups(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The given row groups (positions in `row_groups`), checked, in the order of the file."""
        wanted = np.sort(np.asarray(groups, dtype=np.int64))
        return pa.Table.from_batches(list(self._batches(wanted, check_columns(columns))))

    def _batches(
        self, groups: np.ndarray, names: list[str], *, check: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """Batches of row groups, positions ascending."""
        ends = np.cumsum(self.row_groups.rows)
        begins = ends - self.row_groups.rows
        shard_of = self.row_groups.shard
        first_rows = begins - begins[np.searchsorted(shard_of, shard_of)]  # within the shard
        rules = {key: self.metadata.get(key) for key in ("vocab_size", "eos_ids")}
        for shard in np.unique(shard_of[groups]).tolist():
            path = self.shards[shard]
            with open_parquet(path) as file:
                for position in groups[shard_of[groups] == shard].tolist():
                    row = int(first_rows[position])
                    for batch in self._decode(file, path, position, names):
                        if check:
                            check_batch(batch, source=str(path), first_row=row, **rules)
                        row += batch.num_rows
                        yield batch

    def _decode(
        self, file: pq.ParquetFile, path: Path, position: int, names: list[str]
    ) -> Iterator[pa.RecordBatch]:
        group, missing = int(self.row_groups.index[position]), int(self.row_groups.rows[position])
        stored = [name for name in names if name in file.schema_arrow.names]
        batches = file.iter_batches(
            batch_size=self.batch_rows, row_groups=[group], columns=stored, use_threads=False
        )
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except DECODING_ERRORS as error:
                raise damaged(path, group, error) from error
            missing -= batch.num_rows
            yield _with_columns(batch, names, self._guidance.get(path))
        if missing:
            raise damaged(path, group, f"{missing} rows fewer than its footer says")

    def _read_footers(self) -> tuple[dict[str, Any], RowGroups]:
        first: dict[str, Any] | None = None
        shard, index, rows, sizes = [], [], [], []
        for number, path in enumerate(self.shards):
            with open_parquet(path) as file:
                metadata = read_metadata(file.schema_arrow, path)
                if (guidance := metadata.pop("guidance", None)) is not None:
                    self._guidance[path] = guidance_text(guidance)
                footer = file.metadata
                for group in range(footer.num_row_groups):
                    info = footer.row_group(group)
                    shard.append(number)
                    index.append(group)
                    rows.append(info.num_rows)
                    sizes.append(info.total_byte_size)
            first = first or metadata
            for key in DERIVED_METADATA:
                if metadata.get(key) != first.get(key):
                    raise ValueError(
                        f"{path} has {key} {metadata.get(key)}, {self.shards[0]} has "
                        f"{first.get(key)}: shards of two data sets are mixed. Move them apart."
                    )
        assert first is not None
        arrays = (np.asarray(x, dtype=np.int64) for x in (shard, index, rows, sizes))
        return first, RowGroups(*arrays)


def check_columns(columns: Sequence[str] | None) -> list[str]:
    """Column names to read, all when None; an unknown name is a ValueError."""
    if columns is None:
        return list(SCHEMA.names)
    unknown = [name for name in columns if name not in SCHEMA.names]
    if unknown:
        raise ValueError(f"unknown columns {unknown}: a rollout file has {SCHEMA.names}.")
    return list(columns)


def _with_columns(batch: pa.RecordBatch, names: list[str], guidance: str | None) -> pa.RecordBatch:
    """The batch in the asked order; an optional column that the file lacks reads as null, but for
    the `guidance` that its metadata gives."""
    arrays = []
    for name in names:
        if name in batch.schema.names:
            arrays.append(batch.column(name))
        elif name == "guidance" and guidance is not None:
            arrays.append(pa.repeat(pa.scalar(guidance), batch.num_rows))
        else:
            arrays.append(pa.nulls(batch.num_rows, SCHEMA.field(name).type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([SCHEMA.field(n) for n in names]))


def _no_shards(path: Path, leftovers: tuple[Path, ...]) -> str:
    if leftovers:
        return (
            f"{path} holds no whole shard, only {[leftover.name for leftover in leftovers]} of a "
            "writer that was killed before its first shard was full. Sample again with append."
        )
    others = sorted(entry.name for entry in path.iterdir() if entry.suffix == ".parquet")
    hint = f" It has {others[:3]}: name one of these files, if it is one." if others else ""
    return f"{path} holds no part-*.parquet, so it is not a rollout file.{hint}"
