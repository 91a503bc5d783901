"""Prompts of a set by its name: loaded, filtered, deduplicated, shuffled, split.

A prompt is known by its content: a 64-bit digest of its messages and images. The first of equal
prompts is kept. With a seed, prompts are ordered by a keyed digest: a shuffle that does not depend
on the order of the rows. A prompt is held out if its keyed digest falls below the fraction, so that
equal prompts are on one side in every file, whatever the seed and the number of rows.

On the command line `SET[/SPLIT][@SOURCE][:COUNT]` names a set, where it is, and how many of it:

    gsm8k                      the set's usual split, from the hub
    gsm8k/train@data/gsm8k     another split, from a folder or file (`hub`, `owner/name` too)
    math500@data/math:100      100 prompts of it, drawn by the seed
    column=question@FILE:50    a column of any data set, asked as it stands
    column=question,answer@FILE    the same with ground truths from another column
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.rows import read_rows
from lenvm_rl.prompts.sets.coding import HUMANEVAL, MBPP, OPENCODE
from lenvm_rl.prompts.sets.instructions import (
    IFEVAL,
    IFEVAL_RULES,
    LIFEBENCH,
    MT_BENCH,
    TINYSTORIES,
    WILDCHAT,
)
from lenvm_rl.prompts.sets.mathematics import AIME, DEEPMATH, GSM8K, MATH500
from lenvm_rl.prompts.sets.pictures import MATHVISTA, ONEVISION
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row, column_set

PROMPT_SETS: dict[str, PromptSet] = {
    one.name: one
    for one in (
        *(DEEPMATH, WILDCHAT, OPENCODE, ONEVISION),  # the paper's training sets first
        *(GSM8K, MATH500, AIME, HUMANEVAL, MBPP, IFEVAL, IFEVAL_RULES),
        *(MT_BENCH, TINYSTORIES, LIFEBENCH, MATHVISTA),
    )
}
"""Sets that are known by name."""
SYNTAX = "SET[/SPLIT][@SOURCE][:COUNT]"
_COLUMN = "column="
_NAME = re.compile(
    r"[^@:/]+(?:/(?P<split>[^@:]+))?(?:@(?P<source>.+?))?(?::(?P<count>[0-9]+))?", re.DOTALL
)


@dataclass(kw_only=True)
class LoadedPrompts:
    """Prompts of a set, and what became of its rows."""

    prompts: list[Prompt] = field(default_factory=list)
    heldout: list[Prompt] = field(default_factory=list)
    rows: int = 0
    """Rows read."""
    filtered: int = 0
    """Rows that the set's own filter leaves out."""
    duplicates: int = 0
    """Rows whose prompt an earlier row had."""
    excluded: int = 0
    """Rows whose prompt is among those to exclude."""

    def counts(self) -> dict[str, int]:
        """JSON-able figures."""
        return {
            "rows": self.rows,
            "filtered": self.filtered,
            "duplicates": self.duplicates,
            "excluded": self.excluded,
            "prompts": len(self.prompts),
            "heldout": len(self.heldout),
        }


