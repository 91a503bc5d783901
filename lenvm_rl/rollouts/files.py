"""The files that make up a rollout file: their names and metadata, row groups, and being whole.

A rollout file is one `.parquet`, or a directory of shards `part-00000.parquet, part-00001.parquet`
and so on. A shard gets its name only when it is complete (written as `*.tmp`, synced, renamed), so
a name that matches is a whole shard and `*.tmp` is what a killed writer left: ignored, reported.
Every shard carries, under the metadata key `lenvm`, a JSON object with `version`, `tokenizer_sha`,
`vocab_size` and `eos_ids`; `retokenized` where the source gave text and no token ids;
`chat_template_args` where the chat template got some; `answers` ("correct") where only those were
kept that a grader called right; and `segment` where the rows are one part of their responses.

Version 2 has columns that version 1 lacks, and every row its own `guidance`: in version 1 one entry
of the metadata stands for all rows of the shard. Both are read, and may lie side by side.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.rollouts.columns import list_lengths, run_starts
from lenvm_rl.rollouts.record import OPTIONAL_COLUMNS, SCHEMA

METADATA_KEY = b"lenvm"
DERIVED_METADATA = (
    "tokenizer_sha",
    "vocab_size",
    "eos_ids",
    "retokenized",
    "chat_template_args",
    "answers",
    "segment",
    "processor",
)
"""What all shards of a file agree on, and a file made from its rows takes over."""
FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
DECODING_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises on damaged bytes; names inside a damaged footer need not be UTF-8."""
_SHARD = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True)
class Shards:
    """The files under one path."""

    paths: tuple[Path, ...]
    """Whole shards, in order."""
    leftovers: tuple[Path, ...]
    """`*.tmp` files of writers that were killed or are still at work."""


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"part-{number:05d}.parquet"


def shard_number(path: Path) -> int:
    """Number in a shard's file name."""
    match = _SHARD.fullmatch(path.name)
    assert match, path
    return int(match.group(1))


def find_shards(path: str | os.PathLike[str]) -> Shards:
    """List the shards of a rollout file; the directory may be empty of them."""
    path = Path(path)
    if path.is_file():
        return Shards((path,), ())
    if not path.exists():
        raise FileNotFoundError(f"no rollout file at {path}: give a .parquet file or a directory.")
    entries = sorted(path.iterdir())
    shards = [entry for entry in entries if _SHARD.fullmatch(entry.name)]
    leftovers = tuple(entry for entry in entries if entry.name.endswith(".tmp"))
    return Shards(tuple(sorted(shards, key=shard_number)), leftovers)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open one shard for reading with bounded memory; a damaged or foreign file is a ValueError.

    Pages are not read ahead and their checksums are verified.
    """
    try:
        file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        schema = file.schema_arrow
    except DECODING_ERRORS as error:
        size = path.stat().st_size if path.exists() else 0
        raise ValueError(
            f"{path} is not a whole Parquet file ({size} bytes; {_first_line(error)}). It was cut "
            "off or damaged, or is no Parquet. Delete it or restore it from a copy: other shards "
            "are whole, and sampling with append fills up what is missing."
        ) from error
    try:
        check_schema(schema, path)
    except ValueError:
        file.close()
        raise
    return file


def check_schema(schema: pa.Schema, path: Path) -> None:
    """Raise ValueError when a Parquet file is not a rollout file or lacks a column."""
    read_metadata(schema, path)
    missing = [
        name for name in SCHEMA.names if name not in schema.names and name not in OPTIONAL_COLUMNS
    ]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {missing}; it has {schema.names}. "
            "Write it again with RolloutWriter, which stores every column."
        )
    for name in schema.names:
        if name in SCHEMA.names and schema.field(name).type != SCHEMA.field(name).type:
            raise ValueError(
                f"{path}: column {name} is {schema.field(name).type}, a rollout file has "
                f"{SCHEMA.field(name).type}. Write it again with RolloutWriter."
            )


def read_metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """The `lenvm` entry of a shard's metadata: version, tokenizer_sha, vocab_size, eos_ids, and
    retokenized, chat_template_args, answers, segment and processor where there was some; of version
    1 also guidance."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise ValueError(
            f"{path} is Parquet but not a rollout file: its metadata has no 'lenvm' entry, so its "
            "tokenizer is unknown. Write its rows with RolloutWriter, or convert the source with "
            "`lenvm_rl.rollouts.convert`."
        )
    try:
        metadata = json.loads(raw)
    except ValueError as error:
        raise ValueError(
            f"{path}: its 'lenvm' metadata is not JSON ({error}): the file is damaged. Restore it "
            "from a copy."
        ) from error
    if metadata.get("version") not in READ_VERSIONS:
        raise ValueError(
            f"{path} has rollout format version {metadata.get('version')}, this release reads "
            f"{' and '.join(map(str, READ_VERSIONS))}. Install the release that wrote it."
        )
    if metadata.get("answers") == "right":  # as version 0.1 wrote it
        metadata["answers"] = "correct"
    return metadata


