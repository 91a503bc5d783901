"""What rows are in a file of JSON lines, JSON, Parquet or Arrow? What is wrong names file and row.

.jsonl, .json       JSON lines, or one array; UTF-8, with or without a byte order mark
.jsonl.gz, .json.gz the same, zipped
.parquet, .arrow
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".arrow")
_MARK = b"\xef\xbb\xbf"  # Windows tools begin UTF-8 files with it


def ending_of(path: Path) -> str | None:
    """The ending that says how a file is read; None where none does."""
    return next((ending for ending in ENDINGS if path.name.endswith(ending)), None)


def file_rows(path: Path, *, drop: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of one file, in order; in JSON lines the number of the line.

    Args:
        drop: columns that are large and not wanted.
    Raises:
        ValueError: another ending, or content that is not what the ending says.
    """
    ending = ending_of(path)
    if ending is None:
        raise ValueError(f"{path}: rows are read from {', '.join(ENDINGS)} files.")
    if ending == ".parquet":
        return _parquet_rows(path, drop)
    return _arrow_rows(path) if ending == ".arrow" else _json_rows(path, ending)


def _parquet_rows(path: Path, drop: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if name not in drop]
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file, from row {number + 1} on: {error}"
        ) from error


def _arrow_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from datasets import Dataset

    try:
        yield from enumerate(Dataset.from_file(str(path)), start=1)  # pyright: ignore
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a readable Arrow file: {error}") from error


def _json_rows(path: Path, ending: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with gzip.open(path) if ending.endswith(".gz") else path.open("rb") as file:
            first = file.readline().removeprefix(_MARK)
            while first and not first.strip():
                first = file.readline()
            array = first.lstrip().startswith(b"[")
            file.seek(0)
            if array:
                values = _json(file.read().removeprefix(_MARK), str(path))
                for number, value in enumerate(values, start=1):
                    yield number, _row(value, f"{path}, row {number}")
                return
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(_MARK) if number == 1 else line
                if line.strip():
                    where = f"{path}, line {number}"
                    yield number, _row(_json(line, where), where)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged or no {ending} file, after line {number}: {error}"
        ) from error


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error}): save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:  # also integers of thousands of digits
        raise ValueError(f"{where} is not JSON: {error}") from error


def _row(value: Any, where: str) -> dict[str, Any]:
    row = {"text": value} if isinstance(value, str) else value
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object or a text, got {value!r:.80}.")
    return row
