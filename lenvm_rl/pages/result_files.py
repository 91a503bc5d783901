"""Results under a run directory, read from their files, and what else lies there.

A result is a JSON object beside the tables or pictures of the same name (`evals.result` writes
them): NAME.json, NAME.jsonl with rows that name their table, or NAME_TABLE.csv, and NAME*.png.
Tables are read from the JSON lines where there are any. Models, checkpoints and rollout files are
named and not entered, hidden folders are passed over. Every other file is named as unknown; none
is an error.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_LOGS = {".log", ".out", ".err"}


@dataclass(frozen=True, kw_only=True)
class FoundResult:
    """One evaluation as found on disk."""

    name: str
    """NAME of its files, e.g. `prediction`."""
    folder: Path
    figures: dict[str, Any]
    headline: list[tuple[str, str, str]]
    """(figure, label, format) of the few that stand first; empty where the file names none."""
    tables: dict[str, list[dict[str, Any]]]
    pictures: list[Path]
    written: datetime
    """When its JSON was written, UTC."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything under a run directory; each list sorted by path."""

    results: list[FoundResult] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    """Files that look like results and cannot be read, with the reason."""
    unknown: list[Path] = field(default_factory=list)
    data: list[Path] = field(default_factory=list)
    """Model directories, rollout files and logs: known, but no results."""


def read_figures(path: Path) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Figures of a NAME.json, and its (figure, label, format) of those that stand first."""
    figures = json.loads(path.read_text())
    given = figures.get("headline") if isinstance(figures, dict) else None
    entries = given if isinstance(given, list) else []
    headline = [
        (entry[0], entry[1], entry[2])
        for entry in entries
        if isinstance(entry, list) and len(entry) == 3 and all(isinstance(x, str) for x in entry)
    ]
    if headline:
        del figures["headline"]
    return figures, headline


def load_tables(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Tables of a NAME.jsonl."""
    tables: dict[str, list[dict[str, Any]]] = {}
    with Path(path).open() as lines:
        for line in lines:
            row = json.loads(line)
            tables.setdefault(row.pop("table"), []).append(row)
    return tables


def find_results(root: str | Path) -> Found:
    """Read all results under `root`.

    Raises:
        ValueError: `root` is no directory.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a directory: name the folder that evaluations wrote into.")
    found = Found()
    for folder, files in _folders(root, found):
        _read_folder(folder, files, found)
    return found


def _folders(root: Path, found: Found) -> Iterator[tuple[Path, list[str]]]:
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if _holds_data(here, files):
            found.data.append(here)
            folders.clear()
            continue
        yield here, sorted(name for name in files if not name.startswith("."))


def _holds_data(folder: Path, files: list[str]) -> bool:
    """Whether a folder is a rollout file, a checkpoint, or a model (config.json names its type)."""
    if folder.name.startswith("global_step_"):
        return True
    if any(name.startswith("part-") and name.endswith(".parquet") for name in files):
        return True
    if "config.json" not in files:
        return False
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _read_folder(folder: Path, files: list[str], found: Found) -> None:
    left = set(files)
    names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    for name in sorted(names, key=len, reverse=True):  # the longest name claims its files first
        mine = {file for file in left if file.startswith(name)}
        try:
            result = _read_result(folder, name, mine, found)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            found.broken.append((folder / f"{name}.json", _reason(error)))
            left -= {f"{name}.json"}
            continue
        if result is not None:
            found.results.append(result)
            endings = (".json", ".jsonl", ".csv", ".png", ".html")
            left -= {file for file in mine if file.endswith(endings)}
    for name in sorted(left):
        path = folder / name
        (found.data if path.suffix in _LOGS else found.unknown).append(path)
    found.results.sort(key=lambda result: (str(result.folder), result.name))


def _read_result(folder: Path, name: str, files: set[str], found: Found) -> FoundResult | None:
    """The result, or None for a JSON file that stands alone or holds no figures."""
    path = folder / f"{name}.json"
    figures, headline = read_figures(path)
    alone = not any(file.endswith((".jsonl", ".csv", ".png")) for file in files)
    if alone or not isinstance(figures, dict) or not figures:
        return None
    return FoundResult(
        name=name,
        folder=folder,
        figures=figures,
        headline=headline,
        tables=_tables(folder, name, files, found),
        pictures=_pictures(folder, files, found),
        written=datetime.fromtimestamp(path.stat().st_mtime, UTC),
    )


def _tables(
    folder: Path, name: str, files: set[str], found: Found
) -> dict[str, list[dict[str, Any]]]:
    lines = folder / f"{name}.jsonl"
    if lines.name in files:
        try:
            return load_tables(lines)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            found.broken.append((lines, _reason(error)))
    tables = {}
    for file in sorted(file for file in files if file.endswith(".csv")):
        key = file.removesuffix(".csv").removeprefix(name).strip("_") or name
        try:
            with (folder / file).open(newline="") as rows:
                tables[key] = list(csv.DictReader(rows))
        except (OSError, ValueError, csv.Error) as error:
            found.broken.append((folder / file, _reason(error)))
    return tables


def _pictures(folder: Path, files: set[str], found: Found) -> list[Path]:
    pictures = []
    for file in sorted(file for file in files if file.endswith(".png")):
        data = (folder / file).read_bytes()
        if data.startswith(_PNG) and data.endswith(_PNG_END):
            pictures.append(folder / file)
        else:
            found.broken.append((folder / file, "it is not a whole PNG file"))
    return pictures


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"a row has no {error}"
    return str(error) or type(error).__name__
