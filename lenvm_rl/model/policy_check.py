"""Refusal of rollouts of another policy than the one whose lengths the LenVM predicts.

A value belongs to one policy: another one ends its responses elsewhere, and the figures would look
like those of a bad model. The tokenizers must agree (ids would mean other text); the names of the
policies must agree where both are known, up to the folder they lie in.
"""

from __future__ import annotations

from pathlib import Path

from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.tokens import check_tokenizer_sha
from lenvm_rl.rollouts import RolloutReader


def open_rollouts(
    model: LengthValueModel, path: str | Path, *, any_policy: bool = False
) -> RolloutReader:
    """A reader of rollouts that fit the model.

    Args:
        model: the LenVM; what it knows of its policy is in its configuration.
        path: rollout file.
        any_policy: measure on another policy on purpose; the tokenizers must agree still.
    Raises:
        ValueError: another tokenizer, or (unless `any_policy`) a row of another policy.
    """
    reader = RolloutReader(path)
    policy = model.config.policy or {}
    check_tokenizer_sha(
        policy.get("tokenizer_sha"),
        reader.metadata["tokenizer_sha"],
        expected_of="the LenVM",
        got_of=str(path),
    )
    if policy.get("name") and not any_policy:
        for name in sorted(_policies(reader)):
            if not _same(name, policy["name"]):
                raise ValueError(
                    f"{path} holds completions of policy {name!r}, but the LenVM predicts lengths "
                    f"of {policy['name']!r}: another policy ends elsewhere, and every figure would "
                    "be about that. Sample its own policy, or accept it on purpose (--any-policy)."
                )
    return reader


def _policies(reader: RolloutReader) -> set[str]:
    """Names of the policies in the file, where rows say one."""
    names: set[str] = set()
    for batch in reader.iter_batches(["policy"]):
        names |= set(batch.column(0).field("name").unique().to_pylist())
    return {name for name in names if name}


def _same(one: str, other: str) -> bool:
    """Hub names, directories and short names may mean the same model: the last part of one must
    be a part of the other."""
    parts = [Path(name.lower()).parts for name in (one, other)]
    return parts[0][-1] in parts[1] or parts[1][-1] in parts[0]
