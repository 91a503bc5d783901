"""Which completions of a sampling run are on disk already, and could this run have made them?

A run names each completion by prompt_id and sample_id. What a killed run has written is kept when
it is what this run would write, and refused otherwise: two kinds of rows are never mixed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.files import find_shards
from lenvm_rl.rollouts.reader import RolloutReader

_READ = ["prompt_id", "sample_id", "prompt_ids", "response_ids", "finish_reason"]


@dataclass(frozen=True)
class Completed:
    """Completions that are on disk."""

    keys: set[tuple[str, int]] = field(default_factory=set)
    """(prompt_id, sample_id) of each."""
    tokens: int = 0
    """Their response tokens, EOS included."""
    truncated: int = 0
    """How many of them the token limit ended."""
    with_unknown_ids: int = 0
    """How many of them hold ids that stand for no token."""


def completion_seed(seed: int, prompt_id: str, sample_id: int) -> int:
    """Seed of one completion in [0, 2**63): a digest, so that neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed}/{sample_id}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def completed(
    out: str | os.PathLike[str],
    expected: Callable[[str, int], dict[str, Any] | None],
    *,
    tokenizer_sha: str,
    retokenized: bool = False,
    token_count: int | None = None,
) -> Completed:
    """What the directory `out` holds of a run; nothing when it has no whole shard yet.

    Args:
        expected: called as `expected(prompt_id, sample_id)`; "prompt_ids", "sampling", "policy" and
            "guidance" as this run writes them, or None for a completion that it would not make.
        tokenizer_sha: of the run.
        retokenized: of the run, see `RolloutWriter`.
        token_count: of the run, see `SamplingRun`.
    Raises:
        ValueError: a completion that this run would not make, one that is there twice, or another
            tokenizer or guidance.
    """
    if not Path(out).is_dir() or not find_shards(out).paths:
        return Completed()
    reader = RolloutReader(out, tokenizer_sha=tokenizer_sha)
    if bool(reader.metadata.get("retokenized")) != retokenized:
        raise ValueError(
            f"{out} and this run differ in whether token ids come from the engine or from text. "
            "Resume with the same arguments, or write to another directory."
        )
    keys: set[tuple[str, int]] = set()
    tokens = truncated = unknown = 0
    for row in reader.iter_rows([*_READ, "sampling", "policy", "guidance"]):
        key = row["prompt_id"], row["sample_id"]
        _check(out, key, row, expected(*key))
        if key in keys:
            raise ValueError(
                f"{out} holds completion {key[1]} of prompt {key[0]!r} twice: it was not written "
                "by one run. Write to another directory."
            )
        keys.add(key)
        tokens += len(row["response_ids"])
        truncated += row["finish_reason"] == "length"
        unknown += token_count is not None and max(row["response_ids"]) >= token_count
    return Completed(keys, tokens, truncated, unknown)


def _check(out: Any, key: tuple[str, int], row: dict[str, Any], wanted: dict | None) -> None:
    if wanted is not None and all(row[name] == wanted[name] for name in wanted):
        return
    if wanted is not None and row["guidance"] != wanted["guidance"]:
        raise ValueError(
            f"{out} holds completions with guidance {row['guidance']}, this run's is "
            f"{wanted['guidance']}. Resume with the same arguments, or write to another directory."
        )
    found = None if wanted is None else {name: row[name] for name in ("sampling", "policy")}
    raise ValueError(
        f"{out} holds completion {key[1]} of prompt {key[0]!r}, which this run would "
        f"not make (found {found}): it was sampled with other prompts, settings or seed. "
        "Resume with the same arguments, or write to another directory."
    )


def check_distinct(prompt_ids: Iterable[str]) -> None:
    """Raise ValueError for a prompt_id that occurs twice."""
    seen: set[str] = set()
    for prompt_id in prompt_ids:
        if prompt_id in seen:
            raise ValueError(
                f"prompt_id {prompt_id!r} occurs twice: completions are told apart by it."
            )
        seen.add(prompt_id)
