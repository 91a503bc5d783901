"""The thinking and the answer of a response, told apart by the tags that the policy writes.

    <think> ... </think> the answer
    [-- thinking ---]    [ answer ]     the thinking's last token is the first of the closing tag

A LenVM of a segment is trained on a rollout file of nothing else (`keep_segment`): the thinking
ends where the closing tag begins, as a response ends with EOS; the answer has the thinking in its
prompt. The file says which segment it holds and between which tags, and so does the LenVM.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lenvm_rl.rollouts.files import DERIVED_METADATA
from lenvm_rl.rollouts.reader import RolloutReader
from lenvm_rl.rollouts.record import Rollout, batch_to_rows, rows_to_batch
from lenvm_rl.rollouts.writer import whole_rollout_file

THINKING, ANSWER = "thinking", "answer"
SEGMENTS = (THINKING, ANSWER)


@dataclass(frozen=True)
class ThinkTags:
    """Token ids of the opening and of the closing tag, at least one each."""

    start: tuple[int, ...]
    end: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.start or not self.end or self.start == self.end:
            raise ValueError(
                f"thinking is told from the answer by two tags, got {list(self.start)} and "
                f"{list(self.end)}: name an opening and a closing one, e.g. <think> and </think>."
            )

    @classmethod
    def of(cls, start: str, end: str, tokenizer: Any) -> ThinkTags:
        """The tags as the tokenizer writes them.

        Raises:
            ValueError: a tag that is empty, or that it cannot write.
        """
        ids = []
        for tag in (start, end):
            found = tuple(tokenizer(tag, add_special_tokens=False)["input_ids"])
            if tokenizer.decode(list(found), skip_special_tokens=False).strip() != tag.strip():
                raise ValueError(
                    f"the tokenizer cannot write the tag {tag!r} (it reads it back as "
                    f"{tokenizer.decode(list(found))!r}): name the tag that this policy writes."
                )
            ids.append(found)
        return cls(*ids)

    def opened_by(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt has opened a thinking that it has not closed: many chat templates
        write the opening tag themselves."""
        start, end = (_last(prompt, tag) for tag in (self.start, self.end))
        return start > end

    def close(self, response: Sequence[int]) -> int | None:
        """Place of the closing tag's first token in a response; None: it is not closed."""
        tag, size = list(self.end), len(self.end)
        for i, token in enumerate(response):
            if token == tag[0] and list(response[i : i + size]) == tag:
                return i
        return None


def _last(ids: Sequence[int], tag: Sequence[int]) -> int:
    for i in range(len(ids) - len(tag), -1, -1):
        if list(ids[i : i + len(tag)]) == list(tag):
            return i
    return -1


def segment_of(row: Rollout, segment: str, tags: ThinkTags) -> Rollout | None:
    """The row as if the segment were its whole response; None where it has no such segment.

    A response thinks if its prompt has opened the thinking or it begins with the opening tag; if it
    does not, all of it is answer. Thinking that EOS ends is one that ended there.
    """
    response = list(row.response_ids)
    thinks = tags.opened_by(row.prompt_ids) or response[: len(tags.start)] == list(tags.start)
    close = tags.close(response) if thinks else -len(tags.end)
    if segment == THINKING:
        if not thinks:
            return None
        end, reason = (len(response), row.finish_reason) if close is None else (close + 1, "stop")
        return _cut(row, 0, end, reason)
    if close is None or close + len(tags.end) >= len(response):
        return None
    return _cut(row, close + len(tags.end), len(response), row.finish_reason)


def _cut(row: Rollout, start: int, end: int, reason: str) -> Rollout:
    logprobs = row.response_logprobs
    return replace(
        row,
        prompt_ids=[*row.prompt_ids, *row.response_ids[:start]],
        response_ids=row.response_ids[start:end],
        response_logprobs=None if logprobs is None else logprobs[start:end],
        finish_reason=reason,
        segments=None,
        prompt_messages=row.prompt_messages if start == 0 else None,
    )


@dataclass(frozen=True)
class SegmentReport:
    """What was read and what was kept."""

    rows: int
    kept: int
    truncated: int
    """Kept rows whose segment the token limit ended."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return asdict(self)


def keep_segment(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    segment: str,
    tags: ThinkTags,
    progress: bool = False,
) -> SegmentReport:
    """Write a rollout file whose responses are one segment of another's, in one pass.

    Args:
        path: rollout file or directory.
        out: where it goes; must not exist. It appears when whole.
        segment: thinking, or answer.
        tags: of the policy.
        progress: show a bar.
    Raises:
        ValueError: an unknown segment, rows with context in their responses, or no row that has the
            segment.
    """
    if segment not in SEGMENTS:
        raise ValueError(f"segment must be one of {', '.join(SEGMENTS)}; got {segment!r}.")
    reader = RolloutReader(path)
    facts = {key: reader.metadata[key] for key in DERIVED_METADATA if key in reader.metadata}
    if segment == THINKING:
        facts["eos_ids"] = sorted({*facts["eos_ids"], tags.end[0]})
    facts["segment"] = described(segment, tags)
    kept = truncated = 0
    with whole_rollout_file(out, **facts) as writer:
        for batch in reader.iter_batches(bar="cutting" if progress else None):
            parts = []
            for row in batch_to_rows(batch):
                if row.loss_mask is not None:
                    raise ValueError(
                        f"{path}: the response of {row.prompt_id!r} has tokens that the policy "
                        "did not write; segments of such rows are not cut."
                    )
                part = segment_of(row, segment, tags)
                if part is not None:
                    parts.append(part)
            if parts:
                writer.append_batch(rows_to_batch(parts), media=reader.media)
                kept += len(parts)
                truncated += sum(part.truncated for part in parts)
        if not kept:
            raise ValueError(
                f"{path}: none of {len(reader)} responses has a segment {segment!r} between "
                f"{list(tags.start)} and {list(tags.end)}: name the tags that this policy writes."
            )
    return SegmentReport(rows=len(reader), kept=kept, truncated=truncated)


def described(segment: str, tags: ThinkTags) -> dict[str, Any]:
    """What a file and a LenVM say of the segment that they are of, as JSON can say it."""
    return {"name": segment, "start": list(tags.start), "end": list(tags.end)}
