"""Data of a grid: a rollout file split by prompt, nested subsets of it, and what is known of both.

OUT/data/<fingerprint>/   train and heldout (split by prompt), and one nested subset per size
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lenvm_rl.core import gamma_for_length
from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutReader, shared_prompts, split_by_prompt
from lenvm_rl.rollouts.columns import list_lengths
from lenvm_rl.rollouts.parts import content_fingerprint, nested_subset


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rollouts of one policy, split by prompt, and what a run must know about them."""

    fingerprint: str
    """Of both parts and of how the second is read."""
    folder: Path
    """Holds the subsets."""
    train: Path
    heldout: Path
    heldout_samples: int
    """Completions of each held-out prompt that are judged on."""
    tokenizer: str
    """Directory or hub name of the policy."""
    gamma: float
    """`0.01 ** (1 / p99)` of the training lengths."""
    p99: float
    """99th percentile of the training lengths in tokens."""
    longest_response: int
    longest_sequence: int
    """Prompt and response."""
    share_truncated: float

    def subset(self, prompts: int, samples: int) -> Path:
        """Rollout file of the first so many prompts and samples; made when it is not there."""
        path = self.folder / f"p{prompts}-s{samples}"
        if not path.exists():
            nested_subset(self.train, path, prompts=prompts, samples=samples)
        return path


def prepare_data(
    rollouts: str | Path,
    out: str | Path,
    *,
    policy: str | Path,
    heldout: str | Path | None = None,
    heldout_prompts: int = 200,
    heldout_samples: int = 2,
    seed: int = 0,
) -> Data:
    """Split a rollout file by prompt into OUT/data, once, and read its lengths.

    Args:
        rollouts: completions, several of each prompt.
        policy: directory or hub name of the policy that wrote them.
        heldout: rollout file to judge on, in place of a split.
        heldout_prompts: prompts that the split holds out.
        heldout_samples: completions of each of them that are judged on.
        seed: of the split.
    Raises:
        ValueError: rollouts of another tokenizer than the policy's, or prompts on both sides.
    """
    sha = tokenizer_sha(load_tokenizer(policy))
    RolloutReader(rollouts, tokenizer_sha=sha)
    source = content_fingerprint(rollouts)
    if heldout is None:
        name = f"{source}-{heldout_prompts}-{seed}"
        folder = Path(out) / "data" / name
        train, held = folder / "train", folder / "heldout"
        if not (train.exists() and held.exists()):
            for part in (train, held):  # one without the other is a killed split
                shutil.rmtree(part, ignore_errors=True)
            split_by_prompt(rollouts, train, held, heldout_prompts=heldout_prompts, seed=seed)
    else:
        RolloutReader(heldout, tokenizer_sha=sha)
        if (shared := shared_prompts([rollouts, heldout])) > 0:
            raise ValueError(
                f"{shared} prompts are both in {rollouts} and in {heldout}: what was trained on "
                "cannot be judged on. Leave --heldout out to split by prompt."
            )
        name = f"{source}-{content_fingerprint(heldout)}"
        folder, train, held = Path(out) / "data" / name, Path(rollouts), Path(heldout)
    return Data(
        fingerprint=f"{name}-{heldout_samples}",
        folder=folder,
        train=train,
        heldout=held,
        heldout_samples=heldout_samples,
        tokenizer=str(policy),
        **_lengths(train, held),
    )


def _lengths(train: Path, heldout: Path) -> dict[str, Any]:
    """Facts about the lengths of both parts, as fields of `Data`."""
    trained = RolloutReader(train).lengths()
    longest, sequence, truncated, rows = int(trained.max()), 0, 0, 0
    for path in (train, heldout):
        for batch in RolloutReader(path).iter_batches(
            ["prompt_ids", "response_ids", "finish_reason"]
        ):
            lengths = list_lengths(batch.column(1))
            longest = max(longest, int(lengths.max()))
            sequence = max(sequence, int((list_lengths(batch.column(0)) + lengths).max()))
            truncated += batch.column(2).to_pylist().count("length")
            rows += batch.num_rows
    p99 = float(np.quantile(trained, 0.99))
    return {
        "gamma": gamma_for_length(p99),
        "p99": p99,
        "longest_response": longest,
        "longest_sequence": sequence,
        "share_truncated": truncated / rows,
    }


def heldout_rows(path: str | Path, *, samples: int) -> list[Rollout]:
    """The first `samples` completions of every held-out prompt.

    Raises:
        ValueError: `samples` below 1.
    """
    if samples < 1:
        raise ValueError(f"held-out samples must be at least 1, got {samples}.")
    rows: list[Any] = list(RolloutReader(path).iter_rows())
    rows.sort(key=lambda row: (row.prompt_id, row.sample_id))
    by_prompt: dict[str, list[Rollout]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    return [row for group in by_prompt.values() for row in islice(group, samples)]
