"""What occurs more than once in a rollout file, judged by content.

Three things are told apart:

    repeated completions   rows whose prompt and response tokens both occurred in an earlier row
    one prompt, many ids   prompts (by tokens) that occur under several values of `prompt_id`
    one id, many prompts   values of `prompt_id` that stand for several prompts

The first is often legitimate (a policy may say the same twice, and short answers will), the second
is how a split by id leaks, and the third is a mistake of the producer. Nothing is removed here.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.columns import content_digest, list_view, name_digests, prompt_digests
from lenvm_rl.rollouts.reader import RolloutReader

_COLUMNS = ["prompt_id", "sample_id", "prompt_ids", "response_ids", "pictures"]


@dataclass(frozen=True)
class DuplicateReport:
    """Counts of what occurs more than once."""

    rows: int
    unique_prompts: int
    """Distinct prompts by content."""
    repeated_completions: int
    """Rows that repeat the prompt and response of an earlier row."""
    prompts_with_many_ids: int
    """Prompts that occur under more than one `prompt_id`."""
    ids_with_many_prompts: int
    """`prompt_id`s that stand for more than one prompt."""
    examples: list[dict[str, Any]]
    """First rows that repeat an earlier one: row, repeats_row, prompt_id, sample_id."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return asdict(self)


def find_duplicates(
    path: str | os.PathLike[str], *, max_examples: int = 10, progress: bool = False
) -> DuplicateReport:
    """Count repetitions by content, and name the first ones.

    Memory is 8 bytes per row and 16 per prompt (per row, where a prompt's rows are not adjacent);
    token ids are never kept. Repetitions are named in a second pass.

    Args:
        path: rollout file or directory.
        max_examples: how many repeating rows to name.
        progress: show bars.
    """
    reader = RolloutReader(path)
    completions, names = [], []
    columns = ["prompt_id", "prompt_ids", "response_ids", "pictures"]
    for batch in reader.iter_batches(columns, bar="hashing rows" if progress else None):
        prompts = prompt_digests(batch)
        completions.append(_completion_digests(batch, prompts))
        names.append(np.unique(np.stack([prompts, _id_digests(batch)], axis=1), axis=0))
    unique, counts = np.unique(np.concatenate(completions), return_counts=True)
    named = np.unique(np.concatenate(names), axis=0)
    # A digest in several of the distinct (prompt, id) pairs has several partners.
    ids_of_prompt = np.unique(named[:, 0], return_counts=True)[1]
    prompts_of_id = np.unique(named[:, 1], return_counts=True)[1]
    repeated = unique[counts > 1]
    return DuplicateReport(
        rows=len(reader),
        unique_prompts=len(ids_of_prompt),
        repeated_completions=int((counts - 1).sum()),
        prompts_with_many_ids=int((ids_of_prompt > 1).sum()),
        ids_with_many_prompts=int((prompts_of_id > 1).sum()),
        examples=_examples(reader, repeated, max_examples) if len(repeated) else [],
    )


def _completion_digests(batch: pa.RecordBatch, prompts: np.ndarray) -> np.ndarray:
    """Digest of each row's prompt and response together, [N] uint64."""
    values, offsets = list_view(batch.column("response_ids"))
    rows = zip(prompts.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    digests = [
        content_digest(values[start:end], key=prompt.to_bytes(8, "little"))
        for prompt, start, end in rows
    ]
    return np.asarray(digests, dtype=np.uint64)


def _id_digests(batch: pa.RecordBatch) -> np.ndarray:
    """Digest of each row's `prompt_id`, [N] uint64."""
    codes = batch.column("prompt_id").dictionary_encode()
    return name_digests(codes.dictionary.to_pylist())[codes.indices.to_numpy()]


def _examples(reader: RolloutReader, repeated: np.ndarray, limit: int) -> list[dict[str, Any]]:
    """The first rows that repeat an earlier one.

    Args:
        repeated: sorted digests of the completions that occur more than once.
    """
    found: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    row = 0
    for batch in reader.iter_batches(_COLUMNS):
        digests = _completion_digests(batch, prompt_digests(batch))
        for index in np.flatnonzero(np.isin(digests, repeated)).tolist():
            if len(found) == limit:
                return found
            digest = int(digests[index])
            if digest in first:
                example = {"row": row + index, "repeats_row": first[digest]}
                for name in ("prompt_id", "sample_id"):
                    example[name] = batch.column(name)[index].as_py()
                found.append(example)
            else:
                first[digest] = row + index
        row += batch.num_rows
    return found
