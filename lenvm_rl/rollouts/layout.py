"""Which files make up a rollout file, and are they whole?

A rollout file is one `.parquet`, or a directory of shards `part-00000.parquet, part-00001.parquet`
and so on. A shard gets its name only when it is complete (written as `*.tmp`, synced, renamed), so
a name that matches is a whole shard and `*.tmp` is what a killed writer left: ignored, reported.
Every shard carries, under the metadata key `lenvm`, a JSON object with `version`, `tokenizer_sha`,
`vocab_size` and `eos_ids`; `retokenized` where the source gave text and no token ids;
`chat_template_args` where the chat template got some; and `answers` ("correct") where only those
were kept that a grader called right.

Version 2 has columns that version 1 lacks, and every row its own `guidance`: in version 1 one entry
of the metadata stands for all rows of the shard. Both are read, and may lie side by side.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.rollouts.record import OPTIONAL_COLUMNS, SCHEMA

METADATA_KEY = b"lenvm"
DERIVED_METADATA = (
    "tokenizer_sha",
    "vocab_size",
    "eos_ids",
    "retokenized",
    "chat_template_args",
    "answers",
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
    retokenized, chat_template_args and answers where there was some; of version 1 guidance too."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise ValueError(
            f"{path} is Parquet but not a rollout file: its metadata has no 'lenvm' entry, so its "
            "tokenizer is unknown. Write its rows with RolloutWriter, or convert the source with "
            "`lenvm_rl.rollouts.convert_text`."
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


def encode_metadata(
    *,
    tokenizer_sha: str,
    vocab_size: int | None,
    eos_ids: list[int] | None,
    retokenized: bool = False,
    chat_template_args: dict[str, Any] | None = None,
    answers: str | None = None,
) -> dict[bytes, bytes]:
    """Schema metadata of a shard."""
    entry: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "tokenizer_sha": tokenizer_sha,
        "vocab_size": vocab_size,
        "eos_ids": eos_ids,
    }
    if retokenized:
        entry["retokenized"] = True
    if chat_template_args:
        entry["chat_template_args"] = chat_template_args
    if answers is not None:
        entry["answers"] = answers
    return {METADATA_KEY: json.dumps(entry).encode()}


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