def encode_metadata(facts: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata of a shard with these `DERIVED_METADATA`; what says nothing is left out."""
    always = ("tokenizer_sha", "vocab_size", "eos_ids")
    entry = {key: value for key, value in facts.items() if value or key in always}
    return {METADATA_KEY: json.dumps({"version": FORMAT_VERSION, **entry}).encode()}


def damaged(path: Path, group: int, error: Exception | str) -> ValueError:
    """The error for a shard whose footer is whole but whose data pages are not."""
    return ValueError(
        f"{path}: row group {group} cannot be decoded ({_first_line(error)}): the shard is "
        "damaged. Restore it from a copy, or delete it and sample its rows again."
    )


def sync_directory(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception | str) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else repr(error)


_DICTIONARY_COLUMNS = [
    *("prompt_id", "finish_reason", "data_source", "policy.name", "policy.revision", "guidance"),
    *("segments.list.element.name", "session_id", "grader", "pictures.list.element", "mime"),
]
"""Few distinct values per row group; token ids have too many for a dictionary to pay."""


class ShardFile:
    """A Parquet file in the making, under the name `<target>.<pid>.tmp` until `finish`.

    Args:
        target: the name it gets when whole.
        schema: columns and metadata.
        compression: of Parquet.
    """

    def __init__(self, target: Path, schema: pa.Schema, *, compression: str = "zstd") -> None:
        self.rows = 0
        self._target = target
        self._temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        self._sink = open(self._temporary, "wb")  # noqa: SIM115 (closed in finish or discard)
        self._schema = schema
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression=compression,
            compression_level=1 if compression == "zstd" else None,
            use_dictionary=_DICTIONARY_COLUMNS,
            write_page_checksum=True,
            write_statistics=False,
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Add one row group."""
        table = pa.Table.from_batches([batch]).replace_schema_metadata(self._schema.metadata)
        self._writer.write_table(table, row_group_size=batch.num_rows)
        self.rows += batch.num_rows

    def finish(self) -> None:
        """Write the footer, force the data to disk, and give the file its name."""
        self._writer.close()
        self._sink.flush()
        os.fsync(self._sink.fileno())
        self._sink.close()
        os.replace(self._temporary, self._target)
        sync_directory(self._target.parent)

    def discard(self) -> None:
        """Give up and remove the unfinished file."""
        # A full disk has no room for the footer either.
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
            self._sink.close()
        self._temporary.unlink(missing_ok=True)


ROW_GROUP_TOKENS = 1 << 18
"""A row group is closed at this many tokens (1 MiB of ids) ..."""
ROW_GROUP_ROWS = 1024
"""... or at this many rows, whichever comes first."""


class RowGroupBuffer:
    """Rows on their way into row groups, which are what a reader decodes at a time.

    Groups are bounded in tokens and in rows. They end between prompts wherever the completions of a
    prompt are adjacent, so that a reader of whole groups sees a prompt whole.

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
