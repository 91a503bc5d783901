"""Where do the rows of a prompt set come from? The hub, a folder, or one file.

    None            the set's own place on the hub
    "owner/name"    another data set of the hub
    folder          a copy of the hub's repository, a `save_to_disk` folder, or files named by split
    file            .jsonl, .json (lines or one array), .parquet or .arrow; the first two also .gz

Hub and folders go through `datasets`. Single JSON files are read here: `datasets` infers one type
per column from all rows, and gives IFEval's `kwargs` the keys of all instructions.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".arrow")
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")


def read_rows(source: str | None, *, hub: str, config: str | None, split: str) -> Iterable[Any]:
    """Rows (mappings) of a split, in order.

    Args:
        source: see the module; None is the hub's `hub`.
        hub, config, split: where the set is at home.
    Raises:
        ValueError: nothing there, no such split, unreadable, or the hub is out of reach.
    """
    if source is None or source == "hub":
        return _from_hub(hub, config, split)
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, config, split)
    if path.is_file():
        return rows_of_file(path)
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ValueError(
            f"{source} does not exist: name a folder or file of the data set, or owner/name on the "
            "hub."
        )
    return _from_hub(source, config if source == hub else None, split)


def rows_of_file(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one file, in order.

    Raises:
        ValueError: another ending, or content that is not what the ending says.
    """
    ending = _ending(path)
    if ending is None:
        raise ValueError(f"{path}: data sets are read from {', '.join(ENDINGS)}, not this one.")
    if ending == ".parquet":
        return _parquet_rows(path)
    if ending == ".arrow":
        from datasets import Dataset

        return iter(Dataset.from_file(str(path)))  # pyright: ignore[reportReturnType]
    return _json_rows(path)


def _ending(path: Path) -> str | None:
    return next((ending for ending in ENDINGS if path.name.endswith(ending)), None)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    for batch in file.iter_batches(batch_size=1024):
        yield from batch.to_pylist()


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines, or of one array of objects (or of texts, as column `text`)."""
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            if first.lstrip().startswith("["):
                yield from _checked(json.load(file), path)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield from _checked([json.loads(line)], path, number)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON lines or one JSON array: {error}") from error
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no {_ending(path)} file: {error}") from error


def _checked(values: Sequence[Any], path: Path, first: int = 1) -> Iterator[dict[str, Any]]:
    for number, value in enumerate(values, start=first):
        row = {"text": value} if isinstance(value, str) else value
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: expected an object, got {value!r:.80}.")
        yield row


def _from_folder(folder: Path, config: str | None, split: str) -> Iterable[Any]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_to_disk(folder, split)
    files = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and _ending(file) and file.name not in _NO_DATA
    )
    named = [file for file in files if file.name.removesuffix(_ending(file) or "") == split]
    if len(named or files) == 1 and not any(folder.glob("*/*.parquet")):
        return rows_of_file((named or files)[0])
    if len(named) > 1:
        raise ValueError(f"{folder} holds {split!r} more than once: {_names(named)}. Name a file.")
    return _loaded(str(folder), config, split, f"{folder} (files: {_names(files) or 'none'})")


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)


def _saved_to_disk(folder: Path, split: str) -> Iterable[Any]:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} looks saved by `datasets` but cannot be read: {error}"
        ) from error
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise ValueError(f"{folder} has no split {split!r}: there are {', '.join(loaded)}.")
    return loaded[split]


def _from_hub(name: str, config: str | None, split: str) -> Iterable[Any]:
    return _loaded(name, config, split, f"{name} on the hub")


def _loaded(name: str, config: str | None, split: str, called: str) -> Iterable[Any]:
    from datasets import exceptions, load_dataset

    remedy = (
        "Without the hub: copy the data set to a folder (`hf download --repo-type dataset "
        f"{name} --local-dir DIR`) and name it as the source."
    )
    try:
        return load_dataset(name, config, split=split)
    except (ConnectionError, TimeoutError) as error:
        raise ValueError(f"{called} is out of reach: {_first_line(error)} {remedy}") from error
    except (exceptions.DatasetsError, FileNotFoundError, ValueError, RuntimeError) as error:
        known = "" if Path(name).is_dir() else " " + remedy
        raise ValueError(
            f"{called}, split {split!r}, cannot be read: {_first_line(error)}{known}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
