"""The writer of rollout files: a kill at any moment loses at most the rows not yet flushed.

Rows are buffered into small row groups, which is what bounds the memory of every reader. Groups go
into a hidden shard; a full shard is synced to disk and only then gets its name.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from lenvm_rl.rollouts.files import (
    DERIVED_METADATA,
    RowGroupBuffer,
    ShardFile,
    encode_metadata,
    find_shards,
    open_parquet,
    read_metadata,
    shard_name,
    shard_number,
)
from lenvm_rl.rollouts.media import MediaReader, MediaWriter, named_pictures
from lenvm_rl.rollouts.record import SCHEMA, Rollout, check_batch, rows_to_batch

_CHUNK = 256
"""Rows turned into Arrow at a time."""


class RolloutWriter:
    """Write rollouts to a directory of shards, or to one file when `path` ends with `.parquet`.

        with RolloutWriter("runs/rollouts", tokenizer_sha=sha, vocab_size=64) as writer:
            writer.append(rows)

    A directory gains whole shards as it goes and keeps everything appended even when the `with`
    block ends by an exception. A single file appears at the end, whole, or not at all.

    Args:
        path: directory (made if absent) or `.parquet` file.
        tokenizer_sha: fingerprint of the tokenizer that made the ids.
        vocab_size: ids must be below it; None checks only that they are not negative.
        eos_ids: a row with finish_reason `stop` must end with one of them; None skips the check.
        rows_per_shard: a shard is completed at this many rows (more by up to one row group).
        append: continue a directory that already has shards (same tokenizer).
        retokenized: the response ids were made from text, so they need not be the tokens that the
            policy emitted.
        chat_template_args: what the chat template got besides the messages.
        answers: "correct" where the rows are the correct ones of more; None: all of them.
        segment: what of the responses the rows are, see `segments.described`; None: all of them.
        processor: settings of the image processor by which prompts have as many tokens for a
            picture as they have; None: there are no pictures, or the ids are those of the text.
    Raises:
        ValueError: the path already has rows and `append` is False; another tokenizer, vocabulary,
            EOS or source of the ids; another writer is at work in the directory; a
            malformed row (its name and the remedy).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer_sha: str,
        vocab_size: int | None = None,
        eos_ids: Sequence[int] | None = None,
        rows_per_shard: int = 65_536,
        append: bool = False,
        retokenized: bool = False,
        chat_template_args: dict[str, Any] | None = None,
        answers: str | None = None,
        segment: dict[str, Any] | None = None,
        processor: dict[str, Any] | None = None,
    ) -> None:
        if not tokenizer_sha or not isinstance(tokenizer_sha, str):
            raise ValueError(
                f"tokenizer_sha must be a non-empty string, got {tokenizer_sha!r}: readers refuse "
                "files of another tokenizer by it. Use lenvm_rl.model.tokenizer_sha(tokenizer)."
            )
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1, got {rows_per_shard}.")
        self.path = Path(path)
        self.tokenizer_sha = tokenizer_sha
        self.vocab_size = vocab_size
        self.eos_ids = None if eos_ids is None else [int(i) for i in eos_ids]
        self.retokenized = retokenized
        self.chat_template_args = chat_template_args or {}
        self.answers = answers
        self.segment = segment
        self.processor = processor
        self.rows_per_shard = rows_per_shard
        self.rows_written = 0
        """Rows in completed shards of this writer."""
        self._buffer = RowGroupBuffer(rows_per_shard)
        self._media: MediaWriter | None = None
        self._file: ShardFile | None = None
        self._lock: int | None = None
        self._closed = False
        self._single = self.path.suffix == ".parquet" and not self.path.is_dir()
        self._number = 0
        if self._single:
            self._open_single(append)
        else:
            self._open_directory(append)
        facts = {name: getattr(self, name) for name in DERIVED_METADATA}
        self._schema = SCHEMA.with_metadata(encode_metadata(facts))

    def append(self, rows: Iterable[Rollout]) -> None:
        """Check rows and add them; `flush` or a full shard makes them safe on disk."""
        chunk: list[Rollout] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == _CHUNK:
                self.append_batch(rows_to_batch(chunk))
                chunk = []
        if chunk:
            self.append_batch(rows_to_batch(chunk))

    def append_batch(self, batch: pa.RecordBatch, *, media: MediaReader | None = None) -> None:
        """Check and add a record batch of the rollout schema, without making Python rows.

        Args:
            media: where the rows' pictures are copied from; None: they were added.
        """
        self._check_open()
        unfinished = self._buffer.rows + (self._file.rows if self._file else 0)
        check_batch(
            batch,
            source="rows to be written",
            first_row=self.rows_written + unfinished,
            vocab_size=self.vocab_size,
            eos_ids=self.eos_ids,
        )
        for name in named_pictures(batch.column("pictures")):
            if name not in self._pictures().known:
                if media is None:
                    raise ValueError(
                        f"rows to be written name picture {name}, which was not added: call "
                        "add_picture(data, mime) before append."
                    )
                picture = media[name]
                self.add_picture(picture.data, picture.mime)
        for group in self._buffer.add(batch):
            self._write_group(group)

    def add_picture(self, data: bytes, mime: str) -> str:
        """Store a picture beside the rows, once, and return what `Rollout.pictures` names it by.

        Args:
            data: the encoded file.
            mime: such as `image/png`.
        """
        self._check_open()
        return self._pictures().add(data, mime)

    def _pictures(self) -> MediaWriter:
        if self._media is None:
            self._media = MediaWriter(self.path, single=self._single)
        return self._media

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed; open another with append=True.")

    def flush(self) -> None:
        """Complete the current shard, so that all rows appended so far survive a kill.

        Every call makes a shard: call it per chunk of work, not per row. A single file is only
        complete when closed, and `flush` leaves it alone.
        """
        if not self._single:
            self._write_rest()
            self._finish_shard()

    def close(self) -> None:
        """Flush, and release the directory. A single file gets its name now."""
        if self._closed:
            return
        try:
            self._write_rest()
            if self._single and self._file is None:
                self._file = self._open_shard()
            self._finish_shard()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and self._single:
            self._release()
        else:
            self.close()

    # Opening

    def _open_single(self, append: bool) -> None:
        if append:
            raise ValueError(
                f"{self.path} is a single Parquet file, which cannot grow. Append to a directory: "
                "RolloutWriter(directory, append=True)."
            )
        if self.path.exists():
            raise ValueError(
                f"{self.path} exists. Delete it, or write to another path or a directory."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _open_directory(self, append: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            shards = find_shards(self.path)
            if shards.paths and not append:
                raise ValueError(
                    f"{self.path} already has {len(shards.paths)} shards. Pass append=True to add "
                    "to them, or choose another path."
                )
            for path in shards.paths:
                with open_parquet(path) as file:
                    self._agree(read_metadata(file.schema_arrow, path), path)
            for leftover in shards.leftovers:
                warnings.warn(f"removed {leftover}, left by a killed writer", stacklevel=3)
                leftover.unlink()
        except BaseException:
            self._release()
            raise
        self._number = 1 + shard_number(shards.paths[-1]) if shards.paths else 0

    def _take_lock(self) -> None:
        """One writer per directory: two would both take the next shard number."""
        self._lock = os.open(self.path / ".writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = None
            raise ValueError(
                f"another writer is at work in {self.path}. Give each process a directory of its "
                "own, or wait until the other has ended."
            ) from error

    def _agree(self, metadata: dict, path: Path) -> None:
        sha, template = metadata["tokenizer_sha"], metadata.get("chat_template_args") or {}
        answers = metadata.get("answers")
        for differs, how in (
            (
                sha != self.tokenizer_sha,
                f"was written with tokenizer {sha}, these rows are of tokenizer "
                f"{self.tokenizer_sha}: their ids mean different text",
            ),
            (
                bool(metadata.get("retokenized")) != self.retokenized,
                "and these rows differ in whether token ids were made from text",
            ),
            (
                template != self.chat_template_args,
                f"was rendered with chat template arguments {template}, these rows with "
                f"{self.chat_template_args}",
            ),
            (
                answers != self.answers,
                f"holds {answers or 'all'} answers, these rows are {self.answers or 'all'}",
            ),
            (
                metadata.get("segment") != self.segment,
                f"holds {metadata.get('segment') or 'whole responses'}, these rows are "
                f"{self.segment or 'whole responses'}",
            ),
            (
                (metadata.get("processor") or None) != self.processor,
                "and these rows differ in the settings by which pictures became tokens (processor)",
            ),
        ):
            if differs:
                raise ValueError(f"{path} {how}. Write to another directory.")
        for name in ("vocab_size", "eos_ids"):
            old, new = metadata.get(name), getattr(self, name)
            if new is None:
                setattr(self, name, old)
            elif old is not None and old != new:
                raise ValueError(
                    f"{path} was written with {name} {old}, not {new}. Pass {name}={old}, or write "
                    "to another directory."
                )

    # Writing

    def _write_rest(self) -> None:
        for group in self._buffer.drain():
            self._write_group(group)

    def _write_group(self, batch: pa.RecordBatch) -> None:
        if self._file is None:
            self._file = self._open_shard()
        self._file.write(batch)
        if self._file.rows >= self.rows_per_shard and not self._single:
            self._finish_shard()

    def _open_shard(self) -> ShardFile:
        target = self.path if self._single else self.path / shard_name(self._number)
        return ShardFile(target, self._schema)

    def _finish_shard(self) -> None:
        if self._media is not None:
            self._media.finish()  # first: a whole shard has all of its pictures
        if self._file is not None:
            self._file.finish()
            self.rows_written += self._file.rows
            self._number += 1
            self._file = None

    def _release(self) -> None:
        self._closed = True
        if self._media is not None:
            self._media.discard()
        if self._file is not None:
            self._file.discard()
            self._file = None
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # forked children share the descriptor
            os.close(self._lock)
            self._lock = None


@contextmanager
def whole_rollout_file(path: str | os.PathLike[str], **settings: Any) -> Iterator[RolloutWriter]:
    """Yield a `RolloutWriter` whose file gets the name `path` only when the block ends well.

    For files that are derived from others: half of a split or of a conversion must not look done.

    Args:
        path: directory (absent or empty) or `.parquet` file (absent).
        settings: of `RolloutWriter`.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        with RolloutWriter(path, **settings) as writer:
            yield writer
        return
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty directory. Choose another path.")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with RolloutWriter(temporary, **settings) as writer:
            yield writer
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
