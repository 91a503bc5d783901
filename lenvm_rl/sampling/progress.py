"""Running totals of a sampling run, and their line on the terminal: throughput, time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lenvm_rl.rollouts.record import Rollout

_WINDOW = 60.0  # seconds over which throughput is averaged: a run starts slowly and ends slowly
_LOG_EVERY = 30.0  # seconds between lines where stderr is a file, which has no bar


class SamplingCounts:
    """Running totals of a run.

    Args:
        total: completions of the whole run.
        clock: seconds, monotonic.
    """

    def __init__(self, *, total: int, clock: Callable[[], float] = time.monotonic):
        self.total = total
        self.rows = self.tokens = self.truncated = self.with_unknown_ids = 0
        self.new_rows = self.new_tokens = 0
        self.failures: Counter[str] = Counter()
        self._deviation, self._targets = 0.0, 0
        self._clock = clock
        self._marks = [(clock(), 0, 0)]  # (time, new rows, new tokens), oldest first

    @property
    def left(self) -> int:
        """Completions that are neither made nor given up."""
        return self.total - self.rows - self.failures.total()

    @property
    def share_truncated(self) -> float:
        """Share of rows truncated by the token limit, in [0, 1]; 0 without rows."""
        return self.truncated / self.rows if self.rows else 0.0

    @property
    def mean_deviation(self) -> float | None:
        """Mean |tokens without EOS - target| / target of rows with a target; None without any."""
        return self._deviation / self._targets if self._targets else None

    def add(self, row: Rollout, *, unknown_ids: bool = False, new: bool = True) -> None:
        """Count a completion, whether it holds ids that stand for no token, and whether it is made
        now or was there."""
        truncated = row.finish_reason == "length"
        self.rows += 1
        self.tokens += row.length
        self.truncated += truncated
        self.with_unknown_ids += unknown_ids
        self.new_rows += new
        self.new_tokens += row.length if new else 0
        guidance = row.guidance or {}
        target = guidance.get("lenvm_target")
        if target and "lenvm_segment" not in guidance:  # else it is not the response's length
            self._targets += 1
            self._deviation += abs(row.length - (not truncated) - target) / target

    def fail(self, kind: str, count: int) -> None:
        """Count completions that could not be made."""
        self.failures[kind] += count

    def rates(self) -> tuple[float, float]:
        """Completions and tokens per second of the last minute."""
        now = self._clock()
        if now - self._marks[-1][0] > 1.0:
            self._marks.append((now, self.new_rows, self.new_tokens))
        while len(self._marks) > 1 and self._marks[1][0] <= now - _WINDOW:
            self._marks.pop(0)
        then, rows, tokens = self._marks[0]
        seconds = max(now - then, 1e-9)
        return (self.new_rows - rows) / seconds, (self.new_tokens - tokens) / seconds

    def line(self) -> str:
        """`812/5000  64.2/s  7,120 tok/s  truncated 0.4 %  failed 3  left 0:01:05`."""
        per_s, tokens_per_s = self.rates()
        remaining = f"{_clock_face(self.left / per_s)}" if self.new_rows and per_s else "-"
        failed = f"  failed {self.failures.total()}" if self.failures else ""
        return (
            f"{self.rows}/{self.total}  {per_s:.1f}/s  {tokens_per_s:,.0f} tok/s  "
            f"truncated {self.share_truncated:.1%}{failed}  left {remaining}"
        )


def _clock_face(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


@contextmanager
def sampling_progress(
    counts: SamplingCounts, title: str, *, shown: bool
) -> Iterator[Callable[[], None]]:
    """Yield `show()`, called after every change of `counts`; on stderr, a bar or a line now and
    then (needs rich), that begins with `title`; nothing when not `shown`."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(counts, console.print, title)
        return
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.fields[line]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=counts.total, completed=counts.rows, line="")
        last = 0.0

        def show() -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 0.2 or not counts.left:
                last = now
                bar.update(task, completed=counts.rows, line=counts.line())

        yield show


class _Lines:
    """A line every so often, for logs."""

    def __init__(self, counts: SamplingCounts, write: Callable[[str], None], title: str):
        self._counts, self._write, self._title = counts, write, title
        self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last > _LOG_EVERY or not self._counts.left:
            self._last = now
            self._write(f"{self._title}  {self._counts.line()}")
