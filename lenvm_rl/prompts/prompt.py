"""Prompts before any tokenizer has seen them, read from and written to JSONL or Parquet.

Columns that are read, one prompt per row (verl's own data files too):

    prompt        a string (becomes one user message) or a list of {"role", "content"} messages
    prompt_id     optional; the row number otherwise
    data_source   optional; the file's name otherwise
    ground_truth  optional; `reward_model.ground_truth` (verl) is read too. Text, or a value of any
                  type, which becomes its JSON
    extra         optional; an object: what graders need besides the ground truth. verl's
                  `extra_info` is read too (its `extra`, and other keys but the index)
    images        optional; verl's list of {"image": data URI, URL or path} or {"bytes": ...}; one
                  text or object is one image

Objects and lists may stand there as their JSON, as tools write them that know no nested columns.

Columns that are written, so that `read_prompts` and verl's trainers read them:

    prompt, prompt_id, data_source
    ability       str: first part of data_source, as verl's examples have it
    reward_model  {"style": "rule", "ground_truth": str or null}
    extra_info    {"index": row number, "extra": JSON of `Prompt.extra`}
    images        [{"image": data URI, URL or path}]; only where some prompt has images

`extra` is JSON inside a string because Parquet gives all rows of a struct the keys of all others.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.prompts.rows import ENDINGS, ending_of, file_rows
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.rollouts.record import truth_text

Message = dict[str, str]
_TEXT = pa.string()
_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("prompt", pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))),
    ("prompt_id", _TEXT),
    ("data_source", _TEXT),
    ("ability", _TEXT),
    ("reward_model", pa.struct([("style", _TEXT), ("ground_truth", _TEXT)])),
    ("extra_info", pa.struct([("index", pa.int64()), ("extra", _TEXT)])),
]
_IMAGES = ("images", pa.list_(pa.struct([("image", _TEXT)])))


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
    where: str = field(default="", compare=False, repr=False)
    """File (or set) and row that it was read from, for errors."""


def read_prompts(path: str | Path, *, limit: int | None = None) -> list[Prompt]:
    """Prompts of a `.jsonl`, `.parquet` or other file of `row_files`, in order, with unique ids.

    Args:
        limit: maximum number of prompts.

    Raises:
        ValueError: missing or empty file, unknown ending, a bad row (named by its number), or an
            id that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a .jsonl or .parquet file of prompts.")
    if ending_of(path) is None:
        known = ", ".join(ENDINGS)
        raise ValueError(f"{path}: prompts are read from {known}, not {path.suffix!r}.")
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, (_, row) in enumerate(file_rows(path), start=1):
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


def _prompt_of(row: dict[str, Any], *, number: int, path: Path) -> Prompt:
    where = f"{path}, row {number}"
    identity = row.get("prompt_id")
    images = row.get("images")
    if isinstance(images, str) and images.lstrip().startswith("["):
        images = _json(images, name="images", where=where)
    images = [images] if isinstance(images, (str, bytes, dict)) and images else images or []
    if not isinstance(images, list):
        raise ValueError(f"{where}: 'images' must be a list of images, got {images!r:.80}.")
    return Prompt(
        prompt_id=str(number - 1 if identity is None else identity),
        messages=_messages_of(row, where=where),
        data_source=str(row.get("data_source") or path.name.removesuffix(ending_of(path) or "")),
        ground_truth=_truth_of(row, where=where),
        extra=_extra_of(row, where=where),
        images=[_image_of(cell, where=where) for cell in images],
        where=where,
    )


def _messages_of(row: dict[str, Any], *, where: str) -> list[Message]:
    content = row.get("prompt")
    if isinstance(content, str) and content.startswith('[{"'):
        try:  # messages as JSON, unless it is a text that only begins like them
            listed = json.loads(content)
        except (ValueError, RecursionError):
            listed = None
        content = listed if isinstance(listed, list) and all(map(is_message, listed)) else content
    if isinstance(content, str) and content.strip():
        messages = [{"role": "user", "content": content}]
    elif isinstance(content, list) and content and all(map(is_message, content)):
        messages = [{"role": m["role"], "content": m["content"]} for m in content]
    else:
        raise ValueError(
            f"{where}: 'prompt' must be a non-empty string or a list of messages with 'role' and "
            f"'content', got {str(content)[:80]!r} (columns: {sorted(row)})."
        )
    try:
        "".join(m["content"] for m in messages).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the prompt has half a character (a lone surrogate), which no tokenizer "
            f"reads: {error}."
        ) from error
    return messages


def _truth_of(row: dict[str, Any], *, where: str) -> str | None:
    truth = row.get("ground_truth")
    if truth is None:
        truth = _object_of(row, "reward_model", where=where).get("ground_truth")
    try:
        return truth_text(truth)
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from error


def _extra_of(row: dict[str, Any], *, where: str) -> dict[str, Any]:
    info = _object_of(row, "extra_info", where=where)
    inner = info.pop("extra", None)
    own = _object_of(row if "extra" in row else {"extra": inner}, "extra", where=where)
    # a Parquet struct has every row's keys: None is "not here"
    known = {key: value for key, value in info.items() if key != "index" and value is not None}
    return {**known, **own}


def _object_of(row: dict[str, Any], name: str, *, where: str) -> dict[str, Any]:
    """A column that holds an object or its JSON; empty where there is none."""
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        value = _json(value, name=name, where=where)
    if value is None or value == "":
        return {}
    if isinstance(value, list) and value and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)  # a Parquet map
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {name!r} must be an object or its JSON, got {value!r:.80}.")
    return dict(value)


def _json(text: str, *, name: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {name!r} is not JSON: {error}") from error


def _image_of(cell: Any, *, where: str) -> str:
    """An image as text: what `Prompt.images` holds."""
    try:
        if isinstance(cell, dict):
            data = cell.get("bytes")
            cell = image_uri(data) if data else cell.get("image") or cell.get("path")
        if isinstance(cell, bytes):
            cell = image_uri(cell)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
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


def is_message(value: Any) -> bool:
    """True for {"role": str, "content": str} and more."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def write_prompts(prompts: Sequence[Prompt], path: str | Path) -> None:
    """Write a `.jsonl` or `.parquet` file of prompts, whole or not at all; replaces what is there.

    Raises:
        ValueError: no prompts, or another ending.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: prompts are written as .jsonl or .parquet, name one of these.")
    if not prompts:
        raise ValueError(f"there are no prompts to write to {path}.")
    pictured = any(prompt.images for prompt in prompts)
    rows = [_row(prompt, index, pictured=pictured) for index, prompt in enumerate(prompts)]
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            schema = pa.schema([*_COLUMNS, _IMAGES] if pictured else _COLUMNS)
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
        else:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(lines)


def _row(prompt: Prompt, index: int, *, pictured: bool) -> dict[str, Any]:
    extra = json.dumps(prompt.extra, ensure_ascii=False, sort_keys=True)
    row: dict[str, Any] = {
        "prompt": prompt.messages,
        "prompt_id": prompt.prompt_id,
        "data_source": prompt.data_source,
        "ability": prompt.data_source.partition("/")[0],
        "reward_model": {"style": "rule", "ground_truth": prompt.ground_truth},
        "extra_info": {"index": index, "extra": extra},
    }
    if pictured:
        row["images"] = [{"image": image} for image in prompt.images]
    return row
