"""The right answers of a rollout file, as a rollout file: what a LenVM of right answers learns.

Their file says so (metadata key `answers`), and the LenVM that is trained on it too: its values are
E[G | s, right], and lenvm.baseline=correct asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from lenvm_rl.rollouts.atomic import whole_rollout_file
from lenvm_rl.rollouts.layout import DERIVED_METADATA
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.rollouts.reader import RolloutReader
from lenvm_rl.rollouts.record import SCHEMA

Judge = Callable[[str, str, str], bool]
"""Of (data source, response text, ground truth): is it right?"""


@dataclass(frozen=True)
class CorrectReport:
    """What was judged, and what was kept."""

    rows: int
    correct: int
    without_truth: int
    """Rows without a ground truth, which nothing can judge; they are left out."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return {**asdict(self), "share_correct": self.correct / self.rows}


def keep_correct(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    decode: Callable[[Sequence[int]], str],
    judge: Judge,
    grader_of: Callable[[str], str] | None = None,
    progress: bool = False,
) -> CorrectReport:
    """Write the rows of a rollout file whose response is right, in one pass.

    A response is judged as it stands, whether or not the token limit cut it, as a reward function
    does in training.

    Args:
        path: rollout file or directory.
        out: where they go; must not exist. It appears when whole.
        decode: response token ids to text.
        judge: whether a text is right.
        grader_of: name of the judge of a data source: the rows kept get it as `grader`, and the
            reward 1. None leaves both columns as they are.
        progress: show a bar.
    Raises:
        ValueError: no row has a ground truth, or none is right; and what the judge raises.
    """
    reader = RolloutReader(path)
    settings = {key: reader.metadata[key] for key in DERIVED_METADATA if key in reader.metadata}
    correct = without = 0
    with (
        whole_rollout_file(out, **{**settings, "answers": "correct"}) as writer,
        progress_bar("grading", len(reader), shown=progress) as advance,
    ):
        for batch in reader.iter_batches():
            cells = (
                batch.column(name).to_pylist()
                for name in ("data_source", "response_ids", "ground_truth")
            )
            kept = [
                truth is not None and bool(judge(source, decode(ids), truth))
                for source, ids, truth in zip(*cells, strict=True)
            ]
            without += batch.column("ground_truth").null_count
            correct += sum(kept)
            if any(kept):
                part = _graded(batch.filter(pa.array(kept)), grader_of)
                writer.append_batch(part, media=reader.media)
            advance(batch.num_rows)
        if not correct:
            raise ValueError(
                f"{path}: none of {len(reader)} completions is right, {without} of them have no "
                "ground truth. Sample prompts with a ground_truth, and look whether the grader is "
                "theirs."
            )
    return CorrectReport(rows=len(reader), correct=correct, without_truth=without)


def _graded(batch: pa.RecordBatch, grader_of: Callable[[str], str] | None) -> pa.RecordBatch:
    if grader_of is None:
        return batch
    graders = [grader_of(source) for source in batch.column("data_source").to_pylist()]
    for name, cells in (("reward", [1.0] * len(graders)), ("grader", graders)):
        field = SCHEMA.field(name)
        batch = batch.set_column(SCHEMA.get_field_index(name), field, pa.array(cells, field.type))
    return batch
