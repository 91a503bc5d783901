"""In which order are the rows of an epoch visited?

The order is a function of (seed, epoch, index) by a fixed integer hash, not of a generator's
history or of a library's version: a run can be continued anywhere, years later, in the same order.
"""

from __future__ import annotations

import numpy as np


def shuffled(count: int, *stream: int) -> np.ndarray:
    """A permutation of `0..count-1`, [count] int64, fixed by the integers `stream`.

    Indices are sorted by a 64-bit hash (splitmix64) of `stream` and the index.
    """
    key = np.zeros(1, dtype=np.uint64)
    for number in stream:
        key = _splitmix64(key ^ np.uint64(number % (1 << 64)))
    return np.argsort(_splitmix64(key ^ np.arange(count, dtype=np.uint64)), kind="stable")


def windows(rows: np.ndarray, sizes: np.ndarray, *, max_rows: int, max_bytes: int) -> np.ndarray:
    """Cut a sequence of row groups into windows that fit in memory.

    A window takes groups until it holds at least `max_rows` rows, or until the next group would
    take it above `max_bytes`; it has at least one group.

    Args:
        rows: rows of each group in visiting order, [R].
        sizes: bytes of each group in visiting order, [R].
    Returns:
        Bounds [W + 1]: window w is the groups `bounds[w] .. bounds[w + 1] - 1`.
    """
    bounds = [0]
    held_rows = held_bytes = 0
    for group, (n, size) in enumerate(zip(rows.tolist(), sizes.tolist(), strict=True)):
        if held_rows and (held_rows >= max_rows or held_bytes + size > max_bytes):
            bounds.append(group)
            held_rows = held_bytes = 0
        held_rows += n
        held_bytes += size
    return np.asarray([*bounds, len(rows)], dtype=np.int64)


def by_group(keys: np.ndarray, *stream: int) -> np.ndarray:
    """A permutation that shuffles groups of equal keys and keeps each group together, in order.

    Args:
        keys: group number of each row, [N], values 0..G-1.
    """
    rank = np.empty(int(keys.max()) + 1, dtype=np.int64)
    rank[shuffled(len(rank), *stream)] = np.arange(len(rank))
    return np.argsort(rank[keys], kind="stable")


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Finaliser of the SplitMix64 generator (Steele, Lea, Flood 2014), a bijection of 64 bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
