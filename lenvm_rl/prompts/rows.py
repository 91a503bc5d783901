"""Rows of prompts: of the hub, of a folder, or of one file; what is wrong names file and row.

    None, "hub"     the set's own place on the hub
    "owner/name"    another data set of the hub
    folder          a copy of the hub's repository, a `save_to_disk` folder, or files named by split
    file            .jsonl, .json      JSON lines, or one array; UTF-8, with or without a BOM
                    .jsonl.gz, .json.gz the same, zipped
                    .parquet, .arrow

Hub and folders go through `datasets`. Single JSON files are read here: `datasets` infers one type
per column from all rows, and gives IFEval's `kwargs` the keys of all instructions.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


_ABOUT = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")

Rows = Iterable[Mapping[str, Any]]


def read_rows(
    source: str | None, *, hub: str, config: str | None, split: str, drop: Sequence[str] = ()
) -> Rows:
    """Rows of a split, in order.

    Args:
        source: see the module.
        hub, config, split: where the set is at home.
        drop: columns that are large and not wanted.
    Raises:
        ValueError: nothing there, no such split, unreadable, or the hub is out of reach.
    """
    if source in (None, "hub", hub):
        return _without(load_rows(hub, config, split=split), drop)
    path = Path(source).expanduser()
    if path.is_dir():
        return _without(_folder_rows(path, split), drop)
    if path.is_file():
        return _only_rows(path, drop)
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ValueError(
            f"{source} does not exist: name a folder or file of the data set, or owner/name on the "
            "hub."
        )
    return _without(load_rows(source, None, split=split), drop)


def _without(rows: Any, drop: Sequence[str]) -> Rows:
    """A Dataset without large columns, so that they are not even decoded."""
    present = [name for name in drop if name in getattr(rows, "column_names", ())]
    return rows.remove_columns(present) if present else rows


def _only_rows(path: Path, drop: Sequence[str] = ()) -> Rows:
    return (row for _, row in file_rows(path, drop=drop))


def _folder_rows(folder: Path, split: str) -> Rows:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_rows(folder, split)
    files = sorted(file for file in folder.iterdir() if file.is_file() and ending_of(file))
    files = [file for file in files if file.name not in _ABOUT]
    named = [file for file in files if file.name.removesuffix(ending_of(file) or "") == split]
    if len(named) == 1:
        return _only_rows(named[0])
    shards = any(folder.rglob("*-*-of-*"))
    if len(files) == 1 and not shards:
        return _only_rows(files[0])  # one file: the set, whatever it is called
    if files and not shards:
        raise ValueError(
            f"{folder}: which of its files is {split!r}? There are "
            f"{', '.join(file.name for file in files)}: name a file, or another split."
        )
    return load_rows(str(folder), None, split=split)


def _saved_rows(folder: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise ValueError(f"{folder}, saved by `datasets`, cannot be read: {error}") from error
    if not isinstance(loaded, DatasetDict):
        return loaded  # pyright: ignore[reportReturnType]
    if split not in loaded:
        known = ", ".join(str(name) for name in loaded)
        raise ValueError(f"{folder} has no split {split!r}: there are {known}.")
    return loaded[split]  # pyright: ignore[reportReturnType]


def load_rows(name: str, config: str | None, *, split: str, files: str | None = None) -> Any:
    """A split through `datasets.load_dataset`.

    Args:
        name: of the hub, or a folder.
        files: pattern of the hub's files to read instead (json and parquet), for data sets that
            only a loading script describes, which `datasets` no longer runs.
    Raises:
        ValueError: the hub is out of reach, or there is no such data set, config or split.
    """
    from datasets import exceptions, load_dataset

    local = Path(name).is_dir()
    called = name if local else f"{name} on the hub"
    remedy = (
        ""
        if local
        else " Without the hub: copy the data set to a folder (`hf download --repo-type dataset "
        f"{name} --local-dir DIR`, where there is a network) and name that folder as the source."
    )
    try:
        if files is None:
            return load_dataset(name, config, split=split)
        builder = "parquet" if files.endswith(".parquet") else "json"
        place = f"hf://datasets/{name}/{files}"
        return load_dataset(builder, data_files={split: place}, split=split)
    except (ConnectionError, TimeoutError) as error:
        raise ValueError(f"{called} is out of reach: {_first_line(error)}.{remedy}") from error
    except (exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        why = _first_line(error)
        raise ValueError(f"{called}, split {split!r}, cannot be read: {why}.{remedy}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
