"""Arrow list columns as numpy arrays, and digests that say which rows have the same content.

Views are zero-copy: a list column of a record batch is one flat values array plus row offsets, and
row `i` is `values[offsets[i] : offsets[i + 1]]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa


def is_int_list(kind: pa.DataType) -> bool:
    """True for a variable-length list of integers."""
    return pa.types.is_list(kind) and pa.types.is_integer(kind.value_type)


def int_list_array(
    cells: Sequence[Sequence[int] | None], *, nullable: bool = False
) -> pa.ListArray:
    """Rows of integers as a list<int32> column; Arrow itself would cut 1.5 down to 1.

    Args:
        cells: N sequences, numpy arrays or CPU tensors of integers.
        nullable: whether a cell may be None.
    Raises:
        TypeError: a cell is no sequence of integers.
        OverflowError: an integer does not fit int32.
    """
    rows, nothing = [], np.empty(0, dtype=np.int32)
    for cell in cells:
        row = nothing if nullable and cell is None else np.asarray(cell)
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise TypeError(f"{cell!r:.60} is no sequence of integers")
        if row.size and not (row.min() >= -(1 << 31) and row.max() < 1 << 31):
            raise OverflowError(f"{row.max() if row.max() >= 1 << 31 else row.min()} is not int32")
        rows.append(row.astype(np.int32))
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.concatenate([nothing, *rows])
    null = pa.array([cell is None for cell in cells])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=null)


def list_view(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Flat values and row offsets of a list column without nulls inside its lists.

    Args:
        column: list array of N rows (may be a slice of a longer one).
    Returns:
        (values, offsets [N + 1] int64): zero-copy values of the whole buffer, and the bounds of
        each row in it. `offsets[0]` is not 0 for a slice.
    """
    offsets = column.offsets.to_numpy().astype(np.int64)
    return column.values.to_numpy(zero_copy_only=not column.values.null_count), offsets


def list_lengths(column: pa.Array) -> np.ndarray:
    """Length of each list, [N] int64; a null row counts 0."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    if column.null_count:
        lengths[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return lengths


def content_digest(ids: np.ndarray, *, key: bytes = b"") -> int:
    """64-bit blake2b digest of token ids, the identity of a prompt or of a completion.

    Ids are hashed as little-endian int32, so the digest is the same on every machine. Two different
    prompts among n share a digest with probability about n**2 / 2**65 (1e-7 at 2 million).
    """
    data = np.ascontiguousarray(ids, dtype="<i4")
    return int.from_bytes(blake2b(data, digest_size=8, key=key).digest(), "little")


def row_digests(column: pa.Array, *, key: bytes = b"") -> np.ndarray:
    """`content_digest` of every row of a list column, [N] uint64.

    Neighbours that are equal are hashed once: the completions of a prompt are usually adjacent.
    """
    values, offsets = list_view(column)
    out = np.empty(len(column), dtype=np.uint64)
    bounds = offsets.tolist()
    previous, digest = None, 0
    for row, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        ids = values[start:end]
        if previous is None or not np.array_equal(ids, previous):
            previous, digest = ids, content_digest(ids, key=key)
        out[row] = digest
    return out


def prompt_digests(batch: pa.RecordBatch, *, key: bytes = b"") -> np.ndarray:
    """Identity of the prompt of every row, [N] uint64: `row_digests` of its token ids, and where it
    has pictures their hashes, since one question about two pictures is two prompts.

    Args:
        batch: has the columns prompt_ids and pictures.
    """
    digests, pictures = row_digests(batch.column("prompt_ids"), key=key), batch.column("pictures")
    if pictures.null_count < len(pictures):
        for row, names in enumerate(pictures.to_pylist()):
            if names:
                data = blake2b("".join(names).encode(), digest_size=8, key=key).digest()
                digests[row] ^= np.frombuffer(data, dtype="<u8")[0]
    return digests


def name_digests(names: Sequence[str]) -> np.ndarray:
    """64-bit blake2b digest of each string, [N] uint64."""
    digests = (blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def run_starts(column: pa.Array) -> np.ndarray:
    """Indices at which a new run of equal cells begins, [R] int64, starting with 0.

    Args:
        column: a non-empty column of strings or numbers without nulls.
    """
    codes = column.dictionary_encode().indices.to_numpy()
    return np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])


class DistinctDigests:
    """The set of all 64-bit digests added, kept as a sorted array.

    New digests gather in a buffer that is merged when it outgrows the set, so memory stays below
    about 3 times 8 bytes per distinct digest (2 million prompts: 48 MB) and adding is cheap.
    """

    _LEAST = 1 << 16

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._buffer: list[np.ndarray] = []
        self._buffered = 0

    def add(self, digests: np.ndarray) -> None:
        """Add digests, [N] uint64, repeated ones included."""
        self._buffer.append(np.unique(digests))
        self._buffered += len(self._buffer[-1])
        if self._buffered > max(self._LEAST, len(self._sorted)):
            self._merge()

    def values(self) -> np.ndarray:
        """All distinct digests, sorted, [D] uint64."""
        self._merge()
        return self._sorted

    def __len__(self) -> int:
        return len(self.values())

    def _merge(self) -> None:
        if self._buffer:
            self._sorted = np.unique(np.concatenate([self._sorted, *self._buffer]))
            self._buffer, self._buffered = [], 0
