"""Facts of a rollout file that must be known before training on it: one pass, memory flat.

Everything that would otherwise fail hours later, or never, is refused here: another tokenizer, a
prompt that does not fit, a response longer than the run allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lenvm_rl.core import gamma_for_length
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.rollouts.columns import list_lengths
from lenvm_rl.rollouts.lengths import LengthHistogram
from lenvm_rl.rollouts.record import batch_to_dicts, check_all_generated

_COLUMNS = ["prompt_id", "sample_id", "prompt_ids", "response_ids", "finish_reason", "loss_mask"]
_PERCENTILE = 99.0  # of the lengths, at which u = 1 - gamma**l shall be 0.99 (section 5.3)


@dataclass(frozen=True)
class RolloutFacts:
    """Sizes and origin of a rollout file."""

    path: str
    rows: int
    """Completions."""
    finished_rows: int
    """Completions that ended by themselves."""
    tokens: int
    """Response tokens, EOS included."""
    longest_prompt: int
    longest_response: int
    longest_row: int
    """Tokens of the longest prompt and response together."""
    length_p99: float
    """99th percentile of the response lengths."""
    tokenizer_sha: str
    policy: dict[str, Any]
    """name, revision (where known), tokenizer_sha: what a LenVM's configuration stores."""
    sampling: dict[str, Any]
    """Settings of the first row, without its seed."""
    answers: str = "all"
    """all, or correct: the completions that a grader called right (`lenvm grade`)."""
    segment: dict[str, Any] | None = None
    """What of their responses the rows are (`lenvm segment`); None: all of them."""

    @property
    def share_truncated(self) -> float:
        """Share of completions that the token limit truncated."""
        return 1.0 - self.finished_rows / self.rows

    @property
    def suggested_gamma(self) -> float:
        """0.01 ** (1 / p99): the longest 1 % lie beyond u = 0.99."""
        return gamma_for_length(self.length_p99)


def read_facts(
    path: str,
    *,
    tokenizer_sha: str | None,
    max_prompt_length: int,
    max_response_length: int,
) -> RolloutFacts:
    """Scan a rollout file.

    Args:
        path: file or directory.
        tokenizer_sha: fingerprint the file must have; None accepts any.
        max_prompt_length: longest prompt in tokens (`data.max_prompt_length`).
        max_response_length: longest response in tokens (`data.max_response_length`).
    Raises:
        FileNotFoundError, ValueError: as `RolloutReader`, and a row beyond a limit or with context
            in its response, by name.
    """
    reader = RolloutReader(path, tokenizer_sha=tokenizer_sha)
    lengths, finished, longest_prompt, longest_row = LengthHistogram(), 0, 0, 0
    for batch in reader.iter_batches(_COLUMNS):
        prompt = list_lengths(batch.column("prompt_ids"))
        response = list_lengths(batch.column("response_ids"))
        _check_limit(batch, prompt, max_prompt_length, "prompt", str(path))
        _check_limit(batch, response, max_response_length, "response", str(path))
        if batch.column("loss_mask").null_count < batch.num_rows:
            for cells in batch_to_dicts(batch):
                check_all_generated(Rollout(**cells))
        lengths.add(response)
        longest_prompt = max(longest_prompt, int(prompt.max()))
        longest_row = max(longest_row, int((prompt + response).max()))
        finished += batch.column("finish_reason").to_pylist().count("stop")
    first = next(iter(reader.iter_rows()))
    sha = reader.metadata["tokenizer_sha"]
    return RolloutFacts(
        path=str(path),
        rows=lengths.rows,
        finished_rows=finished,
        tokens=lengths.tokens,
        longest_prompt=longest_prompt,
        longest_response=lengths.max,
        longest_row=longest_row,
        length_p99=lengths.percentile(_PERCENTILE),
        tokenizer_sha=sha,
        policy={**_known(first.policy), "tokenizer_sha": sha},
        sampling={key: value for key, value in _known(first.sampling).items() if key != "seed"},
        answers=reader.metadata.get("answers", "all"),
        segment=reader.metadata.get("segment"),
    )


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _check_limit(
    batch: pa.RecordBatch, lengths: np.ndarray, limit: int, what: str, path: str
) -> None:
    longer = np.flatnonzero(lengths > limit)
    if not longer.size:
        return
    row = int(longer[0])
    name = f"prompt_id {batch.column('prompt_id')[row].as_py()!r}, sample_id "
    name += str(batch.column("sample_id")[row].as_py())
    raise ValueError(
        f"{path}: the {what} of {name} has {int(lengths[row])} tokens, more than "
        f"data.max_{what}_length={limit}. It is not truncated, since that would teach another "
        f"length: raise data.max_{what}_length, or leave the row out of the file."
    )
