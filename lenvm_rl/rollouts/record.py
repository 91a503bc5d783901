"""What is one row of a rollout file?

A row is one completion. Token ids are the truth: nothing is re-tokenised to count. The length of
a row is `len(response_ids)` in tokens, EOS included when the policy ended by itself
(`finish_reason == "stop"`); a row cut by the token limit (`"length"`) has no EOS and its true
length is only known to exceed what was seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from lenvm_rl.rollouts.columns import int_list_array, is_int_list, list_view

FINISH_REASONS = ("stop", "length")
"""`stop`: the policy emitted EOS. `length`: the token limit cut the completion."""

_SAMPLING = pa.struct(
    [
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("top_k", pa.int32()),
        ("min_p", pa.float64()),
        ("max_tokens", pa.int32()),
        ("seed", pa.int64()),
    ]
)
_POLICY = pa.struct([("name", pa.string()), ("revision", pa.string())])

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_id", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("prompt_messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("data_source", pa.string()),
        ("ground_truth", pa.string()),
        ("sampling", _SAMPLING),
        ("policy", _POLICY),
        ("response_logprobs", pa.list_(pa.float32())),
    ]
)
"""Columns of a rollout file, in order."""

OPTIONAL_COLUMNS = ("prompt_messages", "ground_truth", "response_logprobs")
"""Columns whose cells may be null, and that a file may lack altogether (then read as null)."""

SAMPLING_KEYS = tuple(f.name for f in _SAMPLING)
POLICY_KEYS = tuple(f.name for f in _POLICY)


class MalformedRow(ValueError):
    """A row that no rollout file takes.

    Args:
        kind: short and without details, so that rows can be counted by it.
        reason: a sentence that names the row, the value and the remedy.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(kw_only=True, slots=True)
class Rollout:
    """One completion of one prompt.

    `sampling` and `policy` take dicts; missing keys become None, unknown keys are refused.
    """

    prompt_id: str
    """Name of the prompt. Splits go by the content of `prompt_ids`, never by this name."""
    sample_id: int
    """Number of the completion within its prompt."""
    prompt_ids: Sequence[int]
    """Prompt tokens after the chat template's generation prompt; the last one is state s_0."""
    response_ids: Sequence[int]
    """Generated tokens, EOS included when `finish_reason == "stop"`."""
    finish_reason: str
    """`"stop"` or `"length"`."""
    prompt_messages: list[dict[str, str]] | None = None
    """The prompt as chat messages (role, content), where known."""
    data_source: str = "unknown"
    """Data set the prompt came from; length reports have one line per source."""
    ground_truth: str | None = None
    """Reference answer for a grader, where there is one."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """temperature, top_p, top_k, min_p, max_tokens, seed."""
    policy: dict[str, Any] = field(default_factory=dict)
    """name, revision."""
    response_logprobs: Sequence[float] | None = None
    """Log-probability of each response token under the policy that sampled it."""

    def __post_init__(self) -> None:
        self.sampling = _complete("sampling", self.sampling, SAMPLING_KEYS)
        self.policy = _complete("policy", self.policy, POLICY_KEYS)

    @property
    def length(self) -> int:
        """Response length in tokens (a lower bound when `cut`)."""
        return len(self.response_ids)

    @property
    def cut(self) -> bool:
        """True when the token limit ended the completion, not the policy."""
        return self.finish_reason == "length"

    def to_dict(self) -> dict[str, Any]:
        """Column name to value, in schema order (no copies)."""
        return {name: getattr(self, name) for name in SCHEMA.names}


assert [f.name for f in fields(Rollout)] == SCHEMA.names


def _complete(name: str, given: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    """Fill missing keys with None so that a row read back equals the row written."""
    given = given or {}
    unknown = sorted(set(given) - set(keys))
    if unknown:
        raise ValueError(
            f"{name} has unknown keys {unknown}: a rollout file stores {list(keys)}. "
            "Drop them, or keep them beside the rollout file."
        )
    return {key: given.get(key) for key in keys}


def rows_to_batch(rows: Sequence[Rollout]) -> pa.RecordBatch:
    """Rows as one record batch of `SCHEMA`; a value that does not fit names its row and column."""
    columns = []
    for column in SCHEMA:
        cells = [getattr(row, column.name) for row in rows]
        try:
            columns.append(_array(cells, column.type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise _misfit(rows, column, error) from error
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _array(cells: list[Any], kind: pa.DataType) -> pa.Array:
    return int_list_array(cells) if is_int_list(kind) else pa.array(cells, type=kind)


def _misfit(rows: Sequence[Rollout], column: pa.Field, error: Exception) -> MalformedRow:
    name = "a row"
    for row in rows:
        try:
            _array([getattr(row, column.name)], column.type)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as cause:
            name, error = f"prompt_id {row.prompt_id!r}, sample_id {row.sample_id!r}", cause
            break
    return MalformedRow(
        f"{column.name} does not fit its column",
        f"{name}: column {column.name} does not fit {column.type} ({error}). "
        "Token ids are integers in 0..2**31-1; text columns are str.",
    )


def batch_to_rows(batch: pa.RecordBatch) -> list[Rollout]:
    """Every row of a batch that has all columns, token ids as lists of int."""
    columns = {name: _cells(batch.column(name)) for name in SCHEMA.names}
    return [
        Rollout(**dict(zip(columns, cells, strict=True)))
        for cells in zip(*columns.values(), strict=True)
    ]


def batch_to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Every row of a batch as a dict of the columns the batch has."""
    columns = [_cells(batch.column(i)) for i in range(batch.num_columns)]
    names = batch.schema.names
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cells(column: pa.Array) -> list[Any]:
    """Python values of a column; lists of numbers go through numpy, about 20 times faster."""
    if is_int_list(column.type) and not column.null_count:
        values, offsets = list_view(column)
        bounds = offsets.tolist()
        return [values[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return column.to_pylist()
