"""Which prompts shall be sampled? Read them from JSONL or Parquet, verl's own data files included.

Accepted columns, one prompt per row:

    prompt        a string (becomes one user message) or a list of {"role", "content"} messages
    prompt_id     optional; the row number otherwise
    data_source   optional; the file's name otherwise
    ground_truth  optional; `reward_model.ground_truth` (verl) is read too
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt to sample completions for, before any tokenizer has seen it."""

    prompt_id: str
    messages: list[Message]
    data_source: str = ""
    ground_truth: str | None = None


def read_prompts(path: str | Path, *, limit: int | None = None) -> list[Prompt]:
    """Prompts of a `.jsonl` or `.parquet` file, in order, with unique ids.

    Args:
        limit: read at most so many.

    Raises:
        ValueError: missing or empty file, unknown ending, a bad row (named by its number), or an
            id that occurs twice.
    """
    path = Path(path)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, row in enumerate(_rows(path), start=1):
        if limit is not None and len(prompts) >= limit:
            break
        prompt = _prompt_of(row, number=number, path=path)
        if prompt.prompt_id in seen:
            raise ValueError(
                f"{path}, row {number}: prompt_id {prompt.prompt_id!r} occurs twice. Samples are "
                "told apart by it: make ids unique, or drop the column to use row numbers."
            )
        seen.add(prompt.prompt_id)
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompts: expected rows with a 'prompt' column.")
    return prompts


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a .jsonl or .parquet file of prompts.")
    if path.suffix in (".jsonl", ".json"):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number}: expected an object, got {row!r}.")
                yield row
    elif path.suffix == ".parquet":
        try:
            file = pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    else:
        raise ValueError(f"{path}: prompts are read from .jsonl or .parquet, not {path.suffix!r}.")


def _prompt_of(row: dict[str, Any], *, number: int, path: Path) -> Prompt:
    content = row.get("prompt")
    if isinstance(content, str) and content.strip():
        messages = [{"role": "user", "content": content}]
    elif isinstance(content, list) and content and all(map(_is_message, content)):
        messages = [{"role": m["role"], "content": m["content"]} for m in content]
    else:
        raise ValueError(
            f"{path}, row {number}: 'prompt' must be a non-empty string or a list of messages with "
            f"'role' and 'content', got {str(content)[:80]!r} (columns: {sorted(row)})."
        )
    truth = row.get("ground_truth")
    if truth is None:
        truth = (row.get("reward_model") or {}).get("ground_truth")
    identity = row.get("prompt_id")
    return Prompt(
        prompt_id=str(number - 1 if identity is None else identity),
        messages=messages,
        data_source=str(row.get("data_source") or path.stem),
        ground_truth=None if truth is None else str(truth),
    )


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )
