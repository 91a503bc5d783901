"""How are prompts written, so that `read_prompts` and verl's trainers read them?

One row per prompt, in either format with the same columns:

    prompt        [{"role", "content"}, ...]
    prompt_id     str
    data_source   str: verl's reward functions tell sets apart by it
    ability       str: first part of data_source, as verl's examples have it
    reward_model  {"style": "rule", "ground_truth": str or null}
    extra_info    {"index": row number, "extra": JSON of `Prompt.extra`}
    images        [{"image": data URI, URL or path}]; only where some prompt has images

`extra` is JSON inside a string because Parquet gives all rows of a struct the keys of all others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.atomic import replacing

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