def load_prompt_set(
    which: str | PromptSet,
    *,
    source: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    heldout: float = 0.0,
    exclude: Iterable[Prompt] = (),
    keep_duplicates: bool | None = None,
) -> LoadedPrompts:
    """Prompts of a set.

    Args:
        which: a name of `PROMPT_SETS`, or a set.
        source: folder, file or hub name of the data; None is the set's place on the hub.
        split: of the data set; None is the set's usual one.
        limit: maximum number of prompts, and of held-out ones.
        seed: of the order; None keeps the order of the rows.
        heldout: share of the prompts to hold out, in [0, 1), by chance of each prompt.
        exclude: prompts that may not occur, e.g. those of another split.
        keep_duplicates: keep equal prompts; None is the set's `repeats`.
    Raises:
        ValueError: an unknown set, nothing there, a row without what its grader needs, ...
    """
    chosen = _set_of(which)
    if not 0.0 <= heldout < 1.0:
        raise ValueError(f"heldout must be a share in [0, 1), got {heldout}: 0.05 is usual.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 prompt, got {limit}.")
    split = split or chosen.split
    place = None if source is None else str(source)
    if not chosen.hub and place in (None, "hub"):
        raise ValueError(
            f"{chosen.about} of what? Name a folder, a file, or owner/name on the hub as source."
        )
    rows = read_rows(place, hub=chosen.hub, config=chosen.config, split=split, drop=chosen.drop)
    loaded = LoadedPrompts()
    kept = list(
        _distinct(
            _built(chosen, rows, split, place),
            loaded,
            taken={prompt_digest(prompt) for prompt in exclude},
            keep_duplicates=chosen.repeats if keep_duplicates is None else keep_duplicates,
        )
    )
    if not kept:
        raise ValueError(
            f"{chosen.name}: no prompts left of {loaded.rows} rows of {place or chosen.hub}, split "
            f"{split!r} ({loaded.filtered} filtered, {loaded.excluded} excluded)."
        )
    if seed is not None:
        kept.sort(key=lambda pair: _keyed(pair[0], f"order-{seed}"))
    bound = heldout * 2**64
    for digest, prompt in kept:
        side = loaded.heldout if _keyed(digest, "heldout") < bound else loaded.prompts
        if limit is None or len(side) < limit:
            side.append(prompt)
    return loaded


def prompt_digest(prompt: Prompt) -> int:
    """64-bit blake2b digest of a prompt's roles, texts (blanks around them aside) and images."""
    digest = blake2b(digest_size=8)
    for message in prompt.messages:
        digest.update(f"{message['role']}\0{message['content'].strip()}\0".encode())
    for image in prompt.images:
        digest.update(f"\1{image}\0".encode())
    return int.from_bytes(digest.digest(), "little")


def _keyed(digest: int, key: str) -> int:
    data = digest.to_bytes(8, "little")
    return int.from_bytes(blake2b(data, digest_size=8, key=key.encode()).digest(), "little")


def _set_of(which: str | PromptSet) -> PromptSet:
    if isinstance(which, PromptSet):
        return which
    if which not in PROMPT_SETS:
        raise ValueError(
            f"there is no prompt set {which!r}: choose one of {', '.join(PROMPT_SETS)}, or give a "
            "column of any data set."
        )
    return PROMPT_SETS[which]


def _built(
    chosen: PromptSet, rows: Iterable[Mapping[str, Any]], split: str, place: str | None
) -> Iterator[Prompt | None]:
    """A prompt for every row, None where the set's filter leaves it out."""
    called = f"{chosen.name} ({place or chosen.hub}, split {split})"
    local = None if place is None else Path(place).expanduser()
    source = local if local is not None and local.exists() else None
    for index, values in enumerate(rows):
        where = f"{called}, row {index + 1}"
        built = chosen.build(
            Row(values=values, where=where, index=index, split=split, source=source)
        )
        yield None if built is None else replace(built, where=where)


def _distinct(
    built: Iterable[Prompt | None],
    counts: LoadedPrompts,
    *,
    taken: Collection[int],
    keep_duplicates: bool,
) -> Iterator[tuple[int, Prompt]]:
    """(digest, prompt) of what is kept, with distinct ids; the rest is counted."""
    seen: set[int] = set()
    ids: set[str] = set()
    for counts.rows, prompt in enumerate(built, start=1):
        digest = None if prompt is None else prompt_digest(prompt)
        if prompt is None or digest is None:
            counts.filtered += 1
        elif digest in taken:
            counts.excluded += 1
        elif digest in seen and not keep_duplicates:
            counts.duplicates += 1
        else:
            seen.add(digest)
            if prompt.prompt_id in ids:  # two prompts of one id: samples are told apart by it
                prompt = replace(prompt, prompt_id=f"{prompt.prompt_id}-row{counts.rows}")
            ids.add(prompt.prompt_id)
            yield digest, prompt


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
        limit: maximum number of prompts, whatever the name says.
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
