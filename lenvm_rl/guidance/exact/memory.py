"""Memory of a scorer: what it takes, and a refusal before it is allocated.

    keys and values = bytes per token x pages x tokens per page
    pages of a row  = (its tokens + spare) / tokens per page, rounded up

All of it is allocated before the first request: as many pages as all rows could use at their
longest, or as the budget has room for, whichever is less. Rows that want more than there is take
turns (`exact.trunk`); fewer than one row at its longest needs are refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

_UNITS = {"B": 1} | {
    f"{letter}{infix}B": base**power
    for power, letter in enumerate("KMGT", start=1)
    for infix, base in (("i", 1024), ("", 1000))
}


@dataclass(frozen=True, kw_only=True)
class ScorerMemory:
    """What a scorer takes, whatever the number of its slots and their length."""

    weights: int
    """Bytes of the LenVM's weights and of tables made from them."""
    bytes_per_token: int
    """Of keys and values in all layers; 0 where none are kept."""
    spare: int = 0
    """Columns of a slot behind its longest row, for candidates."""
    page: int = 1
    """Tokens of a page."""
    padding_pages: int = 0
    """Pages that no row gets."""

    def columns(self, max_length: int) -> int:
        """Columns of a row of `max_length` tokens, in whole pages."""
        return -(-(max_length + self.spare) // self.page) * self.page

    def cache(self, slots: int, max_length: int) -> int:
        """Bytes of keys and values of so many rows at their longest."""
        padding = self.padding_pages * self.page
        return self.bytes_per_token * (slots * self.columns(max_length) + padding)

    def pages(self, slots: int, max_length: int, *, room: int | None = None) -> int:
        """Pages of the store: what the rows can use, and `room` bytes hold (None: no bound)."""
        most = slots * self.columns(max_length) // self.page + self.padding_pages
        each = self.bytes_per_token * self.page
        return most if room is None or not each else min(most, room // each)

    def rows_within(self, room: int, max_length: int) -> int:
        """How many rows of `max_length` tokens fit in `room` bytes together, >= 0; where nothing is
        kept, more than anybody asks for."""
        each = self.bytes_per_token * self.columns(max_length)
        return max(room - self.cache(0, max_length), 0) // each if each else 1 << 30

    def length_within(self, room: int) -> int:
        """The longest row, in tokens, that fits in `room` bytes, >= 0."""
        each = self.bytes_per_token * self.page
        pages = room // each - self.padding_pages if each else 1 << 30
        return max(pages * self.page - self.spare, 0)

    def check(
        self, max_length: int, *, budget: int | None = None, free: int | None = None
    ) -> int | None:
        """Refuse pages that do not hold one row of `max_length` tokens.

        Args:
            budget: bytes that they may take; None: no bound.
            free: bytes that are there for them; None: unknown.
        Returns:
            The bytes that there are for them; None: nobody knows a bound.
        Raises:
            ValueError: the arithmetic, and what would fit.
        """
        need = self.cache(1, max_length)
        room = min((n for n in (budget, free) if n is not None), default=None)
        if room is None or need <= room:
            return room
        ways = []
        if (shorter := self.length_within(room)) > 0:
            ways.append(f"rows of {shorter} tokens (--max-model-len {shorter})")
        if free is None or need <= free:
            ways.append(f"a budget of {in_units(need)} (--lenvm-memory {in_units(need)})")
        advice = f"What fits: {', or '.join(ways)}." if ways else "Use a smaller LenVM."
        raise ValueError(
            f"the LenVM's keys and values of one request do not fit: {self.bytes_per_token:,} "
            f"bytes per token x {need // self.bytes_per_token:,} columns in pages "
            f"({max_length:,} tokens and room for candidates) = {in_units(need)}, but "
            f"{in_units(max(room, 0), up=False)} "
            f"{'are free' if room == free else 'is their budget'}. {advice}"
        )


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where nobody knows.

    On a CPU (Linux) the smaller of what the machine has left and what the control group allows.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [n for n in (machine_memory(), group_headroom()) if n is not None]
    return min(known, default=None)


def machine_memory(table: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory that the machine can give away without swapping, as the kernel estimates;
    None where it does not say."""
    try:
        return 1024 * int(table.read_text().partition("MemAvailable:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return None


def group_headroom(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process's control group may still take, page cache that can be dropped
    counted as free; None without a limit. Version 2 and version 1, as seen from a container."""
    for folder, limit, usage, cache in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not there, or the word "max"
            continue
        return max(most - used + int(stat.get(cache, 0)), 0)
    return None


def parse_bytes(text: str | float) -> int:
    """Bytes of "2GiB", "512 MiB" or "800000000B"; a number without a unit is GiB.

    Raises:
        ValueError: not a positive amount.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(text))
    units = {name.lower(): size for name, size in _UNITS.items()} | {"": 2**30}
    if isinstance(text, bool) or not found or found[2].lower() not in units:
        raise ValueError(
            f"an amount of memory is a number and one of {', '.join(_UNITS)}, e.g. 2GiB (GiB where "
            f"there is no unit), got {text!r}."
        )
    amount = int(float(found[1]) * units[found[2].lower()])
    if amount < 1:
        raise ValueError(f"an amount of memory must be above 0, got {text!r}.")
    return amount


def in_units(count: int, *, up: bool = True) -> str:
    """Bytes as text that `parse_bytes` reads, in hundredths of a GiB, or of a MiB below one;
    rounded up, or down."""
    unit = "GiB" if count >= _UNITS["GiB"] else "MiB"
    hundredths = count * 100 / _UNITS[unit]
    return f"{(math.ceil if up else math.floor)(hundredths) / 100:.2f}{unit}"
