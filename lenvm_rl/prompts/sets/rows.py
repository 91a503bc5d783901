"""Where do the rows of a prompt set come from? The hub, a folder, or one file.

    None, "hub"     the set's own place on the hub
    "owner/name"    another data set of the hub
    folder          a copy of the hub's repository, a `save_to_disk` folder, or files named by split
    file            .jsonl, .json (lines or one array), .parquet or .arrow; the first two also .gz

Hub and folders go through `datasets`. Single JSON files are read here: `datasets` infers one type
per column from all rows, and gives IFEval's `kwargs` the keys of all instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lenvm_rl.prompts.row_files import ending_of, file_rows

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
