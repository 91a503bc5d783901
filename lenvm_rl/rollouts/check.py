"""Is a batch of rollouts well formed?

The rules are vectorised over Arrow record batches, so that writer, reader and stream apply the same
ones at the cost of a pass over the columns that are loaded anyway.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lenvm_rl.rollouts.columns import list_lengths, list_view
from lenvm_rl.rollouts.record import (
    FINISH_REASONS,
    OPTIONAL_COLUMNS,
    MalformedRow,
    Rollout,
    rows_to_batch,
)

Fail = Callable[[int, str, str], NoReturn]
"""Raises for a row of the batch, given its index, the kind of fault and the reason."""


def check_batch(
    batch: pa.RecordBatch,
    *,
    source: str,
    first_row: int = 0,
    vocab_size: int | None = None,
    eos_ids: Sequence[int] | None = None,
) -> None:
    """Raise MalformedRow on the first malformed row; only the columns that are present are checked.

    Args:
        batch: rows of a rollout file, any subset of its columns.
        source: what the message calls the origin of the rows (a file name).
        first_row: number of the batch's first row within `source`.
        vocab_size: token ids must be below it; None checks only that they are not negative.
        eos_ids: a row with finish_reason `stop` must end with one of these; None skips the check.
    """
    names = set(batch.schema.names)

    def fail(row: int, kind: str, reason: str) -> NoReturn:
        keys = [key for key in ("prompt_id", "sample_id") if key in names]
        cells = ", ".join(f"{key} {batch.column(key)[row].as_py()!r}" for key in keys)
        raise MalformedRow(
            kind, f"{source}, row {first_row + row}{f' ({cells})' if cells else ''}: {reason}"
        )

    for name in names.difference(OPTIONAL_COLUMNS):
        if batch.column(name).null_count:
            null = batch.column(name).is_null().to_numpy(zero_copy_only=False)
            row = int(np.flatnonzero(null)[0])
            fail(row, "null", f"column {name} is null; only {list(OPTIONAL_COLUMNS)} may be.")
    for name, remedy in (
        ("prompt_ids", "state s_0 is the last prompt token, so give at least a BOS."),
        ("response_ids", "a completion has at least one token. Drop such rows and count them."),
    ):
        if name in names:
            _check_ids(batch.column(name), name, remedy, vocab_size, fail)
    if "finish_reason" in names:
        _check_finish(batch, names, eos_ids, fail)
    if {"response_logprobs", "response_ids"} <= names:
        _check_logprobs(batch, fail)
    for name in names.intersection(_EXTRAS):
        if batch.column(name).null_count < batch.num_rows:
            _check_extra(batch, name, fail)


def check_row(
    row: Rollout, *, vocab_size: int | None = None, eos_ids: Sequence[int] | None = None
) -> None:
    """Raise MalformedRow where a rollout file would not take the row, see `check_batch`."""
    batch = rows_to_batch([row])
    check_batch(batch, source="new rows", vocab_size=vocab_size, eos_ids=eos_ids)


def _check_ids(
    column: pa.Array, name: str, remedy: str, vocab_size: int | None, fail: Fail
) -> None:
    values, offsets = list_view(column)
    empty = np.flatnonzero(offsets[1:] == offsets[:-1])
    if empty.size:
        fail(int(empty[0]), f"no {name}", f"{name} is empty; {remedy}")
    values = values[offsets[0] : offsets[-1]]
    if not values.size:
        return
    limit = vocab_size if vocab_size is not None else np.iinfo(np.int32).max + 1
    if int(values.min()) < 0 or int(values.max()) >= limit:
        position = int(np.flatnonzero((values < 0) | (values.astype(np.int64) >= limit))[0])
        row = int(np.searchsorted(offsets - offsets[0], position, side="right")) - 1
        fail(
            row,
            "token id beyond the vocabulary",
            f"{name} holds token id {int(values[position])}, outside the vocabulary of {limit} "
            "ids. The row was made with another tokenizer, or vocab_size is not the policy's "
            "(--vocab-size): its output layer may be padded beyond the tokenizer.",
        )


def _check_finish(
    batch: pa.RecordBatch, names: set[str], eos_ids: Sequence[int] | None, fail: Fail
) -> None:
    column = batch.column("finish_reason")
    known = pc.is_in(column, value_set=pa.array(FINISH_REASONS)).to_numpy(zero_copy_only=False)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        fail(
            row,
            "unknown finish reason",
            f"finish_reason {column[row].as_py()!r} is unknown; use 'stop' when the policy emitted "
            "EOS and 'length' when the token limit cut it.",
        )
    if eos_ids is None or "response_ids" not in names:
        return
    values, offsets = list_view(batch.column("response_ids"))
    stopped = pc.equal(column, "stop").to_numpy(zero_copy_only=False)
    bad = stopped & ~np.isin(values[offsets[1:] - 1], np.asarray(list(eos_ids), dtype=np.int64))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        last = int(values[offsets[row + 1] - 1])
        fail(
            row,
            "stop without an end token",
            f"finish_reason is 'stop' but the last token is {last}, not an EOS of {list(eos_ids)}. "
            "Append the EOS the policy emitted, or mark the row 'length' if it was cut.",
        )


def _check_logprobs(batch: pa.RecordBatch, fail: Fail) -> None:
    column = batch.column("response_logprobs")
    present = column.is_valid().to_numpy(zero_copy_only=False)
    want, got = list_lengths(batch.column("response_ids")), list_lengths(column)
    bad = np.flatnonzero(present & (want != got))
    if bad.size:
        row = int(bad[0])
        fail(
            row,
            "log-probabilities of another length",
            f"response_logprobs has {got[row]} entries for {want[row]} response tokens.",
        )


def _check_extra(batch: pa.RecordBatch, name: str, fail: Fail) -> None:
    """Cell by cell: few files have these columns, and their cells are short."""
    kind, find = _EXTRAS[name]
    lengths: list[int] | list[None] = [None] * batch.num_rows
    if "response_ids" in batch.schema.names:
        lengths = list_lengths(batch.column("response_ids")).tolist()
    for row, (cell, length) in enumerate(zip(batch.column(name).to_pylist(), lengths, strict=True)):
        if cell is not None and (reason := find(cell, length)):
            fail(row, kind, f"{name} {reason}")


def _guidance(cell: str, length: int | None) -> str | None:
    try:
        whole = isinstance(json.loads(cell), dict)
    except ValueError:
        whole = False
    return None if whole else f"is {cell!r:.60}, not a JSON object."


def _loss_mask(cell: list[int], length: int | None) -> str | None:
    if None in cell or min(cell, default=1) < 0 or 0 in cell[1:]:
        return (
            f"is {cell!r:.60}: run lengths are at least 1 token, but for a first 0 where the "
            "response begins with context."
        )
    if length is not None and sum(cell) != length:
        return (
            f"covers {sum(cell)} of {length} response tokens: its runs (generated, context, "
            "generated, ...) must sum to the response's length."
        )
    return (
        None if sum(cell[::2]) else "leaves no generated token: the policy wrote none of the row."
    )


def _segments(cell: list[dict[str, Any] | None], length: int | None) -> str | None:
    for part in cell:
        if part is None or None in part.values():
            return f"has {part}: each has a name, a start and an end."
        if not 0 <= part["start"] <= part["end"] or (length is not None and part["end"] > length):
            return (
                f"has {part}, which does not lie in the response"
                f"{f' of {length} tokens' if length is not None else ''}: 0 <= start <= end <= "
                "length."
            )
    return None


def _turn(cell: int, length: int | None) -> str | None:
    return f"is {cell}: turns of a session count from 0." if cell < 0 else None


def _reward(cell: float, length: int | None) -> str | None:
    return None if math.isfinite(cell) else f"is {cell}: give a finite number, or none."


def _pictures(cell: list[str | None], length: int | None) -> str | None:
    bad = next((name for name in cell if not _SHA256.fullmatch(name or "")), "")
    return (
        None
        if bad == ""
        else (
            f"names {bad!r:.80}, which is no SHA-256 in hexadecimal digits: give what "
            "RolloutWriter.add_picture returns."
        )
    )


_SHA256 = re.compile(r"[0-9a-f]{64}")
_EXTRAS = {
    "guidance": ("guidance is no object", _guidance),
    "loss_mask": ("a loss mask that does not fit", _loss_mask),
    "segments": ("a segment outside the response", _segments),
    "turn": ("a negative turn", _turn),
    "reward": ("a reward that is no number", _reward),
    "pictures": ("a picture without its hash", _pictures),
}
"""Column -> kind of fault, and a function of (cell, response length or None) that finds it."""
