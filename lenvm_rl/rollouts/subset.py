"""Which rows make a smaller training set: fewer prompts, fewer completions of each?

Subsets are nested, so that a comparison of sizes is one of sizes alone: prompts are ordered by a
keyed hash of their token ids and the first so many are taken, and of every prompt the completions
with the smallest `sample_id`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.atomic import whole_rollout_file
from lenvm_rl.rollouts.columns import row_digests
from lenvm_rl.rollouts.layout import DERIVED_METADATA
from lenvm_rl.rollouts.reader import RolloutReader


@dataclass(frozen=True)
class SubsetReport:
    """What a subset holds. Prompts are counted by content."""

    rows: int
    prompts: int
    samples: int
    """Completions of each prompt."""
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return asdict(self)


def nested_subset(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    prompts: int,
    samples: int,
    seed: int = 0,
) -> SubsetReport:
    """Write the rows of `prompts` prompts with `samples` completions each, in two passes.

    With one seed, a subset of fewer prompts or samples is a part of one of more. Memory is a few
    times 8 bytes per row.

    Args:
        path: rollout file or directory.
        out: where the subset goes; must not exist. It appears when whole.
        prompts, samples: at least 1.
        seed: another seed takes other prompts.
    Raises:
        ValueError: the file has fewer prompts, or some taken prompt has fewer completions.
    """
    for name, count in (("prompts", prompts), ("samples", samples)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    reader = RolloutReader(path)
    taken = _taken(reader, prompts, samples, f"subset-{seed}".encode())
    settings = {key: reader.metadata[key] for key in DERIVED_METADATA if key in reader.metadata}
    done = 0
    with whole_rollout_file(out, **settings) as writer:
        for batch in reader.iter_batches():
            part = batch.filter(pa.array(taken[done : done + batch.num_rows]))
            done += batch.num_rows
            if part.num_rows:
                writer.append_batch(part, media=reader.media)
    return SubsetReport(rows=prompts * samples, prompts=prompts, samples=samples, seed=seed)


def content_fingerprint(path: str | os.PathLike[str]) -> str:
    """16 hex digits of what a rollout file holds: its token ids, which were cut, the tokenizer.

    The order of the rows counts (training visits them by number), their division into shards and
    their names do not.
    """
    reader = RolloutReader(path)
    digest = blake2b(str(reader.metadata["tokenizer_sha"]).encode(), digest_size=8)
    for batch in reader.iter_batches(["prompt_ids", "response_ids", "finish_reason"]):
        rows = [
            row_digests(batch.column(0)),
            row_digests(batch.column(1)),
            np.array([reason == "length" for reason in batch.column(2).to_pylist()], np.uint64),
        ]
        digest.update(np.stack(rows, axis=1).astype("<u8").tobytes())
    return digest.hexdigest()


def _taken(reader: RolloutReader, prompts: int, samples: int, key: bytes) -> np.ndarray:
    """Which rows belong to the subset, [N] bool in file order."""
    digests, numbers = [], []
    for batch in reader.iter_batches(["prompt_ids", "sample_id"]):
        digests.append(row_digests(batch.column(0), key=key))
        numbers.append(batch.column(1).to_numpy())
    digest_N, number_N = np.concatenate(digests), np.concatenate(numbers)
    unique, counts = np.unique(digest_N, return_counts=True)
    if len(unique) < prompts:
        raise ValueError(
            f"{reader.path} has {len(unique)} unique prompts, {prompts} were asked for: ask for "
            "fewer, or sample more."
        )
    if (short := int((counts[:prompts] < samples).sum())) > 0:
        raise ValueError(
            f"{reader.path}: {short} of {prompts} prompts have fewer than {samples} completions "
            f"(the fewest: {counts[:prompts].min()}). Ask for fewer, or sample more."
        )
    # Rank of every row within its prompt, by sample_id and then by place in the file.
    order = np.lexsort((np.arange(len(digest_N)), number_N, digest_N))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank_N = np.empty(len(digest_N), dtype=np.int64)
    rank_N[order] = np.arange(len(digest_N)) - np.repeat(starts, counts)
    return (digest_N <= unique[prompts - 1]) & (rank_N < samples)
