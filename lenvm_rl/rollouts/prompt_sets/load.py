"""How does a set become prompts to sample? Loaded, filtered, deduplicated, shuffled, split.

A prompt is known by its content: a 64-bit digest of its messages and images. The first of equal
prompts is kept. With a seed, prompts are ordered by a keyed digest: a shuffle that does not depend
on the order of the rows. A prompt is held out if its keyed digest falls below the fraction, so that
equal prompts are on one side in every file, whatever the seed of the order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.prompt_sets.catalogue import PROMPT_SETS
from lenvm_rl.rollouts.prompt_sets.prompt_set import PromptSet, Row
from lenvm_rl.rollouts.prompt_sets.rows import read_rows
from lenvm_rl.rollouts.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class LoadedPrompts:
    """Prompts of a set, and what became of its rows."""

    prompts: list[Prompt]
    heldout: list[Prompt] = field(default_factory=list)
    rows: int
    """Rows read."""
    filtered: int
    """Rows that the set's own filter leaves out."""
    duplicates: int
    """Rows whose prompt an earlier row had."""
    excluded: int = 0
    """Prompts that another file has already."""

    def counts(self) -> dict[str, Any]:
        """JSON-able figures."""
        figures = {key: value for key, value in asdict(self).items() if isinstance(value, int)}
        return {**figures, "prompts": len(self.prompts), "heldout": len(self.heldout)}


def load_prompt_set(
    which: str | PromptSet,
    *,
    source: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    heldout: float = 0.0,
    exclude: Collection[Prompt] = (),
    keep_duplicates: bool = False,
) -> LoadedPrompts:
    """Prompts of a set.

    Args:
        which: a name of `PROMPT_SETS`, or a set.
        source: folder, file or hub name of the data; None is the set's place on the hub.
        split: of the data set; None is the set's usual one.
        limit: at most so many prompts (and held-out prompts), counted at the end.
        seed: of the order; None keeps the order of the rows.
        heldout: share of the prompts to hold out, in [0, 1).
        exclude: prompts that may not occur, e.g. those of the other split.
        keep_duplicates: keep equal prompts, for a benchmark's official number of items.
    Raises:
        ValueError: an unknown set, nothing there, a row without what its grader needs, ...
    """
    chosen = _set_of(which)
    if not 0.0 <= heldout < 1.0:
        raise ValueError(f"heldout must be a share in [0, 1), got {heldout}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 prompt, got {limit}.")
    split = split or chosen.split
    found = read_rows(
        None if source is None else str(source), hub=chosen.hub, config=chosen.config, split=split
    )
    taken = {prompt_digest(prompt) for prompt in exclude}
    seen: set[int] = set()
    kept: list[tuple[int, Prompt]] = []
    rows = filtered = duplicates = excluded = 0
    for rows, prompt in enumerate(_built(chosen, found, split, source), start=1):  # noqa: B007
        if prompt is None:
            filtered += 1
            continue
        digest = prompt_digest(prompt)
        if digest in taken:
            excluded += 1
        elif digest in seen and not keep_duplicates:
            duplicates += 1
        else:
            seen.add(digest)
            kept.append((digest, prompt))
    if not kept:
        raise ValueError(f"{chosen.name}: no prompts in {rows} rows of split {split!r}.")
    if seed is not None:
        kept.sort(key=lambda pair: _keyed(pair[0], f"order-{seed}"))
    out = [_keyed(digest, "heldout") < heldout * 2**64 for digest, _ in kept]
    sides = {
        side: [prompt for (_, prompt), is_out in zip(kept, out, strict=True) if is_out == side]
        for side in (False, True)
    }
    return LoadedPrompts(
        prompts=sides[False][:limit],
        heldout=sides[True][:limit],
        rows=rows,
        filtered=filtered,
        duplicates=duplicates,
        excluded=excluded,
    )


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
            f"there is no prompt set {which!r}: choose one of {', '.join(PROMPT_SETS)}."
        )
    return PROMPT_SETS[which]


def _built(
    chosen: PromptSet, found: Any, split: str, source: str | Path | None
) -> Iterator[Prompt | None]:
    place = source or chosen.hub
    for index, values in enumerate(found):
        where = f"{chosen.name} ({place}, split {split}), row {index + 1}"
        yield chosen.build(Row(values=values, where=where, index=index, split=split))
