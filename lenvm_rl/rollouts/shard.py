"""How does one Parquet file come into being whole or not at all?"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.rollouts.layout import sync_directory

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
