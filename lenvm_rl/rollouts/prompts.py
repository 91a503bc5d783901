"""Which prompts shall be sampled? Read them from JSONL or Parquet, verl's own data files included.

Accepted columns, one prompt per row:

    prompt        a string (becomes one user message) or a list of {"role", "content"} messages
    prompt_id     optional; the row number otherwise
    data_source   optional; the file's name otherwise
    ground_truth  optional; `reward_model.ground_truth` (verl) is read too
    extra         optional; an object, or its JSON: what graders need besides the ground truth.
                  verl's `extra_info` is read too (its `extra` as JSON, other keys but the index)
    images        optional; verl's list of {"image": data URI, URL or path} or {"bytes": ...}

`write_prompts` (prompt_files.py) writes such files.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts of the prompt's data set, what its grader needs among them."""
    images: list[str] = field(default_factory=list)
    """Data URIs, URLs or paths; each stands for one `<image>` in the messages."""


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
        extra=_extra_of(row, where=f"{path}, row {number}"),
        images=[_image_of(cell, where=f"{path}, row {number}") for cell in row.get("images") or []],
    )


def _extra_of(row: dict[str, Any], *, where: str) -> dict[str, Any]:
    info = dict(row.get("extra_info") or {})
    own = row.get("extra", info.pop("extra", None))
    if isinstance(own, str):
        try:
            own = json.loads(own)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: 'extra' is not JSON: {error}") from error
    if own is not None and not isinstance(own, dict):
        raise ValueError(f"{where}: 'extra' must be an object or its JSON, got {own!r:.80}.")
    # a Parquet struct has every row's keys: None is "not here"
    known = {key: value for key, value in info.items() if key != "index" and value is not None}
    return {**known, **(own or {})}


def _image_of(cell: Any, *, where: str) -> str:
    """An image as text: what `Prompt.images` holds."""
    if isinstance(cell, dict):
        data = cell.get("bytes")
        cell = image_uri(data) if data else cell.get("image") or cell.get("path")
    if not isinstance(cell, str) or not cell:
        raise ValueError(
            f"{where}: an image must be a data URI, URL, path, or an object with 'image' or "
            f"'bytes', got {cell!r:.80}."
        )
    return cell


def image_uri(data: bytes) -> str:
    """The bytes of a PNG, JPEG, WebP or GIF file as a data URI."""
    magic = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}
    kind = next((name for start, name in magic.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError(f"{data[:8]!r}... is no PNG, JPEG, WebP or GIF image: convert it first.")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )
