"""What does `gsm8k/train@DIR:100` stand for? A prompt set, where it is, and how many of it.

SET[/SPLIT][@SOURCE][:COUNT]

gsm8k                      the set's usual split, from the hub
gsm8k/train@data/gsm8k     another split, from a folder or file (`hub`, `owner/name` too)
math500@data/math:100      100 prompts of it, drawn by the seed
column=question@FILE:50    a column of any data set, asked as it stands
column=question,answer@FILE    the same with ground truths from another column
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.catalogue import PROMPT_SETS
from lenvm_rl.prompts.sets.column import column_set
from lenvm_rl.prompts.sets.load import load_prompt_set
from lenvm_rl.prompts.sets.prompt_set import PromptSet

SYNTAX = "SET[/SPLIT][@SOURCE][:COUNT]"
_COLUMN = "column="
_NAME = re.compile(
    r"[^@:/]+(?:/(?P<split>[^@:]+))?(?:@(?P<source>.+?))?(?::(?P<count>[0-9]+))?", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class SetName:
    """A set as it is named on the command line."""

    chosen: PromptSet
    split: str | None
    source: str | None
    count: int | None


def parse_set_name(text: str) -> SetName | None:
    """What `text` names; None if it does not begin with the name of a set.

    Raises:
        ValueError: it does, but the rest makes no sense.
    """
    first = re.split("[@:/]", text, maxsplit=1)[0]
    if first not in PROMPT_SETS and not first.startswith(_COLUMN):
        return None
    found = _NAME.fullmatch(text)
    if found is None or found["count"] == "0":
        raise ValueError(
            f"{text!r} cannot be read: write {SYNTAX}, e.g. {first}@DIR:100 with a folder, file or "
            "hub name after @ and a positive number after the last colon."
        )
    return SetName(
        chosen=_column(first, found["source"]) if _COLUMN in first else PROMPT_SETS[first],
        split=found["split"],
        source=found["source"],
        count=int(found["count"]) if found["count"] else None,
    )


def load_named_set(name: SetName, *, seed: int, limit: int | None = None) -> list[Prompt]:
    """Distinct prompts of a named set.

    Args:
        seed: draws the prompts where fewer than all are wanted; else they stay in order.
        limit: at most so many, whatever the name says.
    """
    wanted = min((n for n in (name.count, limit) if n is not None), default=None)
    loaded = load_prompt_set(
        name.chosen,
        source=name.source,
        split=name.split,
        limit=wanted,
        seed=None if wanted is None else seed,
    )
    return loaded.prompts


def _column(name: str, source: str | None) -> PromptSet:
    column, comma, truth = name.removeprefix(_COLUMN).partition(",")
    if not column or source is None or (comma and not truth):
        raise ValueError(f"{name!r}: write column=COLUMN@SOURCE or column=COLUMN,TRUTH@SOURCE.")
    return column_set(column, truth=truth or None)
